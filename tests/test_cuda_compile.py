"""What every CUDA kernel costs: compiled by nvcc without a GPU, held to a budget of registers, no spills, tensor cores.

``BUDGETS`` has a row for each kernel; one without a row fails. Their shared memory is dynamic, which the planner
accounts for (test_planning.py), so none may be static. One target by default; ``RNNSEARCH_CUDA_TARGETS`` names others,
as CI does: "80 86 89 90a 100 120".
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from cuda_extension import build_for_gpu
from host_builds import ROOT

from rnnsearch_kernels.schema import OPS

SOURCES = [*sorted((ROOT / "csrc" / "cuda").glob("*.cu")), ROOT / "bench" / "cuda_rates.cu"]
TARGETS = os.environ.get("RNNSEARCH_CUDA_TARGETS", "90a").split()
STORAGE = ("float", "__nv_bfloat16", "__half")
ATTENTION = [f"attention_{name}" for name in ("scores", "output", "grad_weights", "grad_query", "grad_keys")]
RATES = [f"rates_{name}" for name in ("meeting", "reading", "chasing", "tanh")]
# Of matrices.
WITHOUT_PRODUCTS = [*ATTENTION, *RATES, "gru_entering", "zero_rows", "settle", "step_gates", "cluster_probe"]
# Registers of a thread, by kernel and storage. 256 threads leave 255 each; 16-bit kernels are to stay well below, and
# four blocks of attention's kernels are to fit an SM.
BUDGETS = {
    **{(kernel, storage): 64 for kernel in ATTENTION for storage in STORAGE},
    # Their launch bounds: 384 threads leave 168 each.
    **{(kernel, storage): 168 for kernel in ("decoder_scan", "decoder_scan_backward") for storage in STORAGE},
    ("gru_scan", "float"): 184,
    ("gru_scan", "__nv_bfloat16"): 128,
    ("gru_scan", "__half"): 128,
    ("gru_scan_backward", "float"): 168,
    ("gru_scan_backward", "__nv_bfloat16"): 112,
    ("gru_scan_backward", "__half"): 112,
    **{(kernel, storage): 40 for kernel in ("gru_entering", "zero_rows", "step_gates") for storage in STORAGE},
    ("settle", "none"): 32,
    ("cluster_probe", "none"): 8,
    **{(name, "none"): 64 for name in RATES},
    ("linear", "float"): 112,
    ("linear", "__nv_bfloat16"): 80,
    ("linear", "__half"): 80,
}

nvcc = shutil.which("nvcc")
if nvcc is None:
    pytest.skip("nvcc is not there", allow_module_level=True)
NVCC: str = nvcc


@dataclass(frozen=True)
class Cost:
    entry: str
    kernel: str
    storage: str
    registers: int
    static_shared: int
    spilled: int

    def in_clusters(self) -> bool:
        return "ClusterTeam" in self.entry


def costs(log: str) -> list[Cost]:
    """From what ptxas says of each kernel; in a mangled name every name stands behind its length."""
    found = []
    for entry, said in re.findall(r"Compiling entry function '(\w+)'(.*?Used \d+ registers[^\n]*)", log, re.DOTALL):
        name = re.match(r"_ZN9rnnsearch4cuda\d+([a-z_]+)(?:I\d+(__half|__nv_bfloat16)|I(f)|E|I[LN])", entry)
        assert name is not None, (
            f"a kernel of another form than name, name<storage, ...> or name<number or policy>: {entry}"
        )
        storage = name[2] or ("float" if name[3] else "none")
        numbers = dict.fromkeys(("registers", "bytes smem", "bytes spill stores", "bytes spill loads"), 0)
        for what in numbers:
            if number := re.search(rf"(\d+) {what}", said):
                numbers[what] = int(number[1])
        registers, shared, *spills = numbers.values()
        found.append(Cost(entry, name[1], storage, registers, shared, sum(spills)))
    return found


def test_a_spill_in_the_compilers_words_is_seen() -> None:
    log = """ptxas info    : Compiling entry function '_ZN9rnnsearch4cuda8gru_scanI6__halfLi1EEEvT_' for 'sm_90'
ptxas info    : Function properties for _ZN9rnnsearch4cuda8gru_scanI6__halfLi1EEEvT_
    8 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 16 bytes smem"""
    (cost,) = costs(log)
    assert (cost.kernel, cost.storage, cost.registers) == ("gru_scan", "__half", 64)
    assert (cost.static_shared, cost.spilled) == (16, 12)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", SOURCES, ids=[source.stem for source in SOURCES])
def test_kernels_keep_to_their_budgets_and_multiply_on_tensor_cores(source: Path, target: str, tmp_path: Path) -> None:
    cubin = tmp_path / "kernels.cubin"
    flags = ["-cubin", "-O3", "-std=c++17", f"-arch=sm_{target}", "-Xptxas", "-v,-warn-spills"]
    flags += ["-I", str(ROOT / "csrc" / "cuda")]
    ran = subprocess.run([NVCC, *flags, str(source), "-o", str(cubin)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = costs(ran.stdout + ran.stderr)
    assert found
    for cost in found:
        assert cost.registers <= BUDGETS[cost.kernel, cost.storage], cost
        assert cost.spilled == 0 and cost.static_shared == 0, cost
    if (disassembler := cuobjdump()) is None:
        return
    sass = subprocess.run([disassembler, "-sass", str(cubin)], capture_output=True, text=True, check=True).stdout
    bodies = {body.split(None, 1)[0]: body for body in sass.split("Function : ")[1:]}
    has_clusters = int(target.rstrip("a")) >= 90
    for cost in found:
        multiplies = cost.storage != "float" and cost.kernel not in WITHOUT_PRODUCTS
        empty = cost.in_clusters() and not has_clusters
        assert ("HMMA" in bodies[cost.entry]) == (multiplies and not empty), cost
        assert ("UCGABAR" in bodies[cost.entry]) == (cost.in_clusters() and has_clusters), cost
        assert not empty or cost.registers <= 8, cost


@pytest.mark.skipif("RNNSEARCH_CUDA_TARGETS" not in os.environ, reason="takes a minute: CI asks for it")
def test_the_extension_links_and_loads_without_a_gpu(tmp_path: Path) -> None:
    """Against a CPU build's torch, every symbol looked up; torch's CUDA libraries have one function that it lacks."""
    library = build_for_gpu(NVCC, tmp_path, "90")
    program = (
        "import sys, torch, cuda_extension, rnnsearch_kernels as rk; "
        "module = cuda_extension.load(sys.argv[1]); "
        "print(*module.ops(), module.build_info()['targets'])"
    )
    environment = os.environ | {"LD_BIND_NOW": "1", "PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{ROOT}"}
    ran = subprocess.run([sys.executable, "-c", program, library], capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    *ops, target = ran.stdout.split()
    assert target == "90" and "gru_scan" in ops and set(ops) <= {op.name for op in OPS}


def cuobjdump() -> str | None:
    """The disassembler of the toolkit, or the one that comes with Triton."""
    triton = importlib.util.find_spec("triton")
    bundled = Path(triton.origin).parent / "backends" / "nvidia" / "bin" if triton and triton.origin else None
    return shutil.which("cuobjdump") or (shutil.which("cuobjdump", path=str(bundled)) if bundled else None)
