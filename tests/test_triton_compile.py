"""What every Triton kernel costs on sm_80, sm_90 and sm_100: compiled without a GPU, held to budgets, no spills; and
that it compiles for AMD's gfx942.

A row of ``KERNELS`` names a kernel, its constants and its budgets; a new kernel gets its row here. The paper's sizes
are compiled for every family in both storage types; a smaller workload, where that makes another kernel of it, for one
of them, and for families that have a row of their own for it.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from rnnsearch_kernels.triton import configs, launch  # noqa: E402

sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))
from workloads import WORKLOADS, Workload  # noqa: E402

ARCHS = (80, 90, 100)
DTYPES = ("float32", "bfloat16")
PAPER = WORKLOADS["paper"]
# Of each smaller workload one storage type and one family: two kernels that differ in sizes alone differ little.
SMALLER = {"tiny": ("bfloat16", 80), "small": ("float32", 90), "speech": ("bfloat16", 100)}
TRITON_TYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
OPTIONS = ("num_warps", "num_stages")


Sizes = Callable[[Workload], dict[str, Any]]


def nothing(workload: Workload) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Kernel:
    """One specialisation: ``module.name`` with the tensors ``storage`` in each storage type, the rest float32.

    table, by  where its block sizes stand, and the size of a workload whose class it is; None where it has none
    sizes      constants that are a workload's
    constants  other constants
    types      Triton types of arguments that are neither float32 pointers nor 32-bit integers
    archs      the families; all, or that of a variant of a kernel that has another row
    """

    module: str
    name: str
    table: configs.Table | None
    by: Callable[[Workload], int]
    registers: int
    shared: int
    storage: tuple[str, ...] = ()
    types: dict[str, str] = field(default_factory=dict)
    sizes: Sizes = nothing
    constants: dict[str, Any] = field(default_factory=dict)
    archs: tuple[int, ...] = ARCHS

    def config(self, workload: Workload, dtype: str, arch: int) -> configs.Config:
        if self.table is None:
            return {}
        return configs.chosen(self.table, f"sm_{arch}", getattr(torch, dtype).itemsize, self.by(workload))

    def row(self, workload: Workload, dtype: str, arch: int) -> dict[str, Any]:
        """All that a launch fixes: constants, block sizes and options."""
        return {**self.sizes(workload), **self.config(workload, dtype, arch), **self.constants}

    def dtypes(self) -> tuple[str, ...]:
        return DTYPES if self.storage or "storage" in self.constants.values() else DTYPES[:1]

    def cases(self) -> Iterator[tuple[Workload, str, int]]:
        """(workload, dtype, arch) to compile."""
        yield from ((PAPER, dtype, arch) for dtype in self.dtypes() for arch in self.archs)
        if self.archs != ARCHS:
            return
        seen = [self.row(PAPER, *SMALLER["tiny"])]
        for name, (dtype, arch) in SMALLER.items():
            workload = WORKLOADS[name]
            own = {other for other in ARCHS if self.table is not None and f"sm_{other}" in self.table}
            plain = self.row(workload, "bfloat16", SMALLER["tiny"][1])
            if plain not in seen or own:
                seen.append(plain)
                yield from ((workload, dtype, other) for other in sorted({arch, *own}))


MASKS = {"padding_ptr": "*i1", "within_ptr": "*i1", "index_ptr": "*i64", "lengths_ptr": "*i64"}
OPERANDS = {"COMPUTE": "storage", "PRECISION": "tf32x3"}


# What there is none of where no gates are made, and where a source is not split.
GATES = (
    "input_gates",
    "hidden_gates",
    "state",
    "state_mask",
    "new_state",
    "gates",
    "carried",
    "entering",
    "reset_state",
)
SPLIT = ("maxima", "totals", "context_gates")
FOLLOWING = ("grad_query", "grad_hidden")
STEP = ("gates", "grad_state", "old_state", "within", "grad_input", "grad_u")
OPTIONAL = ("padding", "within", "index", "state_mask", "carried", "entering")


def absent(*names: str) -> dict[str, None]:
    return dict.fromkeys(f"{name}_ptr" for name in names)


def attention_sizes(workload: Workload) -> dict[str, Any]:
    """A launch's sizes and strides, and what divides them."""
    units, width = 3 * workload.hidden_size, workload.memory_size
    strides = {"KEYS": workload.attention_size, "VALUES": units, "MEMORY": width, "MEMORY_GATES": units}
    return {
        **{"A": workload.attention_size, "H": workload.hidden_size, "M": width, "W": units},
        **{f"{name}_STRIDE": stride for name, stride in strides.items()},
        **{f"{name}_ALIGN": 8 for name in strides},
        "QUERIES_STRIDE": workload.attention_size,
    }


ATTENTION = {
    "attend_kernel": "attention",
    "merge_kernel": "attention_merge",
    "attend_backward_kernel": "attention_backward",
    "merge_backward_kernel": "attention_backward",
    "grad_keys_kernel": "attention_keys",
}


def attend(name: str, table: configs.Table, registers: int, kib: int, *without: str, **constants: int) -> Kernel:
    storage = ("keys", "score_weight", "memory", "memory_gates", "values", "grad_keys", "entering", "reset_state")
    return Kernel(
        ATTENTION[name],
        name,
        table,
        lambda w: w.attention_size,
        registers,
        kib * 1024,
        storage=tuple(f"{operand}_ptr" for operand in storage),
        types=MASKS,
        sizes=attention_sizes,
        constants={**absent(*without), **constants},
    )


def decoder(name: str, table: configs.Table, registers: int, kib: int, *without: str, **constants: bool) -> Kernel:
    """The decoder's products."""
    operands = ("entering", "context", "reset_state", "grad_query", "grad_hidden", "grad_u", "query_weight",
                "query_bias", "hidden_weight", "hidden_bias", "context_weight")  # fmt: skip

    def sizes(workload: Workload) -> dict[str, Any]:
        hidden, width = workload.hidden_size, workload.memory_size
        inputs = width if name == "context_gates_kernel" else hidden
        return {
            **{"A": workload.attention_size, "H": hidden, "M": width, "THROUGH": 3 * hidden, "INPUT_STRIDE": hidden},
            **{"WEIGHT_STRIDE": inputs, "QUERY_WEIGHT_STRIDE": hidden, "HIDDEN_WEIGHT_STRIDE": hidden},
        }

    return Kernel(
        "decoder_projection"
        if name == "projection_kernel"
        else f"decoder_products{'_backward' * ('backward' in name)}",
        name,
        table,
        (lambda w: w.attention_size + 3 * w.hidden_size) if name == "projection_kernel" else (lambda w: w.hidden_size),
        registers,
        kib * 1024,
        storage=tuple(f"{operand}_ptr" for operand in operands),
        types=MASKS,
        sizes=sizes,
        constants={**absent(*without), **constants, **OPERANDS},
    )


def variant(kernel: Kernel) -> Kernel:
    """Of a kernel that stands in another row: one family is enough."""
    return dataclasses.replace(kernel, archs=ARCHS[1:2])


def products(name: str, registers: int, shared: int, *, more: int = 0) -> Kernel:
    """``linear`` of a step's joined weights, and the vocabulary's tiles; their features and ``more``."""
    is_linear = name == "linear_kernel"

    def sizes(workload: Workload) -> dict[str, Any]:
        features = more + (workload.hidden_size if is_linear else workload.readout_size)
        return {
            "FEATURES": features,
            "INPUT_STRIDE" if is_linear else "READOUT_STRIDE": features,
            "WEIGHT_STRIDE": features,
        }

    return Kernel(
        "product" if is_linear else "vocabulary",
        name,
        configs.LINEAR if is_linear else configs.VOCABULARY,
        (lambda w: w.attention_size + 3 * w.hidden_size) if is_linear else (lambda w: w.vocabulary_size),
        registers,
        shared,
        storage=("input_ptr", "readout_ptr", "weight_ptr", "bias_ptr"),
        types={"banned_ptr": "*i64", "keys_ptr": "*i64"},
        sizes=sizes,
        constants=OPERANDS,
    )


def gru(name: str, registers: int, *, more: int = 0, **flags: bool) -> Kernel:
    operands = ("weight", "bias", "entering", "next", "reset_state", "reset_states", "grad_hidden")
    return Kernel(
        "gru_scan_backward" if "backward" in name else "gru_scan",
        name,
        configs.GRU_SCAN,
        lambda w: w.hidden_size,
        registers,
        32 * 1024,
        storage=tuple(f"{operand}_ptr" for operand in operands),
        types={"lengths_ptr": "*i64"},
        sizes=lambda w: {"H": w.hidden_size + more, "WEIGHT_STRIDE": w.hidden_size + more},
        constants={"REVERSE": True, **flags, **OPERANDS},
    )


def tiles(workload: Workload) -> dict[str, Any]:
    columns = configs.chosen(configs.VOCABULARY, "sm_90", 2, workload.vocabulary_size)["BLOCK_COLUMNS"]
    return {"BLOCK_TILES": triton.next_power_of_2(-(-workload.vocabulary_size // columns))}


# Registers: 128 leave room for four programs of 128 threads on a multiprocessor. Odd sizes, one more than a workload's:
# no load is wider than a number.
KERNELS: tuple[Kernel, ...] = (
    # A step's attention and gates in one; a source that is split; attention alone; a step of decoding with both.
    attend("attend_kernel", configs.ATTEND, 128, 56, "memory", "context", *SPLIT, RESET_AFTER=True),
    attend("attend_kernel", configs.ATTEND, 128, 56, *GATES, RESET_AFTER=True),
    variant(attend("attend_kernel", configs.ATTEND, 128, 32, "memory_gates", *SPLIT, *GATES, RESET_AFTER=True)),
    variant(attend("attend_kernel", configs.ATTEND, 128, 56, *SPLIT, RESET_AFTER=False)),
    attend("merge_kernel", configs.MERGE, 64, 1, RESET_AFTER=True),
    attend("attend_backward_kernel", configs.ATTEND_BACKWARD, 96, 20, "sums", "means", "grad_query_parts"),
    attend("attend_backward_kernel", configs.ATTEND_BACKWARD, 96, 20, "grad_query"),
    attend("merge_backward_kernel", configs.MERGE, 64, 1),
    attend("grad_keys_kernel", configs.GRAD_KEYS, 64, 1),
    decoder("projection_kernel", configs.PROJECTION, 128, 76),
    decoder("context_gates_kernel", configs.DECODER, 128, 16, "reset_state", RESET_AFTER=True),
    variant(decoder("context_gates_kernel", configs.DECODER, 128, 16, "carried", "entering", RESET_AFTER=False)),
    decoder("candidate_kernel", configs.DECODER, 128, 16),
    decoder("state_backward_kernel", configs.DECODER_BACKWARD, 128, 36, RESET_AFTER=True),
    variant(decoder("state_backward_kernel", configs.DECODER_BACKWARD, 128, 36, RESET_AFTER=False)),
    decoder("reset_backward_kernel", configs.DECODER_BACKWARD, 128, 36),
    # The last step, the gradient of the first state, and a call without any optional argument.
    variant(decoder("state_backward_kernel", configs.DECODER_BACKWARD, 128, 0, *FOLLOWING, RESET_AFTER=True)),
    variant(decoder("state_backward_kernel", configs.DECODER_BACKWARD, 128, 36, *STEP, RESET_AFTER=True)),
    variant(attend("attend_kernel", configs.ATTEND, 128, 56, *SPLIT, *OPTIONAL, RESET_AFTER=True)),
    variant(attend("merge_kernel", configs.MERGE, 64, 1, "context_parts", "context", *OPTIONAL, RESET_AFTER=False)),
    # The other forms of the scores' tanh.
    *(
        variant(attend("attend_kernel", configs.ATTEND, 128, 56, *GATES, RESET_AFTER=True, TANH=form))
        for form in (configs.EXACT, configs.APPROXIMATE)
    ),
    products("linear_kernel", 128, 32 * 1024),
    products("vocabulary_tile_kernel", 255, 64 * 1024),
    products("vocabulary_tile_kernel", 255, 64 * 1024, more=1),
    Kernel(
        "vocabulary",
        "vocabulary_merge_kernel",
        None,
        lambda w: w.vocabulary_size,
        64,
        1024,
        types={"keys_ptr": "*i64", "token_ids_ptr": "*i64"},
        sizes=tiles,
    ),
    gru("gru_step_kernel", 128, RESET_AFTER=True),
    gru("gru_step_kernel", 208, RESET_AFTER=True, more=1),
    gru("gru_step_kernel", 128, RESET_AFTER=False),
    gru("gru_candidate_kernel", 128),
    gru("gru_step_backward_kernel", 128, RESET_AFTER=True),
    gru("gru_step_backward_kernel", 128, RESET_AFTER=False),
    gru("gru_reset_backward_kernel", 128),
)


def compile_for(kernel: Kernel, workload: Workload, dtype: str, arch: int, amd: str | None = None) -> Any:
    """As a launch compiles it on ``arch``; with ``amd`` on that GPU instead, in the arithmetic that is chosen there."""
    function = getattr(importlib.import_module(f"rnnsearch_kernels.triton.{kernel.module}"), kernel.name)
    row = kernel.row(workload, dtype, arch)
    if amd is not None and "PRECISION" in row:
        row["PRECISION"] = launch.precision()
    constants = {
        name: getattr(triton.language, dtype) if value == "storage" else value
        for name, value in row.items()
        if name in function.arg_names  # kernels of one room share their sizes
    }
    signature, attrs = {}, {}
    for position, parameter in enumerate(function.params):
        name = parameter.name
        if name in constants:
            signature[name] = "constexpr"
        elif name in kernel.types:
            signature[name] = kernel.types[name]
        elif name.endswith("_ptr"):
            signature[name] = f"*{TRITON_TYPES[dtype] if name in kernel.storage else 'fp32'}"
        else:
            signature[name] = "i32"
        if name.endswith("_ptr") and name not in constants and not parameter.do_not_specialize_on_alignment:
            attrs[(position,)] = [["tt.divisibility", 16]]  # as a launch finds what torch allocates
    source = ASTSource(function, signature, constants, attrs)
    options = {name: row[name] for name in OPTIONS if name in row}
    target = GPUTarget("cuda", arch, 32) if amd is None else GPUTarget("hip", amd, 64)
    return triton.compile(source, target=target, options=options)


def resources(cubin: bytes, folder: Path) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    printed = subprocess.run([tool, "--dump-resource-usage", path], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", printed)}


@pytest.mark.parametrize(
    ("kernel", "workload", "dtype", "arch"),
    [
        pytest.param(kernel, *case, id=f"{kernel.name}-{case[0].name}-{case[1]}-sm_{case[2]}")
        for kernel in KERNELS
        for case in kernel.cases()
    ],
)
def test_a_kernel_compiles_within_its_budgets_and_spills_nothing(kernel, workload, dtype, arch, tmp_path):
    compiled = compile_for(kernel, workload, dtype, arch)
    used = resources(compiled.asm["cubin"], tmp_path)
    assert used["STACK"] == 0 and used["LOCAL"] == 0, f"it spills: {used}"
    assert used["REG"] <= kernel.registers, used
    assert compiled.metadata.shared <= kernel.shared, compiled.metadata.shared


def copied(compiled: Any) -> set[int]:
    """The bytes of every copy from global to shared memory that is on its way while the program goes on."""
    found = re.findall(r"cp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], (\w+)", compiled.asm["ptx"])
    return {int(size, 0) for size in found}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", sorted({kernel.name for kernel in KERNELS if "COMPUTE" in kernel.constants}))
def test_what_is_multiplied_is_copied_ahead_in_pieces_of_16_bytes(name, dtype):
    """At sizes whose rows are multiples of them. Anything narrower than 4 would be read when it is needed."""
    workload = WORKLOADS["small"]
    kernel = next(kernel for kernel in KERNELS if kernel.name == name)
    assert not any(size % 8 for size in kernel.sizes(workload).values())
    compiled = compile_for(kernel, workload, dtype, 90)
    assert copied(compiled) == {16}
    # Of a bias there are a few for each program, and no tile.
    assert len(re.findall(r"ld\.global[.\w]*\.b16\b", compiled.asm["ptx"])) <= 4


@pytest.mark.parametrize("name", sorted({kernel.name for kernel in KERNELS}))
def test_a_kernel_compiles_for_amd_and_spills_nothing(name, monkeypatch):
    monkeypatch.setattr("torch.version.hip", "6.4", raising=False)
    kernel = next(kernel for kernel in KERNELS if kernel.name == name)
    # Products in float32, of which one kind or another is not there on every GPU.
    dtype = "float32" if "COMPUTE" in kernel.constants else kernel.dtypes()[-1]
    code = compile_for(kernel, PAPER, dtype, 90, amd="gfx942").asm["amdgcn"]
    spilt = dict(re.findall(r"\.(\w+_spill_count):\s+(\d+)", code))
    assert set(spilt.values()) == {"0"}, spilt


def sums(compiled: Any) -> set[tuple[str, str]]:
    """(axis, tile and layout) of every reduction: what fixes the order of its sum."""
    code = compiled.asm["ttgir"]
    layouts = dict(re.findall(r"^(#\w+) = (.*)$", code, re.M))
    found = re.findall(r'"tt\.reduce"\([^)]*\) <\{axis = (\d).*?\}\) : \((tensor<.*?>)\) ->', code, re.S)
    return {(axis, re.sub(r"#\w+\b(?=[>,}])", lambda name: layouts[name[0]], tile)) for axis, tile in found}


@pytest.mark.parametrize("workload", ["paper", "small"])
def test_a_row_is_summed_in_one_order_whether_its_source_is_split_or_not(workload):
    """A sentence decodes alike alone, in one program, and in a batch so long that its source is split."""
    whole, split, *others = (
        kernel for kernel in KERNELS if kernel.name == "attend_kernel" and "TANH" not in kernel.constants
    )
    expected = sums(compile_for(whole, WORKLOADS[workload], "bfloat16", 90))
    assert len(expected) == 3  # scores, the softmax's total and largest, weighted sums
    for kernel in (split, *others):
        assert sums(compile_for(kernel, WORKLOADS[workload], "bfloat16", 90)) == expected


def test_every_kernel_has_its_row():
    """A kernel is a jitted function whose name ends in ``_kernel``."""
    folder = Path(configs.__file__).parent
    found = {
        name for path in folder.glob("*.py") for name in re.findall(r"^def (\w+_kernel)\(", path.read_text(), re.M)
    }
    assert found == {kernel.name for kernel in KERNELS}


def test_every_class_of_every_family_is_compiled_by_some_workload():
    """A class that no named workload belongs to would be a guess that nothing looks at."""
    for name, table in vars(configs).items():
        if not isinstance(table, dict) or configs.DEFAULT not in table:
            continue
        kernels = [kernel for kernel in KERNELS if kernel.table is table]
        for family, rows in table.items():
            for itemsize, classes in rows.items():
                met = {
                    id(configs.chosen(table, family, itemsize, kernel.by(workload)))
                    for kernel in kernels
                    for workload, _, arch in kernel.cases()
                    if family in (configs.DEFAULT, f"sm_{arch}")
                }
                assert met == {id(config) for config in classes.values()}, (name, family, itemsize)
