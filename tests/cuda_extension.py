"""The CUDA extension built without a GPU: for the host, to run on CPU tensors, and for a GPU, to link and load.

The host build has the binding, the planner and the kernels from the very sources that nvcc compiles. Its ops are those
of a backend named ``cuda_host``.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from filelock import FileLock
from host_builds import ROOT

import rnnsearch_kernels as rk

CUDA = ROOT / "csrc" / "cuda"
KERNELS = [*sorted(CUDA.glob("*.cu")), *sorted((CUDA / "ops").glob("*.cu"))]
PLAIN = [CUDA / "module.cpp", *sorted((CUDA / "planner").glob("*.cpp")), *sorted((ROOT / "csrc/binding").glob("*.cpp"))]
TORCH = Path(torch.__file__).parent
INCLUDES = [TORCH / "include", TORCH / "include/torch/csrc/api/include", sysconfig.get_path("include")]
COMMON = ["-std=c++20", "-DTORCH_TARGET_VERSION=0x020a000000000000", *(f"-I{path}" for path in INCLUDES)]
LIBRARIES = [f"-L{TORCH / 'lib'}", "-ltorch_python", "-ltorch", "-ltorch_cpu", "-lc10"]
NAME = "cuda_host"


def run_all(commands: Sequence[Sequence[str | Path]]) -> None:
    """Two at a time; what a compiler says of its failure is the error."""

    def run(command: Sequence[str | Path]) -> None:
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, commands))


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("_cuda", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_for_host(directory: Path) -> Path:
    """The library; built once for all the processes of a test run that share ``directory``."""
    directory.mkdir(exist_ok=True)
    library = directory / "_cuda.so"
    flags = [*COMMON, "-O1", "-fPIC", "-fvisibility=hidden", "-pthread", "-Wall", "-Wextra", "-Wno-unused-parameter"]
    flags.append('-DRNNSEARCH_CUDA_TARGETS="the host"')
    with FileLock(directory / "lock"):
        if not library.exists():
            objects = [directory / f"{source.parent.name}_{source.name}.o" for source in [*KERNELS, *PLAIN]]
            run_all(
                [
                    ["g++", *flags, "-x", "c++", "-c", source, "-o", out]
                    for source, out in zip([*KERNELS, *PLAIN], objects, strict=True)
                ]
            )
            run_all([["g++", "-shared", "-pthread", *objects, *LIBRARIES, "-o", library]])
    return library


@cache
def host_backend(library: Path) -> tuple[ModuleType, rk.Backend]:
    """Loaded and registered; never ``auto``'s choice."""
    module = load(library)
    module.set_per_step_backend("reference")
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    backend = rk.Backend(NAME, ("cpu",), dtypes, rank=-1, compiled=tuple(module.ops()), guarded=True)
    rk.register_backend(backend)
    return module, backend


def build_for_gpu(nvcc: str, directory: Path, target: str) -> Path:
    """Linked against what a CPU build of torch has; the one function that it lacks comes from a library of ours."""
    lacking = directory / "lacking.cpp"
    lacking.write_text('extern "C" int aoti_torch_get_current_cuda_stream(int, void**) { return 1; }\n')
    definitions = [*COMMON, "-DUSE_CUDA", f'-DRNNSEARCH_CUDA_TARGETS="{target}"']
    gpu = [nvcc, f"-gencode=arch=compute_{target},code=compute_{target}", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
    host = ["g++", "-fPIC", "-fvisibility=hidden"]
    objects, commands = [], []
    for source in [*KERNELS, *PLAIN]:
        objects.append(directory / f"{source.parent.name}_{source.name}.o")
        commands.append([*(gpu if source.suffix == ".cu" else host), *definitions, "-c", source, "-o", objects[-1]])
    run_all([*commands, ["g++", "-fPIC", "-shared", lacking, "-o", directory / "liblacking.so"]])
    runtime = Path(nvcc).resolve().parent.parent / "lib64"
    if not runtime.exists():
        runtime = Path("/usr/local/cuda/lib64")
    paths = [f"-Wl,-rpath,{directory}:{runtime}:{TORCH / 'lib'}", f"-L{directory}", f"-L{runtime}"]
    library = directory / "_cuda.so"
    run_all([["g++", "-shared", *objects, *paths, *LIBRARIES, "-llacking", "-lcudart", "-o", library]])
    return library
