"""`rnnsearch train`: settings, a run that can be killed, what it refuses."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rnnsearch import cli, loss, measure, snapshots, train_command, trainer
from rnnsearch.optimization import rate_factor
from rnnsearch.processes import Processes
from rnnsearch.settings import OptimizerOptions
from rnnsearch.train_command import read_settings
from rnnsearch.translator import Translator
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'python'}"}
SIZES = ("embedding", "encoder", "hidden", "attention", "readout")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words of letters, and the same backwards."""
    folder = tmp_path_factory.mktemp("text")
    generator = torch.Generator().manual_seed(0)
    for name, count in (("train", 60), ("dev", 8)):
        lines = []
        for _ in range(count):
            length = int(torch.randint(2, 6, (), generator=generator))
            lines.append([*map("abcde".__getitem__, torch.randint(0, 5, (length,), generator=generator).tolist())])
        (folder / f"{name}.s").write_text("".join(" ".join(line) + "\n" for line in lines))
        (folder / f"{name}.t").write_text("".join(" ".join(line[::-1]) + "\n" for line in lines))
    return folder


def arguments(text: Path, directory: Path, **changes: object) -> list[str]:
    options: dict[str, object] = {
        "data.source": text / "train.s",
        "data.target": text / "train.t",
        "data.dev_source": text / "dev.s",
        "data.dev_target": text / "dev.t",
        "batch.size": 8,
        "batch.sort": 3,
        **{f"model.{size}_size": 12 for size in SIZES},
        **{f"model.{part}_dropout": 0.1 for part in ("embedding", "memory", "state", "readout")},
        "optimizer.schedule": "cosine",
        "optimizer.ema_decay": 0.9,
        "optimizer.warmup_updates": 3,
        "run.directory": directory,
        "run.epochs": 0,
        "run.updates": 12,
        "run.evaluate_every": 4,
        "run.save_every": 3,
        "run.beam_size": 2,
        "run.device": "cpu",
        **changes,
    }
    return [f"--{name}={value}" for name, value in options.items()]


def train(*options: str) -> int:
    return cli.main(["train", *options])


def everything(directory: Path) -> dict:
    """All that the last checkpoint and the best model hold."""
    place = snapshots.latest(directory / trainer.CHECKPOINTS)
    assert place is not None
    tensors, state = snapshots.load(place)
    assert {"model", "optimizer", "average"} <= tensors.keys()
    return {"state": state, **tensors, "best": load_file(directory / trainer.BEST / "model.safetensors")}


def assert_same(left: dict, right: dict) -> None:
    assert left["state"] == right["state"]
    for group in left.keys() - {"state"}:
        assert left[group].keys() == right[group].keys()
        for name, value in left[group].items():
            assert torch.equal(value, right[group][name]), f"{group}: {name}"


@pytest.fixture(scope="module")
def whole(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of twelve updates that nothing interrupted."""
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("whole") / "run"
    assert train(*arguments(text, directory)) == 0
    return directory


DIES_AS_IT_WRITES = """
import os, signal, sys
from rnnsearch import cli
rename = os.rename

def dying(source, place):
    if "update-00000006" in str(place):
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, place)

os.rename = dying
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_run_that_was_killed_as_it_wrote_a_checkpoint_goes_on_bit_for_bit(text, whole, tmp_path):
    directory = tmp_path / "run"
    command = [sys.executable, "-c", DIES_AS_IT_WRITES, "train", *arguments(text, directory)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = directory / trainer.CHECKPOINTS
    assert everything_saved(directory) == 3 and list(folder.glob(f"{snapshots.UNFINISHED}*"))
    assert train("--resume", str(directory)) == 0
    assert_same(everything(whole), everything(directory))
    assert not list(folder.glob(f"{snapshots.UNFINISHED}*"))


def test_a_run_that_was_killed_before_its_first_checkpoint_was_whole_goes_on_too(whole, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(whole, directory)
    shutil.rmtree(directory / trainer.CHECKPOINTS)
    (directory / trainer.CHECKPOINTS / f"{snapshots.UNFINISHED}00000003").mkdir(parents=True)
    assert train("--resume", str(directory)) == 0
    assert_same(everything(whole), everything(directory))


def test_a_model_left_by_other_settings_is_not_taken_for_the_run_that_was_killed_as_it_began(
    text, whole, tmp_path, monkeypatch
):
    directory = tmp_path / "run"
    shutil.copytree(whole, directory)
    shutil.rmtree(directory / trainer.CHECKPOINTS)
    changes: dict[str, object] = {"model.hidden_size": 10, "run.updates": 1}
    with monkeypatch.context() as patch:
        patch.setattr(train_command, "_begin", lambda *_: 1 / 0)
        assert train(*arguments(text, directory, **changes)) == 1
    assert train("--resume", str(directory)) == 0
    assert everything(directory)["model"]["decoder.cell.weight_hh"].shape == (30, 10)


def test_a_run_that_is_done_can_be_resumed_any_number_of_times(text, whole, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(whole, directory)
    for _ in range(3):
        assert train("--resume", str(directory)) == 0
    assert_same(everything(whole), everything(directory))


def test_an_update_is_saved_again_when_the_earlier_saves_are_gone(tmp_path):
    for again in range(12):
        place = snapshots.save(tmp_path, 7, tensors={}, state={"again": again}, keep=1)
        assert snapshots.latest(tmp_path) == place and snapshots.load(place)[1] == {"again": again}
    (tmp_path / f"{snapshots.PREFIX}best").mkdir()  # not ours
    last = snapshots.save(tmp_path, 123456789, tensors={}, state={}, keep=1)
    assert snapshots.latest(tmp_path) == last and (tmp_path / f"{snapshots.PREFIX}best").is_dir()


@pytest.mark.parametrize(
    "option",
    [
        *("--model.hidden_size=13", "--model.state_dropout=0.2", "--data.min_count=2"),
        *("--run.metric=bleu", "--run.seed=2"),
    ],
)
def test_what_a_run_was_made_with_cannot_change_when_it_goes_on(whole, capsys, option):
    assert train("--resume", str(whole), option) == 1
    name = option[2:].partition("=")[0]
    assert f"`{name}` stays what it was at the run's start" in capsys.readouterr().err


def test_a_run_goes_on_in_its_own_directory_and_no_other(whole, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(whole.parent)
    (tmp_path / "other.yaml").write_text("run:\n  directory: other\n")
    for elsewhere in (["--run.directory=other"], ["--config", str(tmp_path / "other.yaml")]):
        assert train("--resume", "run", *elsewhere) == 1
        assert "`run.directory` must be run, which --resume goes on in; got other" in capsys.readouterr().err
    assert train("--resume", "run", f"--run.directory={whole}") == 0
    shutil.copytree(whole, tmp_path / "moved")
    assert train("--resume", str(tmp_path / "moved")) == 0


def test_an_average_of_weights_that_was_never_begun_names_its_option(text, tmp_path, capsys):
    directory = tmp_path / "run"
    assert train(*arguments(text, directory, **{"optimizer.ema_decay": 0.0, "run.updates": 1})) == 0
    assert train("--resume", str(directory), "--optimizer.ema_decay=0.9") == 1
    assert "holds no average.safetensors: `optimizer.ema_decay` was 0 in this run" in capsys.readouterr().err


@pytest.mark.parametrize("which", ["training", "dev"])
def test_text_that_changed_since_the_run_began_is_noticed_when_it_goes_on(text, whole, tmp_path, capsys, which):
    changed = tmp_path / "changed"
    shutil.copytree(text, changed)
    given = [f"--data.{part}={changed}/{name}" for part, name in (
        ("source", "train.s"), ("target", "train.t"), ("dev_source", "dev.s"), ("dev_target", "dev.t"),
    )]  # fmt: skip
    assert train("--resume", str(whole), *given) == 0  # the same text elsewhere
    path = changed / ("train.t" if which == "training" else "dev.t")
    first, rest = path.read_text().split("\n", 1)
    path.write_text(first[::-1] + " e\n" + rest)
    assert train("--resume", str(whole), *given) == 1
    assert f"the {which} text is not the one that the run began with" in capsys.readouterr().err


def test_another_optimizer_cannot_go_on_with_a_state(whole, capsys):
    assert train("--resume", str(whole), "--optimizer.name=adadelta", "--run.updates=13") == 1
    assert "`optimizer.name` stays what it was" in capsys.readouterr().err


def test_a_metric_that_cannot_be_had_is_said_before_training(text, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    monkeypatch.setattr(trainer.Trainer, "run", lambda *_: pytest.fail("trained"))
    assert train(*arguments(text, tmp_path / "run", **{"run.metric": "bleu"})) == 1
    assert "BLEU needs sacrebleu" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["update", "measure"])
@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_wherever_it_comes_and_the_run_goes_on_bit_for_bit(
    text, whole, tmp_path, monkeypatch, where, which
):
    directory = tmp_path / "run"
    place, name = {"update": (loss, "model_loss"), "measure": (measure, "mean_loss")}[where]
    inner, calls = getattr(place, name), []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), which)
        return inner(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(place, name, interrupted)
        assert train(*arguments(text, directory)) == 128 + which
    assert everything_saved(directory) == {"update": 2, "measure": 8}[where]
    assert train("--resume", str(directory)) == 0
    assert_same(everything(whole), everything(directory))


def everything_saved(directory: Path) -> int:
    place = snapshots.latest(directory / trainer.CHECKPOINTS)
    assert place is not None
    return snapshots.load(place)[1]["update"]


# To start processes takes longer than the runs. A run may begin as soon as the process has ended the one before.
RUNS_IN_ONE_GROUP = """
import contextlib, json, sys
from rnnsearch import cli, train_command

with train_command.joined("cpu") as processes:
    assert processes.count == 2
    train_command.joined = lambda device: contextlib.nullcontext(processes)
    for run in json.loads(sys.argv[1]):
        assert cli.main(["train", *run]) == 0
"""


def test_two_processes_make_the_updates_of_one_and_go_on_bit_for_bit(text, tmp_path):
    none = {f"model.{part}_dropout": 0.0 for part in ("embedding", "memory", "state", "readout")}
    changes: dict[str, object] = {**none, "batch.size": 7, "batch.accumulate": 2, "optimizer.schedule": "constant"}

    one, two, parts = tmp_path / "one", tmp_path / "two", tmp_path / "parts"
    assert train(*arguments(text, one, **changes)) == 0
    runs = [
        arguments(text, two, **changes),
        arguments(text, parts, **{**changes, "run.updates": 8}),
        ["--resume", str(parts), "--run.updates=12"],
    ]
    script = tmp_path / "runs.py"
    script.write_text(RUNS_IN_ONE_GROUP)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run([*command, json.dumps(runs)], env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert_same(everything(two), everything(parts))
    alone, shared = everything(one), everything(two)
    assert alone["state"]["position"] == shared["state"]["position"]
    for name, value in alone["model"].items():
        # The rows' gradients are summed in another order, which Adam's division can make large where they are tiny.
        torch.testing.assert_close(shared["model"][name], value, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["data.source", "data.target", "data.dev_source", "data.dev_target"])
def test_several_processes_refuse_a_pipe_which_each_of_them_would_read_to_its_end(
    text, tmp_path, capsys, monkeypatch, name
):
    two = Processes(0, 2, torch.device("cpu"))
    monkeypatch.setattr(train_command, "joined", lambda device: contextlib.nullcontext(two))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert train(*arguments(text, tmp_path / "run", **{name: pipe})) == 1
    assert f"`{name}` must be a file where several processes train: each reads all of it; {pipe} is none" in (
        capsys.readouterr().err
    )


def test_every_field_is_in_the_printed_configuration_and_the_command_line_goes_before_it(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        train("--preset", "rnnsearch-50", "--print_config")
    assert ended.value.code == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    needed = ["--data.source=a", "--data.dev_source=b", "--run.directory=c"]
    settings, directory, resume, _ = read_settings(["--config", str(printed), *needed, "--batch.size", "33"])
    assert (settings.batch.size, settings.model.hidden_size, settings.optimizer.name) == (33, 1000, "adadelta")
    assert (settings.data.max_length, directory, resume) == (50, Path("c"), False)


REFUSED = {
    "a field out of range": (["--optimizer.label_smoothing=1"], "`optimizer.label_smoothing` must be at least 0"),
    "a file that is not used": (["--data.sentencepiece_model=a"], "needs `data.segmentation` to be sentencepiece"),
    "two texts": (["--data.dataset=nowhere"], "`data.source` and `data.dataset`"),
    "nothing to read": (["--data.source=nowhere"], "nowhere cannot be read"),
    "unequal line counts": (["--data.target={text}/dev.t"], "train.s has 60 lines and .*dev.t has 8"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_says_why(text, tmp_path, capsys, case):
    options, message = REFUSED[case]
    assert train(*arguments(text, tmp_path / "run"), *(option.format(text=text) for option in options)) == 1
    assert re.search(message, capsys.readouterr().err)


def test_a_run_is_not_written_over(text, whole, capsys):
    assert train(*arguments(text, whole)) == 1
    assert "holds a run already" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_is_left_out_dumped_and_ends_the_run_when_it_stays(text, tmp_path, capsys):
    directory = tmp_path / "run"
    options = {"optimizer.learning_rate": 1e30, "run.max_nonfinite": 3, "optimizer.ema_decay": 0.0}
    assert train(*arguments(text, directory, **options, **{"optimizer.warmup_updates": 0})) == 1
    assert "not finite 3 times in a row" in capsys.readouterr().err
    dumps = sorted((directory / trainer.NONFINITE).iterdir())
    assert len(dumps) == 3
    records = [json.loads(line) for line in dumps[0].read_text().splitlines()]
    assert len(records) <= 8 and all(record["target"] == record["source"][::-1] for record in records)


def test_a_damaged_or_foreign_checkpoint_is_refused(text, whole, tmp_path, capsys):
    directory = tmp_path / "run"
    shutil.copytree(whole, directory)
    place = snapshots.latest(directory / trainer.CHECKPOINTS)
    assert place is not None
    weights = bytearray((place / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (place / "model.safetensors").write_bytes(weights)
    assert train("--resume", str(directory)) == 1
    assert "model.safetensors is damaged" in capsys.readouterr().err
    (place / snapshots.MARKER).write_text("{}")
    assert train("--resume", str(directory)) == 1
    assert "is not a checkpoint of `rnnsearch train`" in capsys.readouterr().err
    assert train("--resume", str(text)) == 1
    assert "is not the directory of a run" in capsys.readouterr().err


def test_it_learns_measures_bleu_and_stops_when_that_no_longer_improves(text, tmp_path, capsys):
    options = {"run.updates": 60, "run.evaluate_every": 5, "run.metric": "bleu", "run.patience": 2, "run.save_every": 0}
    rates = {"optimizer.schedule": "plateau", "optimizer.ema_decay": 0.0, "optimizer.learning_rate": 1e-9}
    directory = tmp_path / "run"
    assert train(*arguments(text, directory, **options, **rates)) == 0
    assert everything_saved(directory) == 15 and "no improvement in 2 measures" in capsys.readouterr().err
    translator = Translator.from_pretrained(directory / trainer.BEST)
    assert len(translator(["a b c", "", "e d"])) == 3
    assert train("--resume", str(directory)) == 0  # it is done
    assert everything_saved(directory) == 15


def test_bf16_and_adadelta_train_too(text, tmp_path):
    options = {"run.precision": "bf16", "optimizer.name": "adadelta", "optimizer.learning_rate": 1.0}
    assert train(*arguments(text, tmp_path / "run", **options, **{"run.updates": 4})) == 0


def test_the_schedules_follow_their_equations():
    inverse = OptimizerOptions(schedule="inverse_sqrt", warmup_updates=3)
    assert [rate_factor(update, 0.0, inverse) for update in (0, 1, 3, 15)] == [0.25, 0.5, 1.0, 0.5]
    cosine = OptimizerOptions(schedule="cosine")
    assert [rate_factor(9, done, cosine) for done in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.5, 0.0])
    assert rate_factor(9, 0.9, OptimizerOptions()) == 1.0
