"""The search whose captured step is kept: later searches replay it on other sentences, and find what a search finds."""

from __future__ import annotations

import copy
import gc
import random
import sys
import weakref
from typing import Any

import pytest
import torch
from recorded import capture_of
from rnnsearch import RNNSearch, beam_search, kept_search
from rnnsearch.hypotheses import BeamSearchOutput
from rnnsearch.replay import WARM_UP
from small_model import make_model
from test_fixed_search import buffers
from torch import Tensor

from rnnsearch_kernels import graphs

module = sys.modules["rnnsearch.beam_search"]
EVERYTHING = 1 << 40


class Bench:
    """Searches through kept graphs whose captures are recordings; how often a step was called, and captured."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache = graphs.GraphCache(lambda device: graphs.Limits(self.count, self.nbytes))
        self.count, self.nbytes, self.captures, self.calls, self.enough = 8, EVERYTHING, 0, 0, True
        made: list[kept_search.FixedSteps] = []
        bench = self

        class Spied(kept_search.FixedSteps):
            def __init__(self, *arguments: Any) -> None:
                super().__init__(*arguments)
                made.append(self)

            def __call__(self) -> None:
                bench.calls += 1
                super().__call__()

        def capture(work: Any) -> Any:
            if not bench.enough:
                raise torch.OutOfMemoryError("CUDA out of memory")
            bench.captures += 1
            return capture_of(lambda: buffers(made[-1]), nbytes=1000)(work)

        def kept(search: Any, state: Any, *, graph: bool) -> BeamSearchOutput:
            return kept_search.kept_search(
                search, state, self.key, cache=self.cache, surroundings=lambda device: 0, capture=capture
            )

        monkeypatch.setattr(kept_search, "FixedSteps", Spied)
        monkeypatch.setattr(module, "fixed_search", kept)

    def generate(self, model: RNNSearch, source: Tensor, lengths: Tensor | None, **options: Any) -> BeamSearchOutput:
        self.key = model._graph_key(None)
        return model.generate(source, lengths, engine="fixed", **options)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def sources(draw: random.Random, count: int, longest: int) -> tuple[Tensor, Tensor]:
    lengths = [longest, *(draw.randint(1, longest) for _ in range(count - 1))]
    source = torch.tensor([[draw.randint(4, 9) if j < length else 0 for j in range(longest)] for length in lengths])
    return source, torch.tensor(lengths)


def assert_found(found: BeamSearchOutput, wanted: BeamSearchOutput) -> None:
    for name, got, want in zip(BeamSearchOutput._fields, found, wanted, strict=True):
        assert (got is None) == (want is None), name
        if got is not None:
            torch.testing.assert_close(got, want, msg=lambda text, name=name: f"{name}: {text}")


OPTIONS: list[dict[str, Any]] = [
    {"max_length": 11, "n_best": 2, "length_penalty": "wu", "coverage_penalty": 0.3},
    {"max_length": 9, "min_length": 3, "length_penalty": "average", "no_repeat_ngram_size": 2},
    {"max_length": 11, "coverage_penalty": 0.2, "return_attn": False},
    {"max_length_factor": 1.1},
]


ORDERS = pytest.mark.parametrize("attend_after", [False, True])


@ORDERS
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_searches_of_one_bucket_replay_one_step_and_find_what_one_without_finds(
    options, attend_after: bool, bench: Bench
) -> None:
    draw, model = random.Random(0), make_model(attend_after=attend_after, backend="reference")
    for place, (count, longest) in enumerate([(17, 18), (18, 17), (17, 17)]):
        source, lengths = sources(draw, count, longest)
        given = None if place == 2 else lengths  # a mask that is there or not is the same to a graph
        found = bench.generate(model, source, given, beam_size=3, **options)
        assert_found(found, model.generate(source, given, beam_size=3, engine="shrinking", **options))
    assert bench.captures == 1 and bench.calls == WARM_UP + 1 and len(bench.cache) == 1


@ORDERS
@pytest.mark.parametrize("longest", [5, 7], ids=["prepared", "not_prepared"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_models_graph_is_kept_whatever_it_is_stored_in(dtype, longest: int, attend_after: bool, bench: Bench) -> None:
    model, draw = make_model(dtype=dtype, attend_after=attend_after, backend="reference"), random.Random(8)
    for _ in range(2):
        bench.generate(model, *sources(draw, 3, longest), beam_size=2, max_length=8)
    assert bench.captures == len(bench.cache) == 1


def test_a_graph_reads_the_weights_where_they_are_and_none_that_have_moved(bench: Bench) -> None:
    model, draw = make_model(backend="reference"), random.Random(1)
    source, lengths = sources(draw, 3, 4)
    bench.generate(model, source, lengths, beam_size=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)  # as training does
    assert_found(
        bench.generate(model, source, lengths, beam_size=2),
        model.generate(source, lengths, beam_size=2, engine="shrinking"),
    )
    assert bench.captures == 1
    other = copy.deepcopy(model)
    for each in (other, model.float()):
        assert_found(
            bench.generate(each, source, lengths, beam_size=2),
            each.generate(source, lengths, beam_size=2, engine="shrinking"),
        )
    assert bench.captures == 3


def test_other_options_and_buckets_have_graphs_of_their_own(bench: Bench) -> None:
    model, draw = make_model(backend="reference"), random.Random(2)
    source, lengths = sources(draw, 3, 4)
    calls: list[tuple[Tensor, Tensor, dict[str, Any]]] = [
        (source, lengths, {"beam_size": 2}),
        (source, lengths, {"beam_size": 3}),
        (source, lengths, {"beam_size": 2, "length_penalty": "average"}),
        (source, lengths, {"beam_size": 2, "ban_ids": (5,)}),
        (source[:2], lengths[:2], {"beam_size": 2}),
        (*sources(draw, 3, 5), {"beam_size": 2}),
    ]
    for _ in range(2):
        for tokens, sizes, options in calls:
            found = bench.generate(model, tokens, sizes, **options)
            assert_found(found, model.generate(tokens, sizes, engine="shrinking", **options))
    assert bench.captures == len(bench.cache) == len(calls)


def test_what_is_kept_is_bounded_in_number_and_in_bytes(bench: Bench) -> None:
    model, draw = make_model(backend="reference"), random.Random(3)
    bench.count = 2
    for longest in (3, 4, 5):
        bench.generate(model, *sources(draw, 2, longest), beam_size=2)
    assert len(bench.cache) == 2
    bench.generate(model, *sources(draw, 2, 3), beam_size=2)  # it had gone
    assert bench.captures == 4
    bench.nbytes = 1000  # the capture alone; its buffers are more
    bench.generate(model, *sources(draw, 2, 6), beam_size=2)
    assert bench.captures == 5 and len(bench.cache) == 2


def test_without_memory_for_a_graph_the_search_goes_on_without(bench: Bench) -> None:
    model, draw = make_model(backend="reference"), random.Random(4)
    source, lengths = sources(draw, 3, 4)
    bench.enough = False
    with pytest.warns(RuntimeWarning, match="no more are made in this process"):
        found = bench.generate(model, source, lengths, beam_size=2)
    assert_found(found, model.generate(source, lengths, beam_size=2, engine="shrinking"))
    assert bench.cache.given_up and not len(bench.cache) and not bench.cache.usable(torch.device("cuda"))


def test_a_kept_graph_keeps_no_model_alive(bench: Bench) -> None:
    model = make_model(backend="reference")
    bench.generate(model, *sources(random.Random(5), 3, 4), beam_size=2)
    (entry,) = bench.cache._entries.values()
    entry.graph.step._replay = None  # the recording holds the weights; a CUDA graph holds their addresses
    gone = weakref.ref(model)
    bench.key = None
    del model
    gc.collect()
    assert gone() is None


def test_a_search_that_fails_leaves_nothing(bench: Bench) -> None:
    model = make_model(backend="reference")
    with torch.no_grad():
        model.output.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN log-probability"):
        bench.generate(model, *sources(random.Random(6), 3, 4), beam_size=2)
    assert not len(bench.cache)


def test_a_model_with_a_step_of_its_own_keeps_no_graph() -> None:
    class Warmer(RNNSearch):
        def step(self, *arguments: Any) -> Any:
            return super().step(*arguments)

    model = make_model(backend="reference")
    assert model._graph_key(None) is not None and hash(model._graph_key(None)) == hash(model._graph_key(None))
    assert model._graph_key(model.token_table()) != model._graph_key(None)
    assert Warmer(model.config)._graph_key(None) is None


@pytest.mark.parametrize("off", [True, False])
def test_where_graphs_are_turned_off_the_steps_are_called(off: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNSEARCH_CUDA_GRAPHS", "0" if off else "1")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert {module._engine(engine, cuda) for engine in ("auto", "graph")} == {"fixed" if off else "graph"}
    assert module._engine("auto", cpu) == "shrinking"
    for engine in ("fixed", "shrinking"):
        assert module._engine(engine, cuda) == engine


def test_a_key_wants_a_prepared_memory() -> None:
    state, memory = torch.zeros(1, 2), object()
    with pytest.raises(TypeError, match="`graph_key` needs a PreparedMemory; `memory` is object"):
        beam_search(lambda *_: None, state, memory, bos_id=1, eos_id=2, max_length=3, graph_key="key")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_a_gpu_finds_what_the_cpu_finds_by_a_graph_that_an_earlier_search_has_left(backend: str) -> None:
    model, draw = make_model(backend="reference"), random.Random(7)
    ours = copy.deepcopy(model).cuda()
    ours.backend = ours.decoder.backend = backend
    graphs.KEPT.clear()
    for count, longest in ((17, 18), (18, 17), (17, 17)):
        source, lengths = sources(draw, count, longest)
        wanted = model.generate(source, lengths, beam_size=3, max_length=11, engine="shrinking")
        found = ours.generate(source.cuda(), lengths.cuda(), beam_size=3, max_length=11, engine="graph")
        assert torch.equal(found.tokens.cpu(), wanted.tokens)
        torch.testing.assert_close(found.scores.cpu(), wanted.scores)
    assert len(graphs.KEPT) == 1
