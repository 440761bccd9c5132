"""The parts of training: the loss by hand, batches, the optimizer, signals; and a run that learns."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rnnsearch import RNNSearch, RNNSearchConfig, Vocabulary, cli, measure, optimization, trainer
from rnnsearch.data import Pair, collate, pad
from rnnsearch.interruption import interruptible
from rnnsearch.loss import sequence_loss
from rnnsearch.measure import DevText, mean_loss, measure_dev
from rnnsearch.optimization import make_optimizer
from rnnsearch.processes import Processes
from rnnsearch.segmentation import Characters
from rnnsearch.settings import OptimizerOptions, RunOptions
from rnnsearch.translator import Translator
from torch import Tensor

LETTERS = Vocabulary(["<pad>", "<s>", "</s>", "<unk>", *"abcd"])
SIZES = {"embedding_size": 16, "encoder_size": 32, "hidden_size": 32, "attention_size": 16, "readout_size": 16}


def reversals(count: int, seed: int) -> list[tuple[str, str]]:
    """Words of two to four letters and the same backwards."""
    generator = torch.Generator().manual_seed(seed)
    words = []
    for _ in range(count):
        length = int(torch.randint(2, 5, (), generator=generator))
        words.append("".join("abcd"[i] for i in torch.randint(0, 4, (length,), generator=generator)))
    return [(word, word[::-1]) for word in words]


def small_model(dropout: float = 0.0) -> RNNSearch:
    torch.manual_seed(0)
    dropouts = dict.fromkeys(("embedding_dropout", "memory_dropout", "state_dropout", "readout_dropout"), dropout)
    model = RNNSearch(RNNSearchConfig(len(LETTERS), len(LETTERS), **SIZES, **dropouts), LETTERS, LETTERS)
    model.reset_parameters("xavier")
    return model


def test_the_loss_equals_hand_arithmetic_over_real_tokens_only() -> None:
    # Two sentences of 2 and 1 tokens over 3 words; 0 is padding. exp(logits) are the weights below.
    weights = torch.tensor([[[1.0, 2.0, 5.0], [2.0, 1.0, 1.0]], [[1.0, 8.0, 1.0], [9.0, 90.0, 1.0]]])
    target = torch.tensor([[2, 1], [1, 0]])
    by_hand = -(math.log(5 / 8) + math.log(1 / 4) + math.log(8 / 10)) / 3
    assert float(sequence_loss(weights.log(), target, 0)) == pytest.approx(by_hand, rel=1e-6)
    uniform = -(
        (math.log(1 / 8) + math.log(2 / 8) + math.log(5 / 8))
        + (math.log(2 / 4) + math.log(1 / 4) + math.log(1 / 4))
        + (math.log(1 / 10) + math.log(8 / 10) + math.log(1 / 10))
    ) / (3 * 3)
    smoothed = float(sequence_loss(weights.log(), target, 0, 0.3))
    assert smoothed == pytest.approx(0.7 * by_hand + 0.3 * uniform, rel=1e-6)


def test_the_loss_takes_logits_and_normalises_them_once() -> None:
    logits, target = torch.randn(2, 3, 5), torch.tensor([[1, 2, 3], [4, 1, 2]])
    shifted = logits + 7.0  # a shift cancels in one softmax
    torch.testing.assert_close(sequence_loss(logits, target, 0), sequence_loss(shifted, target, 0))
    log_probs = logits.log_softmax(-1).gather(2, target.unsqueeze(2))
    torch.testing.assert_close(sequence_loss(logits, target, 0), -log_probs.mean())


def measured(model: RNNSearch, size: int) -> float:
    pairs = [Pair(LETTERS.encode(left), LETTERS.encode(right)) for left, right in reversals(40, seed=3)]
    alone = Processes(0, 1, torch.device("cpu"))
    return mean_loss(model, pairs, size=size, precision="float32", processes=alone, interrupted=lambda: False)


def test_exact_match_is_the_percentage_of_translations_that_are_their_references() -> None:
    translator = Translator(small_model().eval(), Characters(), Characters())
    sources = [left for left, _ in reversals(5, seed=3)]
    best = translator(sources)
    references = [*best[:2], f" {best[2]} ", "another", "abcd" * 9]
    pairs = [Pair(LETTERS.encode(left), LETTERS.encode("a")) for left in sources]
    alone = Processes(0, 1, torch.device("cpu"))
    values, found = measure_dev(
        translator,
        DevText(sources, references, pairs),
        RunOptions(metric="exact_match"),
        processes=alone,
        interrupted=lambda: False,
    )
    assert values["exact_match"] == 60.0 and len(found) == 5


def test_padding_does_not_change_what_is_measured() -> None:
    assert measured(small_model(), 40) == pytest.approx(measured(small_model(), 1), rel=1e-5)


def test_it_is_measured_without_dropout() -> None:
    model = small_model(dropout=0.5).train()
    assert measured(model, 20) == measured(model, 20) == measured(small_model(), 20)
    assert model.training


def test_adadelta_is_the_papers() -> None:
    model = small_model()
    optimizer = make_optimizer(model, OptimizerOptions(name="adadelta", learning_rate=1.0))
    weight = model.output.bias
    before, gradient = weight.detach().clone(), torch.linspace(-1, 1, len(weight))
    weight.grad = gradient.clone()
    optimizer.step()
    # Zeiler 2012, algorithm 1, from zero accumulators; rho 0.95, eps 1e-6.
    step = -math.sqrt(1e-6) / (0.05 * gradient.square() + 1e-6).sqrt() * gradient
    torch.testing.assert_close(weight.detach(), before + step)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("piece", [7, 2**15])
def test_adadelta_is_torchs(decay, piece, maximize, monkeypatch) -> None:
    monkeypatch.setattr(optimization, "PIECE", piece)
    ours, theirs = ([torch.linspace(-1, 1, 60).view(5, 12).requires_grad_(), torch.ones(3)] for _ in range(2))
    own = optimization.Adadelta(ours, lr=0.7, rho=0.9, eps=1e-6, weight_decay=decay, maximize=maximize)
    library = torch.optim.Adadelta(theirs, lr=0.7, rho=0.9, eps=1e-6, weight_decay=decay, maximize=maximize)
    for seed in range(4):
        gradient = torch.randn(5, 12, generator=torch.Generator().manual_seed(seed))
        ours[0].grad, theirs[0].grad = gradient.clone(), gradient.clone()
        own.step()
        library.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    mine, wanted = own.state_dict(), library.state_dict()
    torch.testing.assert_close(mine["state"], wanted["state"], rtol=1e-6, atol=1e-9)
    library.load_state_dict(mine)
    own.load_state_dict(wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_adadelta_is_torchs_to_the_bit_in_every_dtype(dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    start, *gradients = (torch.randn(5000, generator=generator).to(dtype) for _ in range(4))
    ours, theirs = (start.clone().requires_grad_() for _ in range(2))
    own = optimization.Adadelta([ours], lr=0.7, rho=0.95, eps=1e-6)
    library = torch.optim.Adadelta([theirs], lr=0.7, rho=0.95, eps=1e-6, foreach=False)
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        own.step()
        library.step()
    assert torch.equal(ours, theirs)


def test_adadelta_can_be_differentiated_through_and_steps_complex_parameters_as_torchs() -> None:
    found: dict[type, list[Tensor]] = {}
    for kind in (optimization.Adadelta, torch.optim.Adadelta):
        given, slope = torch.linspace(-1, 1, 12).requires_grad_(), torch.linspace(0.5, 2, 12).requires_grad_()
        moved = given.clone()
        moved.grad = slope * given
        kind([moved], differentiable=True).step()
        whole = torch.complex(torch.arange(3.0), torch.ones(3)).requires_grad_()
        whole.grad = torch.complex(torch.ones(3), torch.arange(3.0))
        kind([whole]).step()
        found[kind] = [*torch.autograd.grad(moved.square().sum(), [given, slope]), whole.detach()]
    assert all(map(torch.equal, *found.values()))


def test_collate_shifts_the_target() -> None:
    batch = collate([Pair([4, 5, 2], [6, 7, 2]), Pair([4, 2], [5, 2])], pad_id=0, bos_id=1)
    assert batch.source.tolist() == [[4, 5, 2], [4, 2, 0]]
    assert batch.source_lengths is not None and batch.source_lengths.tolist() == [3, 2]
    assert batch.target_input.tolist() == [[1, 6, 7], [1, 5, 0]]
    assert batch.target.tolist() == [[6, 7, 2], [5, 2, 0]]
    assert batch.tokens == 5
    assert collate([Pair([4, 2], [5, 2])], pad_id=0, bos_id=1).source_lengths is None
    with pytest.raises(ValueError, match="none may be empty"):
        pad([[1], []], 0)


def train(folder: Path, **changes: object) -> int:
    """A run on reversed words of letters; in ``folder`` / "run"."""
    folder.mkdir(exist_ok=True)
    for name, count, seed in (("train", 800, 1), ("dev", 60, 2)):
        text = "".join(f"{left}\t{right}\n" for left, right in reversals(count, seed))
        (folder / f"{name}.tsv").write_text(text)
    options: dict[str, object] = {
        "data.source": folder / "train.tsv",
        "data.dev_source": folder / "dev.tsv",
        "data.segmentation": "characters",
        "batch.size": 32,
        **{f"model.{name}": value for name, value in SIZES.items()},
        "run.directory": folder / "run",
        "run.device": "cpu",
        **changes,
    }
    return cli.main(["train", *(f"--{name}={value}" for name, value in options.items())])


def test_training_learns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"optimizer.learning_rate": 1e-2, "optimizer.schedule": "cosine", "run.epochs": 5, "run.log_every": 20}
    dropouts = {f"model.{part}_dropout": 0.1 for part in ("embedding", "memory", "readout")}
    assert train(tmp_path, **options, **dropouts) == 0
    said = capsys.readouterr().err
    losses = [float(line.split("dev loss ")[1].split()[0]) for line in said.splitlines() if "dev loss" in line]
    assert losses[-1] < 0.2 < 0.6 < losses[0]
    assert "left" in said and "tokens/s" in said and "waiting for data" in said
    assert Translator.from_pretrained(tmp_path / "run" / trainer.BEST)(["abcd"]) == ["dcba"]


def test_gradients_are_clipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    original = torch.optim.Adam.step

    def step(self, *arguments, **options):
        gradients = [parameter.grad for group in self.param_groups for parameter in group["params"]]
        norms.append(float(torch.cat([gradient.flatten() for gradient in gradients]).norm()))
        return original(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    assert train(tmp_path, **{"optimizer.clip_norm": 0.01, "run.updates": 3}) == 0
    assert len(norms) == 3 and all(norm <= 0.01 + 1e-6 for norm in norms)


def test_only_the_best_model_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses, saved = [3.0, 1.0, 2.0, 0.5, 0.5], []
    found = iter(losses)
    monkeypatch.setattr(measure, "mean_loss", lambda *arguments, **options: next(found))
    original = Translator.save

    def save(self, directory, *arguments, **options):
        if directory.name == trainer.BEST:
            saved.append(losses[len(losses) - 1 - found.__length_hint__()])
        return original(self, directory, *arguments, **options)

    monkeypatch.setattr(Translator, "save", save)
    assert train(tmp_path, **{"run.updates": 5, "run.evaluate_every": 1}) == 0
    assert saved == [3.0, 1.0, 0.5]


@pytest.fixture
def sigint_raises() -> Iterator[None]:
    """As in a terminal; a job in a shell's background inherits that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("sigint_raises")
def test_the_first_ctrl_c_is_a_flag_and_the_second_one_acts_at_once() -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interruptible((signal.SIGINT, signal.SIGTERM)) as interrupted:
        assert interrupted() == 0
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted() == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is handler
