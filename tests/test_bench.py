"""The benchmark runs, checks before it times, and says what is wrong with what it is asked. No times are asserted."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import rnnsearch_kernels

BENCH = Path(__file__).resolve().parent.parent / "bench"
BASELINES = {"eager", "eager_hoisted", "compile", "graph"}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the benchmark as its command does, from its own folder."""
    monkeypatch.syspath_prepend(str(BENCH))
    threads = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)


@pytest.fixture
def weights(bench: Any) -> Any:
    """Weights of a workload that takes no time."""
    workload = dataclasses.replace(
        bench("workloads").WORKLOADS["tiny"],
        batch=3, source_length=7, input_size=6, hidden_size=8, attention_size=5, memory_size=10, readout_size=4,
        vocabulary_size=20, beam_size=3,
    )  # fmt: skip
    module = bench("weights")
    available = tuple(backend.name for backend in rnnsearch_kernels.list_backends() if backend.missing is None)
    settings = module.Settings(torch.device("cpu"), available, compile=False, everything=True)
    return module.Weights(workload, settings)


def test_the_command_prints_a_table_and_writes_rows_and_a_picture(tmp_path: Path) -> None:
    rows_file, picture = tmp_path / "rows.json", tmp_path / "speed.png"
    command = [sys.executable, "decode_speed.py", "--quick", "--workload", "tiny"]
    command += ["--json", str(rows_file), "--plot", str(picture)]
    done = subprocess.run(command, cwd=BENCH, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for part in ("machine", "commit", "torch " + torch.__version__, "held-out words", "× floor", "step"):
        assert part in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    rows = json.loads(rows_file.read_text())
    ours = {backend.name for backend in rnnsearch_kernels.list_backends() if backend.missing is None}
    assert {row["op"] for row in rows} >= {"additive_attention", "step", "beam_step", "beam_search"}
    for row in rows:
        assert row["backend"] in ours | BASELINES
        assert row["workload"] in {"tiny", "overhead"}
        assert (row["pass"], row["device"], row["threads"]) == ("forward", "cpu", 1)
        assert row["dtype"] in {"float32", "bfloat16"}
        if row["workload"] == "tiny":
            assert 0 < row["p25_ms"] <= row["median_ms"] <= row["p75_ms"] < math.inf
            assert row["floor_ms"] > 0 and row["peak_mb"] > 0
    for op in ("additive_attention", "step", "beam_step"):
        found = {row["backend"] for row in rows if (row["op"], row["dtype"]) == (op, "float32")}
        assert found >= ours | {"eager"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["--workload", "huge"],
            "a workload must be one of ['tiny', 'small', 'paper', 'speech', 'speech16', 'synthesis']; got 'huge'",
        ),
        (["--backend", "abacus"], "got 'abacus'"),
        (["--threads", "0"], "--threads must be at least 1; got 0"),
        (["--device", "nowhere"], "nowhere"),
        (["--device", "meta"], "--device must be cpu or cuda; got meta"),
        (["--json", "no/such/folder/rows.json"], "to write rows.json in"),
        (["--json", "."], "--json: . is a folder"),
        (["--plot", "/dev/full/speed.png"], "there is no folder /dev/full"),
        (["--plot", "speed.bad"], "--plot must end in one of .png, .svg, .pdf; got speed.bad"),
    ],
)
def test_what_cannot_be_done_is_said(
    bench: Any, given: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench("decode_speed").main(given)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_in_is_refused_before_the_run(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = bench("command")
    assert command.why_not_written(tmp_path / "rows.json") is None and not list(tmp_path.iterdir())

    def refuse(**options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(command.tempfile, "TemporaryFile", refuse)
    assert (
        command.why_not_written(tmp_path / "rows.json") == f"nothing can be written in {tmp_path} (Permission denied)"
    )


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, 130), (BrokenPipeError, 141)])
def test_an_interrupted_run_shows_no_traceback(error: type[BaseException], status: int) -> None:
    code = f"import command\ndef main(): raise {error.__name__}\ncommand.run(main)"
    done = subprocess.run([sys.executable, "-c", code], cwd=BENCH, capture_output=True, text=True)
    assert done.returncode == status and "Traceback" not in done.stderr


def test_a_name_given_twice_is_measured_once(bench: Any) -> None:
    options = ["--quick", "--workload", "tiny,tiny", "--backend", "reference,reference"]
    _, settings, workloads = bench("decode_speed").arguments(options)
    assert settings.backends == ("reference",) and [workload.name for workload in workloads] == ["tiny"]


def test_the_table_says_how_many_times_faster_and_how_noisy(bench: Any) -> None:
    report = bench("report")
    eager = report.Row(
        workload="tiny", op="step", pass_="forward", backend="eager", dtype="float32", device="cpu", threads=1,
        sentences=1, rows=5, steps=1, median_ms=6.0, p25_ms=5.0, p75_ms=7.0, peak_mb=2.5, floor_ms=1.5, floor="memory",
        noisy=False,
    )  # fmt: skip
    ours = dataclasses.replace(eager, backend="cpu", median_ms=2.0, noisy=True)
    narrow_eager = dataclasses.replace(eager, dtype="bfloat16", median_ms=9.0, floor_ms=1.0)
    narrow = dataclasses.replace(narrow_eager, backend="cpu", median_ms=1.5, floor_ms=1.0)
    head, *lines = (line.split() for line in report.table([eager, ours, narrow_eager, narrow]))
    assert " ".join(head) == (
        "tiny step forward: 1 sentence, 5 hypotheses; floor float32 1.500 ms (memory), bfloat16 1.000 ms (memory)"
    )
    quartiles = ["5.000", "–", "7.000"]
    assert lines == [
        ["eager", "float32", "6.000", *quartiles, "1.00", "4.0", "2.5"],
        ["cpu", "float32", "2.000~", *quartiles, "3.00", "1.3", "2.5"],
        ["eager", "bfloat16", "9.000", *quartiles, "0.67", "(1.00)", "9.0", "2.5"],
        ["cpu", "bfloat16", "1.500", *quartiles, "4.00", "(6.00)", "1.5", "2.5"],
    ]
    assert report.Row.json(ours)["pass"] == "forward"


def test_a_noisy_machine_is_noticed(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    timing = bench("timing")
    times: Iterator[float] = iter([])
    monkeypatch.setattr(timing, "sample", lambda call, repeats, device: next(times))
    times = iter([1.0] * 16)  # a warm-up and a check
    probe = timing.NoiseProbe(torch.device("cpu"))
    assert probe.worst == 0
    times = iter([1.0] * 15)
    assert probe.check() == 0
    times = iter([1.0, 1.0, 1.5] * 5)  # uneven within a check
    assert probe.check() > timing.NOISY
    times = iter([1.2] * 15)  # slower than the check before
    assert probe.check() == pytest.approx(0.2)
    assert probe.worst == pytest.approx(0.5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_said(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench("decode_speed").main(["--device", "cuda"])
    assert "no such CUDA device" in capsys.readouterr().err


def test_a_wrong_result_is_said_and_not_timed_and_everything_else_is(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = rnnsearch_kernels.additive_attention

    def wrong(*args: Any, **options: Any) -> Any:
        context, attn_weights = right(*args, **options)
        return context * 1.001, attn_weights

    monkeypatch.setattr(bench("cases"), "additive_attention", wrong)
    rows_file = tmp_path / "rows.json"
    assert bench("decode_speed").main(["--quick", "--workload", "tiny", "--json", str(rows_file)]) == 1
    assert "MISMATCH, so it is not timed: tiny additive_attention" in capsys.readouterr().err
    rows = [row for row in json.loads(rows_file.read_text()) if row["dtype"] == "float32"]  # in bfloat16 it is rounding
    ours = {backend.name for backend in rnnsearch_kernels.list_backends()}
    timed = {op: {row["backend"] for row in rows if row["op"] == op} for op in ("additive_attention", "step")}
    assert timed["additive_attention"] == {"eager"} and timed["step"] & ours


@pytest.mark.parametrize(
    ("op", "sizes"), [("attention", ()), ("step", (2,)), ("beam_step", (2,)), ("beam_search", (2, 5)), ("scan", ())]
)
def test_every_contender_is_checked(bench: Any, weights: Any, op: str, sizes: tuple[int, ...]) -> None:
    """Right results pass; shift any contender's by a hundredth and it is named."""
    cases, checking = bench("cases"), bench("checking")
    build = getattr(cases, f"{op}_case")
    with torch.inference_mode():
        case = build(weights, *sizes)
        checking.check(case)
        for contender, call in case.calls.items():
            if contender.backend == "eager" or contender.dtype != torch.float32:
                continue

            def shifted(call: Any = call) -> Any:
                results = call()
                scores = [x if x.dtype == torch.int64 else x + 0.01 for x in results]
                return scores

            calls = {**case.calls, contender: shifted}
            with pytest.raises(checking.Mismatch, match=contender.backend):
                checking.check(dataclasses.replace(case, calls=calls))


def test_eager_is_checked_too(bench: Any, weights: Any) -> None:
    """Its error is what the others' is measured by, but not a licence for its own."""
    cases, checking = bench("cases"), bench("checking")
    with torch.inference_mode():
        case = cases.attention_case(weights)
        eager = cases.Contender("eager", torch.float32)
        calls = {eager: lambda: [x + 0.01 for x in case.calls[eager]()]}
        with pytest.raises(checking.Mismatch, match="eager"):
            checking.check(dataclasses.replace(case, calls=calls))


def test_the_workloads_are_those_of_the_speed_table(bench: Any) -> None:
    workloads = bench("workloads").WORKLOADS
    assert [str(workload) for workload in workloads.values()] == [
        "tiny: B16 S25 T25 E256 H256 A256 M512 L256 V8000 beam 5",
        "small: B64 S64 T64 E512 H512 A512 M1024 L512 V8000 beam 5",
        "paper: B80 S50 T50 E620 H1000 A1000 M2000 L500 V30000 beam 12",
        "speech: B4 S1500 T50 E512 H512 A512 M1024 L512 V1000 beam 8",
        "speech16: B16 S1500 T50 E512 H512 A512 M1024 L512 V1000 beam 8",
        "synthesis: B16 S50 T200 E256 H256 A256 M512 L256 V1000 beam 1",
    ]
    assert [workload.name for workload in bench("workloads").named(None)] == ["tiny", "small", "paper", "speech"]
    assert {name: workload.decode_batches for name, workload in workloads.items()} == {
        "tiny": (1,), "small": (1, 16), "paper": (1,), "speech": (1,), "speech16": (1,), "synthesis": (1,)
    }  # fmt: skip


def test_floors_grow_with_the_work(bench: Any) -> None:
    timing, costs = bench("timing"), bench("costs")
    device = torch.device("cpu")
    small, paper = (bench("workloads").WORKLOADS[name] for name in ("small", "paper"))
    for cost in (costs.attention_cost, costs.step_cost, costs.beam_step_cost):
        one, many = cost(small, 1, 5), cost(small, 16, 80)
        assert 0 < one.values <= many.values and 0 < one.products < many.products
        assert 0 < one.compute_ms(torch.float32, device, 1) < many.compute_ms(torch.float32, device, 1)
        assert one.values < cost(paper, 1, 12).values
    assert timing.read_ms(2**22, device) > 0
    assert 0 < timing.read_ms(2**10, device) < timing.read_ms(2**24, device)


def test_memory_is_counted_at_its_highest(bench: Any) -> None:
    values = torch.rand(1000, 250)
    megabytes = bench("timing").peak_mb(lambda: (values + 1).sum() + (values * 2).sum(), torch.device("cpu"))
    assert 1.0 <= megabytes < 2.0


def test_the_share_outside_the_librarys_products_is_none_of_a_product_and_all_of_what_has_none(bench: Any) -> None:
    outside, values = bench("timing").outside_products, torch.rand(400, 400)
    assert 0 <= outside(lambda: [values @ values for _ in range(20)]) < 0.5
    assert outside(lambda: values.exp().sum()) == 1


def test_backends_that_pronounce_differently_stop_the_run(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = bench("held_out")
    (tmp_path / held_out.HELD_OUT).write_text("word\tW ER D\n")
    monkeypatch.setattr(held_out, "MODEL_DIRECTORY", tmp_path)
    available = [backend for backend in rnnsearch_kernels.list_backends() if backend.missing is None][:2]
    if len(available) < 2:
        pytest.skip("there is one backend only, so nothing to differ from")

    class Model:
        def __init__(self, backend: str) -> None:
            self.backend = backend

        def to(self, device: torch.device) -> Model:
            return self

    class RNNSearch:
        @staticmethod
        def from_pretrained(directory: Path, backend: str = "auto") -> Model:
            return Model(backend)

    monkeypatch.setattr(held_out, "RNNSearch", RNNSearch)
    monkeypatch.setattr(held_out, "pronounce", lambda encoder, decoder, words: [["W", decoder.backend]])
    with pytest.raises(bench("checking").Mismatch, match="'word' is W"):
        list(held_out.decode_held_out([backend.name for backend in available], torch.device("cpu"), None))
