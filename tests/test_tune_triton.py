"""The tuner of launch configurations, without a GPU: what it tries, how it judges, what it prints, what it refuses."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import os
from pathlib import Path

import pytest
import torch

from rnnsearch_kernels import reference
from rnnsearch_kernels.triton import configs

BENCH = Path(__file__).resolve().parent.parent / "bench"
CLASS = 1024  # tiny's, of LINEAR


@pytest.fixture
def tuner(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("tune_triton")


@pytest.fixture
def linear(tuner, monkeypatch):
    """A table with the reference in the kernel's place: (tunable, the configuration in use at every call)."""
    (tunable,) = (each for each in tuner.TUNABLES if each.table == "LINEAR")
    seen = []

    def kernel(*args):
        assert os.environ["RNNSEARCH_CUDA_GRAPHS"] == "0"
        seen.append(configs.chosen(configs.LINEAR, "sm_0", 4, args[1].shape[0]))
        return reference.linear(*args)

    monkeypatch.setattr(tuner, "overload_of", lambda name, backend: kernel)
    return tunable, seen


def judge(tuner, tunable, measure, say=lambda line: None):
    return tuner.best(tunable, "sm_0", 4, CLASS, tuner.named("tiny"), "cpu", measure, say)


def test_every_table_is_tried_once_from_the_row_in_use_on(tuner):
    tables = {name for name, value in vars(configs).items() if isinstance(value, dict) and configs.DEFAULT in value}
    assert tables == {tunable.table for tunable in tuner.TUNABLES}
    for tunable in tuner.TUNABLES:
        for itemsize in (2, 4):
            for largest in tunable.classes(itemsize):
                tried = tuner.candidates(tunable, "sm_0", itemsize, largest)
                assert tried[0] == configs.chosen(tunable.rows, "sm_0", itemsize, largest)
                assert len({tuple(sorted(config.items())) for config in tried}) == len(tried) > 10
                assert all(set(config) == set(tried[0]) for config in tried)


def test_what_an_amd_gpu_has_no_instruction_for_is_not_tried_there(tuner):
    (attend,) = (each for each in tuner.TUNABLES if each.table == "ATTEND")
    for family, forms in (("sm_90", {0, 1, 2}), ("gfx942", {configs.EXACT, configs.SHARED})):
        assert {config["TANH"] for config in tuner.candidates(attend, family, 2, configs.LARGEST)} == forms


def test_a_few_candidates_are_the_row_in_use_and_others_drawn_alike_every_time(tuner):
    for tunable in tuner.TUNABLES:
        everything = tuner.candidates(tunable, "sm_0", 2, configs.LARGEST)
        few = tuner.candidates(tunable, "sm_0", 2, configs.LARGEST, 5)
        assert few == tuner.candidates(tunable, "sm_0", 2, configs.LARGEST, 5) and len(few) == 6
        assert few[0] == everything[0] and all(config in everything for config in few)
        assert tuner.candidates(tunable, "sm_0", 2, configs.LARGEST, 10**6)[0] == everything[0]


def test_a_row_goes_by_what_a_model_is_never_by_its_batch_or_lengths(tuner):
    workload = tuner.WORKLOADS["small"]
    others = [
        dataclasses.replace(workload, **{name: 3}) for name in ("batch", "source_length", "target_length", "beam_size")
    ]
    for tunable in tuner.TUNABLES:
        assert {tunable.by(other) for other in others} == {tunable.by(workload)}


def test_every_class_has_a_named_workload_and_every_workload_one_class(tuner):
    for tunable in tuner.TUNABLES:
        for itemsize in (2, 4):
            members = [tunable.of_class(tuner.named(None), itemsize, largest) for largest in tunable.classes(itemsize)]
            assert all(members) and sorted(w.name for each in members for w in each) == sorted(
                workload.name for workload in tuner.named(None)
            )


def test_the_fastest_wins_and_the_table_is_left_as_it_was(tuner, linear):
    tunable, seen = linear
    before = dict(configs.LINEAR)
    winner = {**tuner.candidates(tunable, "sm_0", 4, CLASS)[0], "BLOCK_K": 128, "num_warps": 8}
    config, ratio = judge(tuner, tunable, lambda call: 1.0 if seen[-1] == winner else 2.0)
    assert config == winner and ratio == pytest.approx(0.5)
    assert configs.LINEAR == before and len(seen) == len(tuner.candidates(tunable, "sm_0", 4, CLASS))


def test_what_gains_no_more_than_noise_changes_nothing(tuner, linear):
    tunable, seen = linear
    in_use = tuner.candidates(tunable, "sm_0", 4, CLASS)[0]
    assert judge(tuner, tunable, lambda call: 1.0 if seen[-1] == in_use else 0.99) == (in_use, 1.0)


def test_what_cannot_run_or_is_wrong_is_said_and_passed_over(tuner, linear, monkeypatch):
    tunable, seen = linear
    in_use = tuner.candidates(tunable, "sm_0", 4, CLASS)[0]
    right, said = tuner.overload_of("linear", "triton"), []

    def kernel(*args):
        output = right(*args)
        if seen[-1]["num_stages"] == 2:
            raise RuntimeError("out of shared memory")
        return output if seen[-1] == in_use else output + 1

    monkeypatch.setattr(tuner, "overload_of", lambda name, backend: kernel)
    assert judge(tuner, tunable, lambda call: 1.0 if seen[-1] == in_use else 0.1, said.append) == (in_use, 1.0)
    assert any("out of shared memory" in line for line in said) and any("a wrong result" in line for line in said)


def test_only_the_class_of_the_workload_is_changed_while_it_is_tried(tuner):
    larger = configs.chosen(configs.LINEAR, "sm_0", 4, CLASS + 1)
    with tuner.using(configs.LINEAR, "sm_0", 4, CLASS, {"BLOCK_K": 1}):
        assert configs.chosen(configs.LINEAR, "sm_0", 4, CLASS) == {"BLOCK_K": 1}
        assert configs.chosen(configs.LINEAR, "sm_0", 4, CLASS + 1) == larger


def test_a_printed_row_can_stand_in_the_table_with_every_class(tuner, linear):
    tunable = linear[0]
    before = dict(configs.LINEAR)
    found = tuner.tuned(tunable, "sm_0", tuner.named("tiny"), "cpu", lambda call: 1.0, lambda line: None)
    assert configs.LINEAR == before
    printed = "\n".join(tuner.row("sm_0", found))
    assert printed.count("of the row before") == printed.count("not measured") == 2  # tiny is of one class of the two
    table = ast.literal_eval("{" + printed.replace("LARGEST", str(configs.LARGEST)) + "}")
    assert table["sm_0"] == configs.LINEAR[configs.DEFAULT]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_measures_nothing(tuner, capsys):
    with pytest.raises(SystemExit):
        tuner.main([])
    assert "on a GPU, and this torch sees none" in capsys.readouterr().err
