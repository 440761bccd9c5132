"""Builds the C++ extension; everything else about the package is in pyproject.toml.

    RNNSEARCH_NATIVE   unset: build it, and install without it where that fails; 1: a failure is an error; 0: don't
    RNNSEARCH_CUDA     unset: build CUDA kernels where torch has CUDA and a matching nvcc is there; 1: an error where
                       they can't be built; 0: don't
    TORCH_CUDA_ARCH_LIST  the compute capabilities to build CUDA kernels for, as torch reads it; unset: those of the
                       GPUs that are here, or, where there is none, all that the kernels are tested to compile for
    RNNSEARCH_TORCH    the site-packages of the torch to build against, where it isn't found by itself
    MAX_JOBS           how many files are compiled at once

The extension uses torch's stable ABI: built once, it runs on every torch from 2.10 on.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
import sys
import sysconfig

from setuptools import find_packages, setup

OLDEST_TORCH = (2, 10)
REQUIREMENT = "torch>={}.{}".format(*OLDEST_TORCH)
# Contracting a * b + c into one rounding is wanted. -ffast-math is not: it loses NaN.
FLAGS = [
    "-O3",
    "-ffp-contract=fast",
    "-fvisibility=hidden",
    "-g0",
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",
    "-Wno-psabi",
]
# GCC's own AVX-512 headers start from an undefined register, and its vector types carry attributes.
FLAGS += ["-Wno-uninitialized", "-Wno-maybe-uninitialized", "-Wno-ignored-attributes"]
CUDA_EXTENSION = "rnnsearch_kernels._cuda"
# Of the CUDA backend, but plain C++: asked where no GPU is, so it goes into the CPU extension.
PLANNER = "csrc/cuda/planner/*.cpp"
# Ampere to Blackwell; later ones compile from the last one's PTX.
ALL_TARGETS = "8.0 8.6 8.9 9.0 10.0 12.0+PTX"
BINDING = "csrc/binding/*.cpp"  # of both extensions
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x{:02x}{:02x}000000000000".format(*OLDEST_TORCH)


def wanted(variable: str) -> bool | None:
    """True, False, or None where the user left it open."""
    value = os.environ.get(variable, "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"{variable} must be 0 or 1; got {value!r}")
    return None if value == "" else value == "1"


def say(message: str) -> None:
    print(f"rnnsearch-kernels: {message}", file=sys.stderr, flush=True)


def site_packages() -> list[str]:
    """Where the installed torch may be: pip's isolated build does not see it by itself."""
    paths = [os.environ.get("RNNSEARCH_TORCH", ""), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if prefix := os.environ.get(variable):
            paths.append(os.path.join(prefix, "lib", version, "site-packages"))
    return [path for path in paths if path and os.path.isdir(path)]


def torch_version() -> tuple[int, int] | None:
    """The version of the torch that can be imported; its folder is appended, so that nothing else is shadowed."""
    sys.path.extend(path for path in site_packages() if path not in sys.path)
    try:
        import torch
    except ImportError:
        return None
    found = re.match(r"(\d+)\.(\d+)", torch.__version__)
    return (int(found[1]), int(found[2])) if found else None


def cpu_extension() -> object:
    from torch.utils.cpp_extension import CppExtension

    flags = [*FLAGS, TORCH_TARGET]
    return CppExtension(
        "rnnsearch_kernels._cpu",
        sorted([*glob.glob("csrc/cpu/**/*.cpp", recursive=True), *glob.glob(PLANNER), *glob.glob(BINDING)]),
        depends=sorted(
            path
            for folder in ("cpu", "binding", "cuda/planner")
            for path in glob.glob(f"csrc/{folder}/**/*.h", recursive=True)
        ),
        extra_compile_args={"cxx": [*flags, f'-DRNNSEARCH_FLAGS="{" ".join(FLAGS)}"']},
    )


def cuda_extension() -> object | None:
    """The CUDA kernels, or None with the reason said."""
    choice = wanted("RNNSEARCH_CUDA")
    reason = None if choice is False else why_no_cuda()
    if choice is False or reason is not None:
        if choice is True:
            raise SystemExit(f"RNNSEARCH_CUDA=1, but {reason}")
        if reason is not None:
            say(f"without CUDA kernels: {reason}")
        return None
    from torch.utils.cpp_extension import CUDAExtension

    targets = os.environ["TORCH_CUDA_ARCH_LIST"] = cuda_targets()
    kernels = ["csrc/cuda/*.cu", "csrc/cuda/ops/*.cu", "csrc/cuda/module.cpp", PLANNER, BINDING]
    common = ["-O3", "-DUSE_CUDA", TORCH_TARGET]
    cxx = [*common, "-fvisibility=hidden", f'-DRNNSEARCH_CUDA_TARGETS="{targets}"']
    return CUDAExtension(
        CUDA_EXTENSION,
        sorted(source for pattern in kernels for source in glob.glob(pattern)),
        depends=sorted([*glob.glob("csrc/cuda/**/*.h", recursive=True), "csrc/binding/signature.h"]),
        extra_compile_args={"cxx": cxx, "nvcc": [*common, "-Xcompiler", "-fvisibility=hidden"]},
    )


def cuda_targets() -> str:
    """Compute capabilities, from the user or from the GPUs that are here."""
    import torch

    if given := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return given
    here = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    return " ".join(f"{major}.{minor}" for major, minor in sorted(here)) or ALL_TARGETS


def why_no_cuda() -> str | None:
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    nvcc = shutil.which("nvcc", path=os.path.join(CUDA_HOME, "bin") if CUDA_HOME else None)
    if nvcc is None:
        return "nvcc is not there"
    release = re.search(r"release (\d+)\.", subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout)
    if release is None or release[1] != torch.version.cuda.split(".")[0]:
        return f"nvcc is CUDA {release[1] if release else 'of an unknown version'}, torch's is {torch.version.cuda}"
    return None


def native_arguments() -> dict[str, object]:
    """What setup() needs to build the extensions; nothing where they are not wanted."""
    choice = wanted("RNNSEARCH_NATIVE")
    if choice is False:
        say("RNNSEARCH_NATIVE=0: installing without the C++ extension")
        return {}
    version = torch_version()
    if version is None or version < OLDEST_TORCH:
        say(f"no {REQUIREMENT} found beside this build: asking for one")
        return {"setup_requires": [REQUIREMENT]}
    from torch.utils.cpp_extension import BuildExtension

    class BuildOrGoOn(BuildExtension):  # type: ignore[misc]
        """Goes on without the extension where it can't be built, unless RNNSEARCH_NATIVE=1."""

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:
                if choice is True:
                    raise
                say(f"installing without the C++ extension, which could not be built: {error}")
                self.extensions = []

        def build_extension(self, extension: object) -> None:
            """Goes on without the CUDA kernels where they can't be built, unless RNNSEARCH_CUDA=1."""
            try:
                super().build_extension(extension)
            except Exception as error:
                if extension.name != CUDA_EXTENSION or wanted("RNNSEARCH_CUDA") is True:
                    raise
                say(f"installing without the CUDA kernels, which could not be built: {error}")
                self.extensions = [other for other in self.extensions if other is not extension]

        def copy_file(self, source: str, target: str, *args: object, **options: object) -> object:
            """Replaces the file instead of writing into it, which would crash whoever has it loaded."""
            if os.path.isfile(target):
                os.unlink(target)
            return super().copy_file(source, target, *args, **options)

    extensions = [extension for extension in (cpu_extension(), cuda_extension()) if extension is not None]
    return {"ext_modules": extensions, "cmdclass": {"build_ext": BuildOrGoOn}}


setup(
    packages=[*find_packages(".", include=["rnnsearch_kernels*"]), *find_packages("python", include=["rnnsearch*"])],
    **native_arguments(),
)
