"""Which loops are captured, kept and let go, and that padding to a bucket changes no number; the capture itself needs a
GPU and is a stand-in here."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import tolerances
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rnnsearch_kernels import graphs, reference, triton
from rnnsearch_kernels.graphs import GraphCache, Limits, bucket
from rnnsearch_kernels.ops import overload_of
from rnnsearch_kernels.schema import BY_NAME, Arg
from rnnsearch_kernels.selftest import INFERENCE_ONLY, SIZES, example, variants
from rnnsearch_kernels.triton import graphs as house

GRU = BY_NAME["gru_scan"]
EVERYTHING = 1 << 40


class Recorder:
    """Loops whose captures are noted and replayed by calling the loop again; ``stream`` is the current one."""

    def __init__(self, count: int = 10, nbytes: int = EVERYTHING, each: int = 0) -> None:
        self.events: list[str] = []
        self.on, self.capturing, self.stream, self.each, self.memory_left = True, False, 0, each, 10**6
        self.kept = GraphCache(lambda device: Limits(count, nbytes))
        self.kept.turned_on = lambda device: self.on and not self.kept.given_up
        self.kept.capturing = lambda: self.capturing
        self.loops = house.Loops(self.kept, self.capture, lambda device: self.stream)

    def capture(self, function, own):
        if not self.memory_left:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.memory_left -= 1
        self.events.append("capture")
        found = tuple(torch.full_like(value, torch.nan) for value in function(*own))

        def replay():
            self.events.append("replay")
            for mine, value in zip(found, function(*own), strict=True):
                mine.copy_(value)

        return replay, found, self.each

    def run(self, name, args, function=None):
        self.events.append("call")
        return self.loops.run(name, function or getattr(reference, name), list(args.values()))

    def __call__(self, steps, rows=4, **options):
        """``gru_scan`` without lengths, held against itself."""
        absent = {"lengths", "state_mask"}
        args = example(GRU, torch.float64, sizes={**SIZES, "B": rows, "T": steps, "H": 2}, absent=absent, **options)
        for mine, theirs in zip(self.run("gru_scan", args), reference.gru_scan(*args.values()), strict=True):
            torch.testing.assert_close(mine, theirs, **tolerances.EXACT)

    def kinds(self):
        """What followed each call."""
        return [part.split() for part in " ".join(self.events).split("call")[1:]]


def test_a_bucket_is_less_than_an_eighth_larger_and_there_are_eight_in_a_doubling():
    sizes = range(3000)
    assert all(size <= bucket(size) <= size + size / 8 for size in sizes)
    assert [bucket(size) for size in range(17)] == list(range(17))
    assert [bucket(size) for size in (17, 50, 64, 65, 80, 1500)] == [18, 52, 64, 72, 80, 1536]
    assert all(bucket(bucket(size)) == bucket(size) for size in sizes)
    assert len({bucket(size) for size in range(65, 129)}) == 8


def test_a_loop_is_captured_when_its_bucket_comes_back_and_replayed_from_then_on():
    recorder = Recorder()
    for steps in (50, 49, 51):
        recorder(steps)
    assert recorder.kinds() == [[], ["capture", "replay"], ["replay"]]
    for _ in range(2):  # the end of that bucket needs no lengths, and goes without
        recorder(52)
    assert recorder.kinds()[3:] == [[], ["capture", "replay"]]


def test_a_single_step_is_launched_plainly_since_copies_into_a_graph_are_as_many_launches():
    recorder = Recorder()
    for _ in range(3):
        recorder(1)
    assert recorder.kinds() == [[], [], []] and not recorder.kept


def test_other_buckets_flags_loops_and_streams_have_graphs_of_their_own():
    recorder = Recorder()
    for options in ({"steps": 3}, {"steps": 4}, {"steps": 3, "rows": 5}, {"steps": 3, "flags": {"reverse": True}}):
        recorder(**options)
        recorder(**options)
    recorder.stream = 1
    recorder(3)
    recorder(3)
    assert recorder.events.count("capture") == len(recorder.kept) == 5


@pytest.mark.parametrize("op", triton.LOOPS)
def test_padding_to_a_bucket_changes_no_number_whatever_was_there_before(op):
    """Values and gradients, every optional argument there and none, sizes of one bucket in turn; a NaN in one call is
    gone in the next."""
    function = getattr(reference, op)
    for absent, flags in variants(BY_NAME[op], differentiable=True):
        recorder = Recorder()
        for seed, (B, T, S) in enumerate([(17, 33, 34), (17, 35, 35), (17, 34, 33), (17, 33, 34)]):
            sizes = {**SIZES, "B": B, "T": T, "S": S, "H": 2, "A": 3, "M": 2}
            args = example(
                BY_NAME[op], torch.float64, seed=seed % 3, sizes=sizes, absent=absent | set(INFERENCE_ONLY), flags=flags
            )
            if seed == 1:
                last = next(name for name in args if name in ("grad_states", "input_gates"))
                args[last] = args[last].clone()
                args[last][-1, -1] = torch.nan
            found = recorder.run(op, args)
            for mine, theirs in zip(found, function(*args.values()), strict=True):
                assert mine.is_contiguous()
                torch.testing.assert_close(mine, theirs, **tolerances.EXACT, equal_nan=True)
            if seed == 0:
                first = found
        assert recorder.kinds() == [[], ["capture", "replay"], ["replay"], ["replay"]]
        assert all(map(torch.equal, found, first))  # plainly or replayed: the same bits


def test_results_are_the_callers_own():
    recorder = Recorder()
    args = example(GRU, sizes={**SIZES, "T": 17})
    first = recorder.run("gru_scan", args)
    for _ in range(2):
        again = recorder.run("gru_scan", args)
        pointers = [value.untyped_storage().data_ptr() for value in (*again, *first, *args.values()) if
                    isinstance(value, torch.Tensor)]  # fmt: skip
        assert len(set(pointers)) == len(pointers) and all(map(torch.equal, first, again))
        first = again


class Copies(TorchDispatchMode):
    """Counts the calls that copy."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += any(name in func.overloadpacket.__name__ for name in ("copy", "clone"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("op", triton.LOOPS)
def test_a_replay_copies_what_has_one_dtype_in_one_call(op, mode):
    """Arguments in, results out: whatever the loop, a few calls of the host."""
    recorder = Recorder()
    with mode():
        args = example(BY_NAME[op], torch.bfloat16, sizes={**SIZES, "B": 17}, absent=INFERENCE_ONLY)
        for _ in range(2):
            recorder.run(op, args)
        copies, loop = Copies(), getattr(reference, op)
        recorder.capture = None
        (entry,) = recorder.kept._entries.values()
        entry.graph.replay = lambda: None
        with copies:
            recorder.run(op, args)
    tensors = [value for value in args.values() if isinstance(value, torch.Tensor)]
    dtypes = [len({value.dtype for value in each}) for each in (tensors, loop(*args.values()))]
    assert copies.count == sum(dtypes) < len(tensors)


@pytest.mark.parametrize("steps", [5, 17])
def test_plainly_or_replayed_a_loop_sees_the_same_layout(steps):
    recorder, seen = Recorder(), []

    def loop(*args):
        seen.append([value.stride() for value in args if isinstance(value, torch.Tensor)])
        return reference.gru_scan(*args)

    args = example(GRU, sizes={**SIZES, "T": steps})
    args["hidden_weight"] = args["hidden_weight"].t().contiguous().t()
    for _ in range(3):
        recorder.run("gru_scan", args, loop)
    assert len(seen) == 4 and all(strides == seen[0] for strides in seen)  # a capture's own runs among them


def test_only_sizes_of_a_batch_are_padded_and_every_loop_names_them_as_the_list_does():
    for name in triton.LOOPS:
        op = BY_NAME[name]
        letters = {letter for arg in op.args if isinstance(arg, Arg) for letter in arg.shape}
        assert {"B", "T"} <= letters and (letters & set(house.PADDED) <= set("BTS"))
        assert any(arg.name.endswith("lengths") for arg in op.tensors)  # what makes a padded step a no-op
        assert "S" not in letters or any(arg.name == "key_padding_mask" for arg in op.tensors)


def test_no_more_are_kept_than_the_limit_and_the_one_used_longest_ago_goes():
    recorder = Recorder(count=2)
    for steps in (3, 3, 4, 4, 3, 5, 5):
        recorder(steps)
    assert len(recorder.kept) == 2
    recorder.events.clear()
    recorder(3)
    recorder(4)
    assert recorder.kinds() == [["replay"], ["capture", "replay"]]


def test_they_hold_no_more_bytes_than_the_limit_and_what_is_larger_is_captured_once_and_never_kept():
    recorder = Recorder(nbytes=100_000, each=40_000)
    for steps in (3, 3, 4, 4, 5, 5):
        recorder(steps)
    assert len(recorder.kept) == 2  # their own arguments count besides
    recorder.each = 100_000
    for _ in range(4):
        recorder(6)
    assert recorder.events.count("capture") == 4 and len(recorder.kept) == 2
    assert recorder.kinds()[-4:] == [[], ["capture"], [], []]


def test_the_limits_are_those_of_the_environment_at_any_time(monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=1000))
    for name in ("KEPT", "MB"):
        monkeypatch.delenv(f"RNNSEARCH_CUDA_GRAPHS_{name}", raising=False)
    assert graphs.limits(cuda) == Limits(graphs.COUNT, 100)
    monkeypatch.setenv("RNNSEARCH_CUDA_GRAPHS_KEPT", "3")
    monkeypatch.setenv("RNNSEARCH_CUDA_GRAPHS_MB", "5")
    assert graphs.limits(cuda) == Limits(3, 5 << 20)
    monkeypatch.setenv("RNNSEARCH_CUDA_GRAPHS_MB", "-5")
    with pytest.raises(ValueError, match="RNNSEARCH_CUDA_GRAPHS_MB must be a whole number; got '-5'"):
        graphs.limits(cuda)


def test_where_memory_does_not_suffice_all_go_the_launches_are_plain_and_it_is_said_once(recwarn):
    recorder = Recorder()
    recorder.memory_left = 2
    for steps in (3, 3, 4, 4, 5):
        recorder(steps)
    assert len(recorder.kept) == 2
    for _ in range(2):
        recorder(5)
        recorder(3)
    assert len(recorder.kept) == 0 and recorder.events.count("capture") == 2
    (warning,) = recwarn.list
    assert "no more are made in this process, and" in str(warning.message)


def test_a_plain_call_without_memory_is_made_again_once_the_graphs_have_gone():
    recorder = Recorder()
    recorder(3)
    recorder(3)

    def short_of_memory(*args):
        if len(recorder.kept):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return reference.gru_scan(*args)

    args = example(GRU)
    results = recorder.run("gru_scan", args, short_of_memory)
    assert all(map(torch.equal, results, reference.gru_scan(*args.values())))

    def never(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.warns(RuntimeWarning, match="no more are made"), pytest.raises(torch.OutOfMemoryError):
        recorder.run("gru_scan", args, never)


def test_what_never_comes_back_is_forgotten(monkeypatch):
    monkeypatch.setattr(house, "REMEMBERED", 4)
    recorder = Recorder()
    for steps in (*range(1, 11), 1, 10):
        recorder(steps)
    assert recorder.events.count("capture") == 1 and len(recorder.loops.seen) == 4


def test_a_replay_after_inference_mode_may_write_its_buffers():
    recorder, modes = Recorder(), []

    def loop(*args):
        modes.append(torch.is_inference_mode_enabled())
        return reference.gru_scan(*args)

    with torch.inference_mode():
        recorder.run("gru_scan", example(GRU), loop)
    assert modes == [False]


def test_it_can_be_turned_off(monkeypatch):
    recorder = Recorder()
    recorder.on = False
    for _ in range(3):
        recorder(17)
    assert recorder.kinds() == [[], [], []]
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.delenv("RNNSEARCH_CUDA_GRAPHS", raising=False)
    assert graphs.KEPT.usable(cuda) and not graphs.KEPT.usable(torch.device("cpu"))
    monkeypatch.setenv("RNNSEARCH_CUDA_GRAPHS", "0")
    assert not graphs.KEPT.usable(cuda)


@pytest.mark.parametrize("chosen", ["tf32", "ieee"])
def test_a_graph_belongs_to_the_arithmetic_that_torch_is_told_by_its_newer_setting(monkeypatch, chosen):
    launch = pytest.importorskip("rnnsearch_kernels.triton.launch")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=5))
    # Once the newer setting is used, asking for the older one (allow_tf32) raises.
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(fp32_precision=chosen))
    assert launch.precision() == {"tf32": "tf32", "ieee": "tf32x3"}[chosen]
    cuda = torch.device("cuda")
    assert graphs.surroundings(cuda) == (cuda, 5, chosen)


@pytest.fixture
def capturing(monkeypatch):
    """torch's capture as a list of what happens: the address of the argument at each run, the stream, the end."""
    events, current = [], SimpleNamespace(device=torch.device("cuda", 1), cuda_stream=7)
    reserved = iter(range(1000, 10**6, 500))

    @contextmanager
    def graph(graph, stream, capture_error_mode):
        events.append(stream)
        try:
            yield
        finally:
            events.append("end")

    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: (device, current.cuda_stream))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: next(reserved))
    graphs.capture_stream.cache_clear()
    yield events, current
    graphs.capture_stream.cache_clear()


def test_a_capture_follows_a_plain_run_on_the_same_memory_and_has_a_stream_for_each_that_replays(capturing):
    events, current = capturing

    def loop(values):
        events.append(values.data_ptr())
        return (values,)

    for current.cuda_stream in (7, 8, 7):
        _, _, nbytes = house.capture(loop, (torch.ones(2),))
        assert nbytes == 500
    for first, stream, second, end in zip(*[iter(events)] * 4, strict=True):
        assert first == second and stream[0] == current.device and end == "end"
    assert [stream for _, stream in events[1::4]] == [7, 8, 7]


def test_a_capture_that_runs_out_of_memory_says_that_whatever_its_end_says(capturing, monkeypatch):
    events, _ = capturing
    begun = torch.cuda.graph

    @contextmanager
    def broken(*args, **options):
        try:
            with begun(*args, **options):
                yield
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(torch.cuda, "graph", broken)

    def loop(values):
        if events:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return (values,)

    with pytest.raises(torch.OutOfMemoryError):
        house.capture(loop, (torch.ones(2),))


def test_torch_compile_leaves_the_loops_out_of_its_own_graphs():
    for op in triton.MODULES:
        assert (torch.Tag.cudagraph_unsafe in overload_of(op, "triton").tags) == (op in triton.LOOPS), op


def test_inside_somebody_elses_capture_a_loop_runs_as_it_ran_before(monkeypatch):
    """On arguments of the same sizes and layout: other ones may want kernels that a capture cannot load."""
    recorder, seen = Recorder(), []

    def loop(*args):
        seen.append([(value.shape, value.stride()) for value in args if isinstance(value, torch.Tensor)])
        return reference.gru_scan(*args)

    args = example(GRU, sizes={**SIZES, "T": 17}, absent={"lengths"})
    args["hidden_weight"] = args["hidden_weight"].t().contiguous().t()
    recorder.run("gru_scan", args, loop)
    recorder.capturing = True
    for _ in range(2):
        results = recorder.run("gru_scan", args, loop)
    assert seen == 3 * seen[:1] and recorder.kinds() == [[], [], []]
    for mine, theirs in zip(results, reference.gru_scan(*args.values()), strict=True):
        torch.testing.assert_close(mine, theirs, **tolerances.SAME_FLOAT32)
    recorder.on = False
    recorder.run("gru_scan", args, loop)
    assert seen[-1][0] == (args["input_gates"].shape, args["input_gates"].stride())


@pytest.mark.parametrize("capturing", [True, False])
def test_inside_somebody_elses_capture_the_launches_are_plain(monkeypatch, capturing):
    monkeypatch.delenv("RNNSEARCH_CUDA_GRAPHS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    assert graphs.KEPT.usable(torch.device("cuda")) != capturing


needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or triton.why_missing() is not None, reason="needs a CUDA device and Triton"
)


def on_the_gpu(op, seed, steps):
    """Arguments of one bucket for 17 and 18 steps."""
    sizes = {**SIZES, "B": 17, "T": steps, "S": 33}
    return list(example(BY_NAME[op], seed=seed, sizes=sizes, absent=INFERENCE_ONLY, device="cuda").values())


@needs_gpu
@pytest.mark.parametrize("op", triton.LOOPS)
def test_a_gpu_replays_the_bits_that_it_launched(op, monkeypatch):
    monkeypatch.delenv("RNNSEARCH_CUDA_GRAPHS", raising=False)
    graphs.KEPT.clear()
    calls = [on_the_gpu(op, seed, steps) for seed, steps in enumerate((17, 18, 17))]
    first = [overload_of(op, "triton")(*args) for args in calls]  # plainly, captured, replayed
    again = [overload_of(op, "triton")(*args) for args in calls]
    assert len(graphs.KEPT) == 1
    assert all(torch.equal(*pair) for results in zip(first, again, strict=True) for pair in zip(*results, strict=True))


@needs_gpu
@pytest.mark.parametrize("op", triton.LOOPS)
def test_a_gpu_has_a_loop_in_somebody_elses_graph(op, monkeypatch):
    monkeypatch.delenv("RNNSEARCH_CUDA_GRAPHS", raising=False)
    args = on_the_gpu(op, 0, 17)
    wanted = overload_of(op, "triton")(*args)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = overload_of(op, "triton")(*args)
    graph.replay()
    assert all(map(torch.equal, found, wanted))
