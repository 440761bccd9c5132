"""Which loops are captured, kept and let go; the capture itself needs a GPU and is a stand-in here."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from rnnsearch_kernels import triton
from rnnsearch_kernels.ops import overload_of
from rnnsearch_kernels.triton import graphs as house


class Recorder:
    """A capture that notes what is captured and replayed; ``stream`` is the current one."""

    def __init__(self, limit: int = 2) -> None:
        self.events: list[tuple[str, int]] = []
        self.on, self.stream = True, 0
        self.graphs = house.Graphs(limit, self.capture, lambda device: self.on, lambda device: self.stream)

    def capture(self, function, args):
        self.events.append(("capture", args[0].shape[0]))

        def replay(args):
            self.events.append(("replay", args[0].shape[0]))
            return function(*args)

        return replay

    def loop(self, values, factor):
        return (values * 2 if factor is None else values * factor,)

    def __call__(self, size, factor=None, name="loop"):
        values = torch.randn(size)
        (result,) = self.graphs.run(name, self.loop, (values, factor))
        assert torch.equal(result, values * (2 if factor is None else factor))

    def kinds(self):
        return [kind for kind, _ in self.events]


def test_a_loop_is_captured_when_its_shapes_come_back_and_replayed_from_then_on():
    recorder = Recorder()
    recorder(3)
    assert recorder.events == []
    recorder(3)
    recorder(3)
    assert recorder.kinds() == ["capture", "replay", "replay"]


def test_other_shapes_flags_loops_and_streams_have_graphs_of_their_own():
    recorder = Recorder(limit=10)
    for call in [(3,), (4,), (3, 5), (3, None, "another")]:
        recorder(*call)
        recorder(*call)
    recorder.stream = 1
    recorder(3)
    recorder(3)
    assert recorder.kinds().count("capture") == 5 and len(recorder.graphs.kept) == 5


def test_no_more_are_kept_than_the_limit_and_the_one_used_longest_ago_goes():
    recorder = Recorder(limit=2)
    for size in (3, 3, 4, 4, 3, 5, 5):
        recorder(size)
    assert len(recorder.graphs.kept) == 2
    recorder.events.clear()
    recorder(3)
    recorder(4)
    assert recorder.events == [("replay", 3), ("capture", 4), ("replay", 4)]


def test_shapes_that_never_come_back_are_forgotten():
    recorder = Recorder()
    for size in range(1, 2 * house.REMEMBERED):
        recorder(size)
    assert recorder.events == [] and len(recorder.graphs.seen) == house.REMEMBERED


def test_a_replay_after_inference_mode_may_write_its_buffers():
    recorder = Recorder()
    modes = []
    recorder.loop = lambda values, factor: (modes.append(torch.is_inference_mode_enabled()), (values * 2,))[1]
    with torch.inference_mode():
        recorder(3)
    assert modes == [False]


def test_it_can_be_turned_off(monkeypatch):
    recorder = Recorder()
    recorder.on = False
    for _ in range(3):
        recorder(3)
    assert recorder.events == []
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.delenv("RNNSEARCH_CUDA_GRAPHS", raising=False)
    assert house.usable(cuda) and not house.usable(torch.device("cpu"))
    monkeypatch.setenv("RNNSEARCH_CUDA_GRAPHS", "0")
    assert not house.usable(cuda)


@pytest.mark.parametrize("chosen", ["tf32", "ieee"])
def test_a_graph_belongs_to_the_arithmetic_that_torch_is_told_by_its_newer_setting(monkeypatch, chosen):
    launch = pytest.importorskip("rnnsearch_kernels.triton.launch")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=5))
    # Once the newer setting is used, asking for the older one (allow_tf32) raises.
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(fp32_precision=chosen))
    assert launch.precision() == {"tf32": "tf32", "ieee": "tf32x3"}[chosen]
    assert house.surroundings(torch.device("cuda")) == (5, chosen)


def test_a_capture_follows_a_plain_run_on_the_same_copies_and_has_a_stream_for_each_that_replays(monkeypatch):
    events = []
    current = SimpleNamespace(device=torch.device("cuda", 1), cuda_stream=7)

    @contextmanager
    def graph(graph, stream, capture_error_mode):
        events.append(stream)
        yield
        events.append("end")

    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: (device, current.cuda_stream))
    house.capture_stream.cache_clear()

    def loop(values):
        events.append(values.data_ptr())
        return (values,)

    for current.cuda_stream in (7, 8, 7):
        house.capture(loop, (torch.ones(2),))
    house.capture_stream.cache_clear()
    for first, stream, second, end in zip(*[iter(events)] * 4, strict=True):
        assert first == second and stream[0] == current.device and end == "end"
    assert [stream for _, stream in events[1::4]] == [7, 8, 7]


def test_torch_compile_leaves_the_loops_out_of_its_own_graphs():
    for op in triton.MODULES:
        assert (torch.Tag.cudagraph_unsafe in overload_of(op, "triton").tags) == (op in triton.LOOPS), op


@pytest.mark.parametrize("capturing", [True, False])
def test_inside_somebody_elses_capture_the_launches_are_plain(monkeypatch, capturing):
    monkeypatch.delenv("RNNSEARCH_CUDA_GRAPHS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    assert house.usable(torch.device("cuda")) != capturing
