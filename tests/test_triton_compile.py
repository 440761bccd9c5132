"""What every Triton kernel costs on sm_80, sm_90 and sm_100: compiled without a GPU, held to budgets, no spills.

A row of ``KERNELS`` names a kernel, its constants and its budgets; a new kernel gets its row here.
"""

from __future__ import annotations

import importlib
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from rnnsearch_kernels.triton import configs  # noqa: E402

ARCHS = (80, 90, 100)
TRITON_TYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
OPTIONS = ("num_warps", "num_stages")


@dataclass(frozen=True)
class Kernel:
    """One specialisation: ``module.name`` with the tensors ``storage`` in each storage type, the rest float32.

    types      Triton types of arguments that are neither float32 pointers nor 32-bit integers
    absent     optional tensors that are None
    table      where its block sizes stand
    """

    module: str
    name: str
    constants: dict[str, Any]
    registers: int
    shared: int
    storage: tuple[str, ...] = ()
    types: dict[str, str] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    table: configs.Table = field(default_factory=dict)


MASKS = {"padding_ptr": "*i1", "within_ptr": "*i1", "index_ptr": "*i64"}
OPERANDS = {"COMPUTE": "storage", "PRECISION": "tf32x3"}


def products(name: str, sizes: dict[str, Any], registers: int, shared: int) -> Kernel:
    """``linear`` and the vocabulary's tiles."""
    module, table = ("product", configs.LINEAR) if name == "linear_kernel" else ("vocabulary", configs.VOCABULARY)
    return Kernel(
        module,
        name,
        {**sizes, **OPERANDS},
        registers,
        shared,
        storage=("input_ptr", "readout_ptr", "weight_ptr", "bias_ptr"),
        types={"banned_ptr": "*i64", "keys_ptr": "*i64"},
        table=table,
    )


def gru(name: str, registers: int, *, hidden: int = 1000, **flags: bool) -> Kernel:
    operands = ("weight", "bias", "entering", "next", "reset_state", "reset_states", "grad_hidden")
    return Kernel(
        "gru_scan_backward" if "backward" in name else "gru_scan",
        name,
        {"H": hidden, "WEIGHT_STRIDE": hidden, "REVERSE": True, **flags, **OPERANDS},
        registers,
        32 * 1024,
        storage=tuple(f"{operand}_ptr" for operand in operands),
        types={"lengths_ptr": "*i64"},
        table=configs.GRU_SCAN,
    )


# Registers: 128 leave room for four programs of 128 threads on a multiprocessor.
KERNELS: tuple[Kernel, ...] = (
    Kernel("attention", "score_kernel", configs.SCORE, 96, 512, ("keys_ptr", "score_weight_ptr"), MASKS),
    Kernel("attention", "reduce_kernel", configs.REDUCE, 96, 512, ("values_ptr", "output_ptr"), MASKS),
    Kernel("attention_backward", "grad_weights_kernel", configs.GRAD_WEIGHTS, 96, 512, ("values_ptr",), MASKS),
    Kernel(
        "attention_backward", "grad_query_kernel", configs.GRAD_QUERY, 96, 512, ("keys_ptr", "score_weight_ptr"), MASKS
    ),
    Kernel(
        "attention_backward",
        "grad_keys_kernel",
        configs.GRAD_KEYS,
        96,
        512,
        ("keys_ptr", "score_weight_ptr", "grad_keys_ptr"),
        MASKS,
    ),
    Kernel("decoder", "reset_kernel", configs.GATES, 64, 0, ("input_gates_ptr",), MASKS),
    Kernel("decoder", "gates_kernel", {**configs.GATES, "RESET_AFTER": True}, 64, 0, ("input_gates_ptr",), MASKS),
    Kernel("decoder", "gates_kernel", {**configs.GATES, "RESET_AFTER": False}, 64, 0, ("input_gates_ptr",), MASKS),
    Kernel("decoder_backward", "gates_backward_kernel", {**configs.GATES, "RESET_AFTER": True}, 64, 0, (), MASKS),
    Kernel("decoder_backward", "gates_backward_kernel", {**configs.GATES, "RESET_AFTER": False}, 64, 0, (), MASKS),
    Kernel("decoder_backward", "reset_backward_kernel", configs.GATES, 64, 0, (), MASKS),
    products("linear_kernel", {"FEATURES": 1000, "INPUT_STRIDE": 1000, "WEIGHT_STRIDE": 1000}, 128, 32 * 1024),
    products("vocabulary_tile_kernel", {"FEATURES": 500, "READOUT_STRIDE": 500, "WEIGHT_STRIDE": 500}, 255, 64 * 1024),
    # Odd sizes: no load is wider than a number.
    products("vocabulary_tile_kernel", {"FEATURES": 501, "READOUT_STRIDE": 501, "WEIGHT_STRIDE": 501}, 255, 64 * 1024),
    Kernel(
        "vocabulary",
        "vocabulary_merge_kernel",
        {"BLOCK_TILES": 256},
        64,
        1024,
        types={"keys_ptr": "*i64", "token_ids_ptr": "*i64"},
    ),
    gru("gru_step_kernel", 128, RESET_AFTER=True),
    gru("gru_step_kernel", 208, RESET_AFTER=True, hidden=1001),
    gru("gru_step_kernel", 128, RESET_AFTER=False),
    gru("gru_candidate_kernel", 128),
    gru("gru_step_backward_kernel", 128, RESET_AFTER=True),
    gru("gru_step_backward_kernel", 128, RESET_AFTER=False),
    gru("gru_reset_backward_kernel", 128),
)


def compile_for(kernel: Kernel, dtype: str, arch: int) -> Any:
    function = getattr(importlib.import_module(f"rnnsearch_kernels.triton.{kernel.module}"), kernel.name)
    config = configs.chosen(kernel.table, f"sm_{arch}", getattr(torch, dtype).itemsize) if kernel.table else {}
    row = {**kernel.constants, **config}
    constants = {
        name: getattr(triton.language, dtype) if value == "storage" else value
        for name, value in row.items()
        if name not in OPTIONS
    }
    constants.update(dict.fromkeys(kernel.absent))
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
        if name.endswith("_ptr") and name not in constants:
            attrs[(position,)] = [["tt.divisibility", 16]]  # as a launch finds what torch allocates
    source = ASTSource(function, signature, constants, attrs)
    options = {name: row[name] for name in OPTIONS if name in row}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def resources(cubin: bytes, folder: Path) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    printed = subprocess.run([tool, "--dump-resource-usage", path], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", printed)}


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_a_kernel_compiles_within_its_budgets_and_spills_nothing(kernel, dtype, arch, tmp_path):
    if dtype != "float32" and not kernel.storage and "storage" not in kernel.constants.values():
        pytest.skip("it has no storage tensors")
    compiled = compile_for(kernel, dtype, arch)
    used = resources(compiled.asm["cubin"], tmp_path)
    assert used["STACK"] == 0 and used["LOCAL"] == 0, f"it spills: {used}"
    assert used["REG"] <= kernel.registers, used
    assert compiled.metadata.shared <= kernel.shared, compiled.metadata.shared


def test_every_kernel_has_its_row():
    """A kernel is a jitted function whose name ends in ``_kernel``."""
    folder = Path(configs.__file__).parent
    found = {
        name for path in folder.glob("*.py") for name in re.findall(r"^def (\w+_kernel)\(", path.read_text(), re.M)
    }
    assert found == {kernel.name for kernel in KERNELS}
