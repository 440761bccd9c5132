"""The search of fixed shape: no step waits for the host, steps can be replayed, and too many change nothing."""

from __future__ import annotations

import math
import random
import sys
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from recorded import HostWaits, Recording, capture_of
from rnnsearch import beam_search
from rnnsearch.candidates import banned_ids, completing_ids
from rnnsearch.fixed_search import FixedSteps, fixed_search
from rnnsearch.hypotheses import BeamSearchOutput
from rnnsearch.replay import IN_FLIGHT, WARM_UP, Captured, LateFlag, Replayed, cuda_capture
from small_model import make_model
from test_beam_search import BOS, EOS, Toy
from torch import Tensor
from torch.utils._pytree import tree_flatten

from rnnsearch_kernels import graphs

module = sys.modules["rnnsearch.beam_search"]


def buffers(steps: FixedSteps) -> list[Tensor]:
    tensors = [value for value in tree_flatten(vars(steps))[0] if isinstance(value, Tensor)]
    return [value for value in tensors if 0 not in value.stride()]  # what is expanded nobody writes to


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch):
    """beam_search whose steps are recorded and replayed; how often a step was called in Python."""

    def search(toy: Toy, **options: Any) -> tuple[BeamSearchOutput, int]:
        made: list[FixedSteps] = []

        class Spied(FixedSteps):
            def __init__(self, *arguments: Any) -> None:
                super().__init__(*arguments)
                made.append(self)

        def graphed(search: Any, state: Any, *, graph: bool) -> BeamSearchOutput:
            return fixed_search(search, state, graph=True, capture=capture_of(lambda: buffers(made[-1])))

        monkeypatch.setattr("rnnsearch.fixed_search.FixedSteps", Spied)
        monkeypatch.setattr(module, "fixed_search", graphed)
        toy.rows.clear()
        found = beam_search(toy.step, toy.state(), toy.memory, bos_id=BOS, eos_id=EOS, engine="fixed", **options)
        return found, len(toy.rows)

    return search


def drawn_options(draw: random.Random) -> dict[str, Any]:
    beam_size = draw.randint(1, 5)
    return {
        "beam_size": beam_size,
        "n_best": draw.randint(1, beam_size),
        "max_length": draw.choice([None, 1, 2, 4, 11]),
        "min_length": draw.randint(0, 1),
        "length_penalty": draw.choice(["none", "average", "wu"]),
        "coverage_penalty": draw.choice([0.0, 0.3]),
        "ban_ids": draw.choice([(), (2,)]),
        "no_repeat_ngram_size": draw.choice([0, 1, 2, 3]),
        "return_attn": draw.random() < 0.8,
    }


def assert_equal(found: BeamSearchOutput, wanted: BeamSearchOutput) -> None:
    for name, got, want in zip(BeamSearchOutput._fields, found, wanted, strict=True):
        assert (got is None) == (want is None), name
        if got is not None:
            assert torch.equal(got, want), name


@pytest.mark.parametrize("seed", range(20))
def test_a_step_recorded_once_and_replayed_finds_the_same(seed: int, replayed) -> None:
    draw = random.Random(seed)
    toy = Toy([draw.randint(1, 6) for _ in range(3)], vocabulary_size=9, seed=seed)
    options = drawn_options(draw)
    wanted = toy.search(**options)
    found, calls = replayed(toy, **options)
    assert_equal(found, wanted)
    assert calls <= WARM_UP + 1


def test_a_step_calls_nothing_that_waits_for_the_host() -> None:
    """Every branch at once, and the model's own ops in plain PyTorch."""
    toy = Toy([4, 2], vocabulary_size=9, seed=1)
    captured: list[FixedSteps] = []

    class Checked(FixedSteps):
        def __call__(self) -> None:
            captured.append(self)
            with Recording() as recording:
                super().__call__()
            assert len(recording.calls) > 20

    options = {"beam_size": 3, "min_length": 2, "coverage_penalty": 0.2, "ban_ids": (2,), "no_repeat_ngram_size": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rnnsearch.fixed_search.FixedSteps", Checked)
        beam_search(toy.step, toy.state(), toy.memory, bos_id=BOS, eos_id=EOS, engine="fixed", **options)
    assert captured


def test_the_recording_refuses_what_waits_for_the_host() -> None:
    values = torch.arange(3)
    for wait in (
        lambda: values.sum().item(),
        lambda: bool(values.any()),
        lambda: values[values > 1],
        lambda: values.nonzero(),
        lambda: values.repeat_interleave(values),
        lambda: torch.tensor([1, 2]),
    ):
        with Recording(), pytest.raises(HostWaits):
            wait()


@pytest.mark.parametrize("attend_after", [False, True])
def test_the_model_decodes_with_operations_of_fixed_shape_alone(
    attend_after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference's own operations are looked at: a GPU without kernels captures those."""
    model = make_model(attend_after=attend_after, backend="reference")
    source = torch.tensor([[4, 5, 6, 2], [7, 2, 0, 0]])
    lengths = torch.tensor([4, 2])
    wanted = model.generate(source, lengths, beam_size=3, n_best=2, engine="shrinking")

    class Checked(FixedSteps):
        def __call__(self) -> None:
            with Recording() as recording:
                super().__call__()
            assert not any(call[0].namespace == "rnnsearch" for call in recording.calls)

    monkeypatch.setattr("rnnsearch.fixed_search.FixedSteps", Checked)
    found = model.generate(source, lengths, beam_size=3, n_best=2, engine="fixed")
    assert torch.equal(found.tokens, wanted.tokens)
    torch.testing.assert_close(found.scores, wanted.scores)


def test_no_buffer_is_replaced_after_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy([4, 2], vocabulary_size=9, seed=1)
    places: list[list[int]] = []

    class Watched(FixedSteps):
        def __call__(self) -> None:
            super().__call__()
            places.append([buffer.data_ptr() for buffer in buffers(self)])

    monkeypatch.setattr("rnnsearch.fixed_search.FixedSteps", Watched)
    options = {"beam_size": 3, "coverage_penalty": 0.2, "no_repeat_ngram_size": 2, "max_length": 7}
    beam_search(toy.step, toy.state(), toy.memory, bos_id=BOS, eos_id=EOS, engine="fixed", **options)
    assert len(places) > 3 and all(place == places[0] for place in places)


@pytest.mark.parametrize("check_every", [1, 3, 8, 50])
@pytest.mark.parametrize("late", [0, 1, 4])
def test_steps_after_the_end_change_nothing(check_every: int, late: int, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy([3, 6, 1], vocabulary_size=12, seed=3)
    options = {"beam_size": 4, "n_best": 3, "length_penalty": "wu", "coverage_penalty": 0.1, "max_length": 40}
    wanted = toy.search(**options, engine="shrinking")

    def flag(device: torch.device):
        said: list[bool] = []

        def check(done: Tensor) -> bool:
            said.append(bool(done.all()))
            return len(said) > late and said[-1 - late]

        return check

    def speculative(search: Any, state: Any, *, graph: bool) -> BeamSearchOutput:
        return fixed_search(search, state, graph=False, check_every=check_every, flag=flag)

    monkeypatch.setattr(module, "fixed_search", speculative)
    assert_equal(toy.search(**options, engine="fixed"), wanted)


def test_work_is_warmed_up_then_captured_once_then_replayed() -> None:
    log: list[str] = []

    def capture(work):
        log.append("capture")
        return Captured(lambda: log.append("replay"), 3)

    step = Replayed(lambda: log.append("call"), capture)
    for _ in range(WARM_UP + 3):
        step()
    assert log == ["call"] * WARM_UP + ["capture", "replay", "replay", "replay"]
    assert step.captured and step.nbytes == 3


def test_work_that_there_is_no_memory_to_capture_is_called_on_as_it_is() -> None:
    log: list[str] = []

    def capture(work):
        raise torch.OutOfMemoryError("CUDA out of memory")

    step = Replayed(lambda: log.append("call"), capture, lambda: log.append("told"))
    for _ in range(WARM_UP + 3):
        step()
    assert log == ["call"] * WARM_UP + ["told"] + ["call"] * 3 and not step.captured


def test_all_that_a_stream_replays_is_captured_on_one_other(monkeypatch: pytest.MonkeyPatch) -> None:
    made, used, current = [], [], SimpleNamespace(device=torch.device("cuda", 1), cuda_stream=7)
    current.wait_stream = lambda stream: None
    graph = SimpleNamespace(capture_begin=lambda **options: None, capture_end=lambda: None, replay=lambda: None)

    def stream(device: torch.device) -> SimpleNamespace:
        made.append(SimpleNamespace(device=device, wait_stream=lambda stream: None))
        return made[-1]

    @contextmanager
    def on(stream: SimpleNamespace):
        used.append(stream)
        yield

    for name, value in (
        ("current_stream", lambda: current),
        ("Stream", stream),
        ("stream", on),
        ("CUDAGraph", lambda: graph),
        ("memory_reserved", lambda device: 0),
    ):
        monkeypatch.setattr(torch.cuda, name, value)
    graphs.capture_stream.cache_clear()
    for current.cuda_stream in (7, 8, 7):
        cuda_capture(lambda: None)
    graphs.capture_stream.cache_clear()
    assert len(made) == 2 and used == [made[0], made[1], made[0]]
    assert all(stream.device == current.device for stream in made)


class Copy:
    """A copy that arrives when it is told to."""

    made: list[Copy]

    def __init__(self, flag: Tensor) -> None:
        self.value, self.here, self.waited = bool(flag), False, False
        Copy.made.append(self)

    def arrived(self) -> bool:
        return self.here

    def wait(self) -> bool:
        self.waited = self.waited or not self.here
        return self.value


def test_the_flag_never_waits_for_the_newest_copy_and_the_host_never_runs_far_ahead() -> None:
    Copy.made = []
    flag, no, yes = LateFlag(Copy), torch.tensor([True, False]), torch.tensor([True, True])
    assert not flag(yes)  # the newest is not even looked at
    assert not flag(yes) and not any(copy.waited for copy in Copy.made)
    Copy.made[0].here = True
    assert flag(no) and not any(copy.waited for copy in Copy.made)  # the first has arrived and said so

    Copy.made = []
    flag = LateFlag(Copy)
    for check in range(IN_FLIGHT + 4):
        assert not flag(no)
        assert [copy.waited for copy in Copy.made] == [True] * max(0, check + 1 - IN_FLIGHT) + [False] * min(
            check + 1, IN_FLIGHT
        )


@pytest.mark.parametrize("ngram_size", [1, 2, 3])
@pytest.mark.parametrize("count", range(7))
def test_the_bans_of_a_buffer_are_those_of_its_tokens(ngram_size: int, count: int) -> None:
    emitted = torch.randint(0, 3, (5, 6))
    found = completing_ids(emitted, ngram_size, torch.tensor([count]))
    wanted = banned_ids(torch.empty(0, dtype=torch.int64), emitted[:, :count], ngram_size, 5)
    for row in range(5):
        kept = set() if wanted is None else set(wanted[row].tolist())
        assert set(found[row].tolist()) - {-1} == kept - {-1}


@pytest.mark.parametrize("engine", ["shrinking", "fixed"])
def test_every_step_runs_with_the_states_own_device_current(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture is one of the current device: with another than the state's it would be empty."""
    toy, inside = Toy([3, 2], vocabulary_size=5, seed=0), []

    @contextmanager
    def device_of(tensor: Tensor):
        inside.append(tensor)
        yield
        inside.pop()

    def step(*arguments: Any) -> Any:
        assert inside[0] is state
        return toy.step(*arguments)

    state = toy.state()
    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    beam_search(step, state, toy.memory, bos_id=BOS, eos_id=EOS, engine=engine)
    assert toy.rows and not inside


def test_a_nan_is_found_whatever_the_engine() -> None:
    toy = Toy([3, 2], vocabulary_size=5, seed=0)
    toy.log_probs[1, :, 4] = math.nan
    for engine in ("shrinking", "fixed"):
        with pytest.raises(ValueError, match="`step` returned a NaN log-probability for sentence 1"):
            toy.search(engine=engine)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("engine", ["shrinking", "fixed", "graph"])
def test_a_gpu_finds_what_the_cpu_finds(engine: str) -> None:
    toy = Toy([3, 6, 1], vocabulary_size=12, seed=3)
    options = {"beam_size": 4, "n_best": 3, "length_penalty": "wu", "coverage_penalty": 0.1, "max_length": 40}
    wanted = toy.search(**options)
    toy.log_probs, toy.attn_weights = toy.log_probs.cuda(), toy.attn_weights.cuda()
    mask = toy.memory.key_padding_mask
    toy.memory = type(toy.memory)(toy.memory.memory.cuda(), None if mask is None else mask.cuda())
    state = toy.state().cuda()
    found = beam_search(toy.step, state, toy.memory, bos_id=BOS, eos_id=EOS, engine=engine, **options)
    assert torch.equal(found.tokens.cpu(), wanted.tokens) and torch.equal(found.lengths.cpu(), wanted.lengths)
    torch.testing.assert_close(found.scores.cpu(), wanted.scores)
