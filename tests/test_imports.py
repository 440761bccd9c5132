"""Imports go down only, and importing does nothing else."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "rnnsearch_kernels"
APPLICATION = ROOT / "python" / "rnnsearch"

# The floors of rnnsearch_kernels, lowest first; a room imports from floors below its own and from its own package.
FLOORS = [
    {"schema", "graphs", "families", "values", "conversion"},
    {"reference", "native", "triton", "cuda"},
    {"checks", "autograd"},
    {"ops"},
    {"backends"},
    {"functional"},
    {"orders", "planning"},
    {"modules"},
    {"__init__"},
    {"selftest"},
    {"__main__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def imports(path: Path, package: str, root: Path) -> list[str]:
    """Absolute names of everything a file imports, wherever in the file: ``package.room.name``."""
    here = [package, *path.relative_to(root).with_suffix("").parts]
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [f"{module}.{alias.name}" for alias in node.names]
    return found


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


@pytest.mark.parametrize("path", files(PACKAGE), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_from_floors_below_it_only(path):
    room = room_of(path)
    assert room in FLOOR, f"give {room} its floor in FLOORS"
    for name in imports(path, "rnnsearch_kernels", PACKAGE):
        parts = name.split(".")
        if parts[0] != "rnnsearch_kernels":
            continue
        imported = parts[1] if len(parts) > 1 and parts[1] in FLOOR else "__init__"
        same_folder = imported == room and path.parent != PACKAGE
        assert same_folder or FLOOR[imported] < FLOOR[room], f"{room} imports {name}"


@pytest.mark.parametrize("path", files(PACKAGE / "reference"), ids=lambda path: path.name)
def test_the_reference_imports_torch_and_itself_alone(path):
    for name in imports(path, "rnnsearch_kernels", PACKAGE):
        top = name.split(".")[0]
        assert (
            top in ("torch", "__future__")
            or top in sys.stdlib_module_names
            or name.startswith("rnnsearch_kernels.reference.")
        ), name


@pytest.mark.parametrize("path", files(PACKAGE), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_ops_know_nothing_of_the_application_and_import_torch_alone(path):
    tops = {name.split(".")[0] for name in imports(path, "rnnsearch_kernels", PACKAGE)}
    assert tops <= {"torch", "triton", "rnnsearch_kernels", "__future__", *sys.stdlib_module_names}


@pytest.mark.parametrize("path", [*files(PACKAGE), *files(APPLICATION)], ids=lambda path: str(path.relative_to(ROOT)))
def test_nobody_imports_bench_or_tests(path):
    package, root = ("rnnsearch_kernels", PACKAGE) if PACKAGE in path.parents else ("rnnsearch", APPLICATION)
    assert not {"bench", "tests", "conftest"} & {name.split(".")[0] for name in imports(path, package, root)}


def test_the_application_has_no_import_cycles_and_uses_the_ops_through_their_front_door():
    below: dict[str, set[str]] = {}
    for path in files(APPLICATION):
        names = imports(path, "rnnsearch", APPLICATION)
        room = ".".join(path.relative_to(APPLICATION).with_suffix("").parts)
        below[room] = {name.split(".")[1] for name in names if name.startswith("rnnsearch.")} & {
            other.stem for other in files(APPLICATION)
        }
        public = {name.removeprefix("rnnsearch_kernels.") for name in names if name.startswith("rnnsearch_kernels.")}
        assert public <= set(__import__("rnnsearch_kernels").__all__), f"{room} imports {public}"

    def visit(room: str, above: tuple[str, ...]) -> None:
        assert room not in above, " imports ".join([*above, room])
        for other in below.get(room, ()):
            visit(other, (*above, room))

    for room in below:
        visit(room, ())


def test_importing_loads_nothing_heavy_and_touches_no_setting():
    """No compiler, no plotting, no download, no thread settings, no printing: torch, and what torch loads."""
    heavy = ["onnx", "matplotlib", "sympy", "torch._dynamo", "torch._inductor", "pytest", "numpy.testing", "requests"]
    code = f"""
import sys, torch
before, threads, dtype = set(sys.modules), torch.get_num_threads(), torch.get_default_dtype()
import rnnsearch_kernels
added = set(sys.modules) - before
print(sorted(name for name in added if any(name == h or name.startswith(h + '.') for h in {heavy})))
print(sorted({{name.split('.')[0] for name in added}} - set(sys.stdlib_module_names)))
assert (threads, dtype) == (torch.get_num_threads(), torch.get_default_dtype())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    heavy_loaded, tops = done.stdout.splitlines()
    assert heavy_loaded == "[]", heavy_loaded
    assert set(ast.literal_eval(tops)) <= {"rnnsearch_kernels", "torch", "triton"}, tops
    assert done.stderr == ""
