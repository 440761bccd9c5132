"""Training keeps freed memory: an update finds the last one's, and the system need not clear it again."""

from __future__ import annotations

import subprocess
import sys

import pytest

ONE_UPDATE_AFTER_ANOTHER = """
import resource

import torch

from rnnsearch.freed_memory import keep_freed_memory

if not keep_freed_memory():
    print("not here")
else:
    found = []
    for _ in range(24):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    print(*found)
"""


def test_memory_that_comes_back_is_not_cleared_by_the_system_again() -> None:
    run = subprocess.run([sys.executable, "-c", ONE_UPDATE_AFTER_ANOTHER], capture_output=True, text=True, check=True)
    if run.stdout.strip() == "not here":
        pytest.skip("this process does not run on glibc's malloc")
    faults = [int(count) for count in run.stdout.split()]
    assert sum(faults[-8:]) < faults[0], (
        run.stdout
    )  # an aligned block may take some rounds to fit into a place of its own
