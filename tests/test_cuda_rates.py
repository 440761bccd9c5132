"""The microbenchmarks' kernels without a GPU: built for the host, and what is made of their numbers."""

from __future__ import annotations

import importlib
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
from host_builds import COMPILER, ROOT

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs g++")


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("cuda_rates")


def test_kernels_find_what_they_should_and_every_rate_is_printed(rates: ModuleType, tmp_path: Path) -> None:
    program = tmp_path / "cuda_rates"
    host = ["g++", "-std=c++20", "-O1", "-Wall", "-Wextra", "-pthread", "-x", "c++"]
    subprocess.run(rates.command(host, program), check=True)
    run = subprocess.run([program, "3", "64", "2"], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    found = rates.measured(run.stdout)
    assert found["clusters_of_8"] == 1 and found["clusters_of_16"] == 0
    meetings = {f"{name}{value}" for name in ("grid_meeting", "cluster_meeting_of_8") for value in ("", "_with_value")}
    tanh = {"tanh_exact", "tanh_shared_reciprocal", "tanh_approx"}
    loads = {"read_outside", "read_shared", "load_outside", "load_shared"}
    assert found.keys() == meetings | tanh | loads | {"clusters_of_8", "clusters_of_16"}


def test_constants_are_in_the_planners_unit(rates: ModuleType) -> None:
    found = {"read_outside": 50000.0, "read_shared": 150000.0, "load_outside": 400.0, "load_shared": 20.0}
    found |= {"grid_meeting_with_value": 1.5, "cluster_meeting_of_8_with_value": 0.2}
    found |= {"cluster_meeting_of_16_with_value": 0.4, "cluster_meeting_of_16": 0.3}
    said = dict(line.split(None, 1)[1].rsplit(None, 1) for line in list(rates.constants(found))[:4])
    assert {name.strip(): int(value) for name, value in said.items()} == {
        "kMeeting": 75000, "kClusterMeeting": 20000, "kPart": 20000, "kClusterPart": 1000
    }  # fmt: skip
    assert "3.00 times" in list(rates.constants(found))[-1]
    # 80 rows, 50 positions, 1000 columns: 4 M tanh over 100 SMs at 4000 a microsecond each.
    (paper,) = (line for line in rates.tanh_of_a_step({"tanh_exact": 4000.0}, 100) if line.startswith("paper"))
    assert "4.00 M" in paper and "exact 10.00" in paper
