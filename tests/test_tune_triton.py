"""The tuner of launch configurations, without a GPU: what it tries, how it judges, what it prints, what it refuses."""

from __future__ import annotations

import ast
import importlib
import os
from pathlib import Path

import pytest
import torch

from rnnsearch_kernels import reference
from rnnsearch_kernels.triton import configs

BENCH = Path(__file__).resolve().parent.parent / "bench"


@pytest.fixture
def tuner(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("tune_triton")


@pytest.fixture
def linear(tuner, monkeypatch):
    """The first table with the reference in the kernel's place: (tunable, the configuration in use at every call)."""
    tunable, seen = tuner.TUNABLES[0], []

    def kernel(*args):
        assert os.environ["RNNSEARCH_CUDA_GRAPHS"] == "0"
        seen.append(configs.chosen(configs.LINEAR, "sm_0", 4))
        return reference.linear(*args)

    monkeypatch.setattr(tuner, "overload_of", lambda name, backend: kernel)
    return tunable, seen


def judge(tuner, tunable, measure, say=lambda line: None):
    workloads = tuner.named("tiny")
    return tuner.best(tunable, "sm_0", 4, workloads, "cpu", measure, say)


def test_every_table_is_tried_once_from_the_row_in_use_on(tuner):
    tables = {name for name, value in vars(configs).items() if isinstance(value, dict) and configs.DEFAULT in value}
    assert tables == {tunable.table for tunable in tuner.TUNABLES}
    for tunable in tuner.TUNABLES:
        for itemsize in (2, 4):
            tried = tuner.candidates(tunable, "sm_0", itemsize)
            assert tried[0] == configs.chosen(getattr(configs, tunable.table), "sm_0", itemsize)
            assert len({tuple(sorted(config.items())) for config in tried}) == len(tried) > 50
            assert all(set(config) == set(tried[0]) for config in tried)


def test_the_fastest_wins_and_the_table_is_left_as_it_was(tuner, linear):
    tunable, seen = linear
    before = dict(configs.LINEAR)
    winner = {**tuner.candidates(tunable, "sm_0", 4)[0], "BLOCK_K": 128, "num_warps": 8}
    config, ratio = judge(tuner, tunable, lambda call: 1.0 if seen[-1] == winner else 2.0)
    assert config == winner and ratio == pytest.approx(0.5)
    assert configs.LINEAR == before and len(seen) == len(tuner.candidates(tunable, "sm_0", 4))


def test_what_gains_no_more_than_noise_changes_nothing(tuner, linear):
    tunable, seen = linear
    in_use = tuner.candidates(tunable, "sm_0", 4)[0]
    assert judge(tuner, tunable, lambda call: 1.0 if seen[-1] == in_use else 0.99) == (in_use, 1.0)


def test_what_cannot_run_or_is_wrong_is_said_and_passed_over(tuner, linear, monkeypatch):
    tunable, seen = linear
    in_use = tuner.candidates(tunable, "sm_0", 4)[0]
    right, said = tuner.overload_of("linear", "triton"), []

    def kernel(*args):
        output = right(*args)
        if seen[-1]["num_stages"] == 2:
            raise RuntimeError("out of shared memory")
        return output if seen[-1] == in_use else output + 1

    monkeypatch.setattr(tuner, "overload_of", lambda name, backend: kernel)
    assert judge(tuner, tunable, lambda call: 1.0 if seen[-1] == in_use else 0.1, said.append) == (in_use, 1.0)
    assert any("out of shared memory" in line for line in said) and any("a wrong result" in line for line in said)


def test_a_printed_row_can_stand_in_the_table(tuner):
    found = {itemsize: (tuner.candidates(tuner.TUNABLES[0], "sm_0", itemsize)[1], 0.9) for itemsize in (2, 4)}
    table = ast.literal_eval("{" + "\n".join(tuner.row("sm_0", found)) + "}")
    assert table == {"sm_0": {itemsize: config for itemsize, (config, _) in found.items()}}
    assert configs.chosen({**configs.LINEAR, **table}, "sm_0", 2) == found[2][0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_measures_nothing(tuner, capsys):
    with pytest.raises(SystemExit):
        tuner.main([])
    assert "on a GPU, and this torch sees none" in capsys.readouterr().err
