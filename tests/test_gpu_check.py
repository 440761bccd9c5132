"""The script for the day a GPU is there: its order, its limits, its record, and its verdicts, all without one."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCH = Path(__file__).resolve().parent.parent / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCH))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_right_comes_before_clean_and_clean_before_fast(bench, tmp_path: Path) -> None:
    names = [stage.name for stage in bench("gpu_check").stages(tmp_path)]
    assert names[:5] == ["selftest", "selftest-grid", "tests", "memcheck", "racecheck"]
    assert names[5:8] == ["initcheck", "beam_waits", "cuda_rates"]
    assert names[8:] == [
        *(f"decode_speed-{workload}" for workload in ("tiny", "small", "paper", "speech")),
        *(f"scan_speed-{workload}" for workload in ("paper", "small", "speech16")),
        *(f"loss_speed-{workload}" for workload in ("small", "paper")),
        *(f"train_speed-{workload}" for workload in ("small", "paper")),
    ]
    known = bench("workloads").WORKLOADS
    for stage in (*bench("gpu_check").stages(tmp_path), *bench("gpu_check").quick_stages(tmp_path)):
        assert stage.limit_s > 0
        if "--workload" in stage.command:
            assert stage.command[stage.command.index("--workload") + 1] in known
        program = [word for word in stage.command if word.endswith(".py")]
        assert all((BENCH / word).exists() for word in program)


def test_every_promise_reads_a_file_that_a_stage_writes(bench, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(bench("gpu_check"), "_ours", lambda: ["triton"])
    stages = bench("gpu_check").stages(tmp_path)
    written = {stage.command[stage.command.index("--json") + 1] for stage in stages if "--json" in stage.command}
    for promise in bench("promises").PROMISES:
        assert str(tmp_path / f"{promise.file}.rows.json") in written
    quick = bench("gpu_check").quick_stages(tmp_path)
    files = [Path(stage.command[-1]).name for stage in quick if "--json" in stage.command]
    for promise in bench("promises").PROMISES:
        assert any(file.startswith(f"{promise.file}-") for file in files)


def test_a_promise_is_judged_by_all_runs_of_its_workload_and_by_what_the_profiler_saw(bench, tmp_path: Path) -> None:
    promises = bench("promises")
    promise = promises.Promise("what", "file", {"op": "scan"}, ("compile", "compile_graph"), 2.0)
    for name, times in (
        ("ours", {"triton": 10.0}),
        ("compile", {"triton": 12.0, "compile": 40.0, "compile_graph": 30.0}),
    ):
        rows = [{"op": "scan", "backend": backend, "median_ms": value} for backend, value in times.items()]
        (tmp_path / f"file-{name}.rows.json").write_text(json.dumps(rows))
    (tmp_path / "file-cut.rows.json").write_text("[{")
    for status, verdict in (("passed", "kept"), ("failed", "missed"), ("out of time", "")):
        record = {"stage": "beam_waits", "status": status, "seconds": 1.0}
        (tmp_path / "beam_waits.json").write_text(json.dumps(record))
        *_, measured, waits = promises.summary(tmp_path, [promise])
        assert measured == "| what | 2× | 3.00× | kept |"
        assert waits.endswith(f"| {status} | {verdict} |")


def test_a_quick_run_has_every_kind_of_check_and_its_commands_are_understood(
    bench, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(bench("gpu_check"), "_ours", lambda: ["triton", "cuda"])
    stages = bench("gpu_check").quick_stages(tmp_path)
    assert len({stage.name for stage in stages}) == len(stages)
    assert {stage.name.split("-")[0] for stage in stages} == {
        "small_shapes", "tests", "beam_waits", "cuda_rates", "scan_speed", "decode_speed",
        "memcheck", "racecheck", "initcheck",
    }  # fmt: skip
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for stage in stages:
        if "--workload" in stage.command:
            program = bench(stage.command[1].removesuffix(".py"))
            # As on a GPU, but for what only one has.
            monkeypatch.setattr(bench("command"), "usable", lambda names, device: ("cuda", "triton", "reference"))
            _, settings, workloads = program.arguments(stage.command[2:])
            assert settings.device.type == "cuda" and [stage.name.split("-")[1]] == [each.name for each in workloads]


def test_a_run_with_so_many_minutes_begins_no_stage_without_time_and_cuts_the_last(bench, tmp_path: Path) -> None:
    check = bench("gpu_check")
    slow, never = check.Stage("slow", python("import time; time.sleep(600)"), 60), check.Stage("never", python(""), 60)
    check.LEAST_S = 2.0
    begin = time.perf_counter()
    statuses = check.run_stages([slow, never], tmp_path, again=False, minutes=0.04, say=lambda line: None)
    assert statuses == {"slow": "out of time", "never": "not begun"} and time.perf_counter() - begin < 30
    assert "| never | not begun |" in (tmp_path / "report.md").read_text()


def test_the_report_is_written_as_it_goes_and_shows_the_end_of_what_failed_first(bench, tmp_path: Path) -> None:
    check, seen = bench("gpu_check"), []
    stages = [
        check.Stage("a_right_one", python("print('fine')"), 60),
        check.Stage("wrong", python("print('line\\n' * 200); raise SystemExit('the reason')"), 60),
    ]
    check.run_stages(stages, tmp_path, again=False, say=lambda line: seen.append((tmp_path / "report.md").read_text()))
    assert "fine" in seen[0] and "wrong" not in seen[0]
    text = seen[1]
    assert text.index("### wrong: failed") < text.index("### a_right_one: passed") and "the reason" in text
    assert "lines before)" in text


def test_a_stage_finds_the_packages_from_its_own_folder(bench, tmp_path: Path, monkeypatch) -> None:
    check = bench("gpu_check")
    monkeypatch.setenv("PYTHONPATH", ".")
    code = "import rnnsearch, rnnsearch_kernels; print(rnnsearch_kernels.__file__)"
    assert check.perform(check.Stage("finds", python(code), 120), tmp_path)["status"] == "passed"
    assert (tmp_path / "finds.txt").read_text().strip() == str(Path(check.rnnsearch_kernels.__file__))


def test_a_failing_a_slow_and_a_missing_stage_are_reported_and_the_others_go_on(bench, tmp_path: Path) -> None:
    check = bench("gpu_check")
    begin, lines = time.perf_counter(), []
    statuses = check.run_stages(
        [
            check.Stage("fails", python("print('before'); raise SystemExit(3)"), 60),
            check.Stage("hangs", python("import time; print('here', flush=True); time.sleep(600)"), 1.5),
            check.Stage("gone", ("no-such-program",), 60),
            check.Stage("absent", python("pass"), 60, missing="not here: install it"),
            check.Stage("passes", python("import os; print(os.environ['GIVEN'])"), 60, {"GIVEN": "value"}),
        ],
        tmp_path,
        again=False,
        say=lines.append,
    )
    assert statuses == {
        "fails": "failed", "hangs": "out of time", "gone": "failed", "absent": "missing", "passes": "passed"
    }  # fmt: skip
    assert time.perf_counter() - begin < 60 and len(lines) == 5
    texts = {name: (tmp_path / f"{name}.txt").read_text() for name in statuses}
    assert texts["fails"] == "before\n" and texts["hangs"] == "here\n" and texts["passes"] == "value\n"
    assert "no-such-program" in texts["gone"] and texts["absent"] == "not here: install it\n"
    assert json.loads((tmp_path / "fails.json").read_text())["exit"] == 3
    table = "\n".join(bench("promises").summary(tmp_path))
    assert "| hangs | out of time |" in table and "not measured" in table


def test_what_passed_is_not_run_again_unless_it_is_asked_for_or_the_commit_moved(
    bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = bench("gpu_check")
    counter = tmp_path / "count"
    code = f"import sys; open({str(counter)!r}, 'a').write('x')"
    passing = check.Stage("passing", python(code), 60)
    failing = check.Stage("failing", python(code + "; sys.exit(1)"), 60)

    def run(**options: bool) -> int:
        counter.unlink(missing_ok=True)
        check.run_stages([passing, failing], tmp_path, again=options.get("again", False), say=lambda line: None)
        return len(counter.read_text())

    assert [run(), run(), run(again=True)] == [2, 1, 2]
    monkeypatch.setattr(check, "commit", lambda: "another")
    assert run() == 2


def test_a_choice_takes_stages_by_name_and_names_them_where_one_is_wrong(bench, capsys) -> None:
    check = bench("gpu_check")
    assert [stage.name for stage in check.arguments(["--stage", "racecheck,tests"]).stages] == ["tests", "racecheck"]
    with pytest.raises(SystemExit):
        check.arguments(["--stage", "speed"])
    assert "a stage must be one of ['selftest', 'selftest-grid'," in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so_and_fails(bench, capsys, tmp_path: Path) -> None:
    assert bench("gpu_check").main(["--folder", str(tmp_path / "out")]) == 2
    assert "sees no CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_promise_is_the_best_of_the_others_over_the_best_of_ours(bench, tmp_path: Path) -> None:
    promises = bench("promises")
    promise = promises.Promise("what", "file", {"op": "scan"}, ("compile", "compile_graph"), 2.0)
    times = {"eager": 90.0, "compile": 30.0, "compile_graph": 24.0, "triton": 10.0, "cuda": 8.0, "reference": 1.0}
    rows = [{"op": "scan", "backend": name, "median_ms": value} for name, value in times.items()]
    rows.append({"op": "gru", "backend": "cuda", "median_ms": 0.1})
    assert promises.ratio(promise, rows) == pytest.approx(3.0)
    assert promises.ratio(promise, rows[:4]) == pytest.approx(2.4)
    assert promises.ratio(promise, rows[:3]) is None  # none of ours
    (tmp_path / "file.rows.json").write_text(json.dumps(rows))
    assert "| what | 2× | 3.00× | kept |" in list(promises.summary(tmp_path, [promise]))
    missed = promises.Promise("what", "file", {"op": "scan"}, ("compile", "compile_graph"), 3.5)
    assert "| what | 3.5× | 3.00× | missed |" in list(promises.summary(tmp_path, [missed]))


def test_a_wait_counts_where_it_begins_inside_a_step(bench) -> None:
    waits = bench("beam_waits")
    step = (waits.MARK, 10.0, 20.0)
    outside, inside = ("cudaEventSynchronize", 21.0, 22.0), ("cudaStreamSynchronize", 15.0, 16.0)
    assert waits.waits_inside([step, outside, ("cudaGraphLaunch", 12.0, 13.0)]) == []
    assert waits.waits_inside([step, outside, inside]) == ["cudaStreamSynchronize"]
    with pytest.raises(ValueError, match="nothing was looked at"):
        waits.waits_inside([outside])


def test_the_sanitizer_is_found_in_its_package(bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = bench("gpu_check")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert check.compute_sanitizer() is None
    (stage,) = [stage for stage in check.stages(tmp_path) if stage.name == "memcheck"]
    assert "nvidia-cuda-sanitizer-api" in stage.missing
    program = tmp_path / "nvidia" / "cu13" / "compute-sanitizer" / "compute-sanitizer"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    assert check.compute_sanitizer() == program
