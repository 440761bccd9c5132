"""What a training run is made of: every field is a key of the YAML file and an option of `rnnsearch train`.

The descriptions below are what ``--help`` prints.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from rnnsearch.config import PRESETS

# What `--preset` sets besides the sizes. Those of RNNsearch-50 are the paper's (section 4, appendix B): Adadelta at
# rate 1, gradient norm 1, 80 sentences a minibatch of at most 50 words, 30,000 words a side.
_TRAINING_PRESETS: dict[str, dict[str, Any]] = {
    "rnnsearch-50": {
        "data.segmentation": "words",
        "data.vocabulary_size": 30000,
        "data.max_length": 50,
        "batch.size": 80,
        "model.init": "paper",
        "optimizer.name": "adadelta",
        "optimizer.learning_rate": 1.0,
        "optimizer.schedule": "constant",
    },
    "small": {"optimizer.warmup_updates": 1000},
    "tiny": {},
    "pronunciation": {
        "data.source_segmentation": "characters",
        "data.segmentation": "words",
        "batch.size": 128,
        "batch.sort": 100,
        **{f"model.{part}_dropout": 0.2 for part in ("embedding", "memory", "readout")},
        "optimizer.learning_rate": 2e-3,
        "optimizer.schedule": "cosine",
        "optimizer.warmup_updates": 200,
        "optimizer.label_smoothing": 0.1,
        "run.epochs": 8,
        "run.save_every": 500,
        "run.metric": "exact_match",
    },
}


@dataclass(frozen=True)
class DataOptions:
    """Parallel text: two files of lines, one .tsv or .jsonl file given as the source alone, or a Hugging Face dataset.

    Args:
        source: training text to translate from; or a .tsv (source, tab, target) or .jsonl file with both sides.
        target: its translations, line by line; leave it out where the source file has both sides.
        dev_source: the same to measure progress on.
        dev_target: translations of dev_source.
        source_key: the source's key in a .jsonl file or a dataset; in a dataset, translation.de is inside a column.
        target_key: the target's key, in the same way.
        dataset: a Hugging Face dataset, by name or folder, instead of source (needs the 'datasets' extra).
        dataset_config: which of its configurations, where it has several; none for a folder of save_to_disk.
        dataset_split: its split to train on.
        dataset_dev_split: its split to measure on, where dev_source is not given.
        segmentation: how text becomes tokens: words between white space, characters, or sentencepiece (BPE).
        source_segmentation: the same for the source alone, where it differs.
        vocabulary_size: tokens a side at most, the special ones included.
        min_count: a word or character that occurs less often is unknown.
        joint: sentencepiece learns one segmentation from both sides.
        sentencepiece_model: a trained model file to use for both sides; learnt from the training text where not given.
        max_length: a pair with more tokens than this on a side, its end included, is left out and counted.
        on_bad_line: an empty line, bad UTF-8 or a missing column is left out and counted (skip) or an error.
    """

    source: str | None = None
    target: str | None = None
    dev_source: str | None = None
    dev_target: str | None = None
    source_key: str = "source"
    target_key: str = "target"
    dataset: str | None = None
    dataset_config: str | None = None
    dataset_split: str = "train"
    dataset_dev_split: str = "validation"
    segmentation: Literal["words", "characters", "sentencepiece"] = "words"
    source_segmentation: Literal["words", "characters", "sentencepiece"] | None = None
    vocabulary_size: int = 30000
    min_count: int = 1
    joint: bool = True
    sentencepiece_model: str | None = None
    max_length: int = 100
    on_bad_line: Literal["skip", "error"] = "skip"


@dataclass(frozen=True)
class BatchOptions:
    """How pairs are put together. The order follows from run.seed alone, whatever the number of processes.

    Args:
        size: pairs a minibatch.
        tokens: where above 0, a minibatch is cut where its padded sources or targets would pass so many tokens.
        sort: so many minibatches are sorted by length together (the paper: 20).
        accumulate: minibatches an update.
    """

    size: int = 64
    tokens: int = 0
    sort: int = 20
    accumulate: int = 1


@dataclass(frozen=True)
class ModelOptions:
    """Sizes of the model and what is dropped from it in training.

    Args:
        embedding_size: of the tokens of both sides.
        encoder_size: of each direction of the encoder.
        encoder_layers: of the encoder, one upon the other.
        hidden_size: of the decoder.
        attention_size: of the attention's hidden layer.
        readout_size: after the maxout.
        attend_after: whether attention and readout follow from the state that has read the last token, or, as in the
            paper, from the state before it.
        reset_after: the GRU's convention, true as torch's, false as the paper's.
        embedding_dropout: on the embeddings of both sides.
        memory_dropout: on what the encoder hands to the decoder.
        state_dropout: on the recurrent states, one mask for a whole sentence.
        readout_dropout: on the last layer before the vocabulary.
        init: how weights are drawn: xavier, or the paper's (quicker to start with Adadelta).
    """

    embedding_size: int = 256
    encoder_size: int = 256
    encoder_layers: int = 1
    hidden_size: int = 256
    attention_size: int = 256
    readout_size: int = 256
    attend_after: bool = True
    reset_after: bool = True
    embedding_dropout: float = 0.0
    memory_dropout: float = 0.0
    state_dropout: float = 0.0
    readout_dropout: float = 0.0
    init: Literal["xavier", "paper"] = "xavier"


@dataclass(frozen=True)
class OptimizerOptions:
    """How the weights are changed.

    Args:
        name: adam, or adadelta (rho 0.95, eps 1e-6) as in the paper.
        learning_rate: the highest; 1.0 is adadelta's own.
        schedule: of the learning rate after the warm-up: constant; plateau (times plateau_factor whenever a measure
            on the dev text has not improved plateau_patience times); inverse_sqrt; cosine (to 0 at the run's end).
        warmup_updates: the rate rises linearly over so many updates.
        plateau_factor: what the rate is multiplied by.
        plateau_patience: measures without improvement before that.
        weight_decay: L2 penalty, added to the gradient.
        clip_norm: the gradient's norm at most.
        label_smoothing: part of the target's probability that is spread over the vocabulary.
        ema_decay: above 0, a moving average of the weights with this decay is measured and kept instead of them.
    """

    name: Literal["adam", "adadelta"] = "adam"
    learning_rate: float = 1e-3
    schedule: Literal["constant", "plateau", "inverse_sqrt", "cosine"] = "constant"
    warmup_updates: int = 0
    plateau_factor: float = 0.5
    plateau_patience: int = 2
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    label_smoothing: float = 0.0
    ema_decay: float = 0.0


@dataclass(frozen=True)
class RunOptions:
    """How long, how often, where.

    Args:
        directory: where everything goes: best/ (the model to translate with), checkpoints/, config.yaml.
        epochs: passes over the data at most; 0 is no limit.
        updates: updates at most; 0 is no limit.
        evaluate_every: updates between measures on the dev text; 0 measures after every epoch.
        save_every: updates between checkpoints; 0 saves at every measure. One is always saved at the end, on SIGTERM
            and on SIGINT.
        keep: checkpoints kept.
        metric: what decides which model is best: loss; bleu (needs the 'evaluate' extra); or exact_match, the
            percentage of dev sentences whose translation is the reference (pronunciations, recognised text).
        patience: measures without improvement before the run ends; 0 never ends it.
        samples: dev sentences that are translated and shown, with their alignments, at every measure.
        beam_size: of the translations that are measured and shown.
        log_every: updates between lines of progress.
        tensorboard: write curves to DIRECTORY/tensorboard (needs the 'tensorboard' extra).
        seed: decides everything random.
        precision: of the arithmetic: float32, or bf16 (autocast).
        device: cpu or cuda; auto takes what is there.
        backend: which implementation of the ops.
        max_nonfinite: an update whose loss or gradient is not finite is left out and its batch written to
            DIRECTORY/nonfinite; so many in a row end the run.
    """

    directory: str | None = None
    epochs: int = 10
    updates: int = 0
    evaluate_every: int = 0
    save_every: int = 0
    keep: int = 2
    metric: Literal["loss", "bleu", "exact_match"] = "loss"
    patience: int = 0
    samples: int = 2
    beam_size: int = 5
    log_every: int = 100
    tensorboard: bool = False
    seed: int = 1
    precision: Literal["float32", "bf16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    backend: str = "auto"
    max_nonfinite: int = 5


@dataclass(frozen=True)
class TrainSettings:
    """A whole run.

    Args:
        data: the text.
        batch: how pairs are put together.
        model: the model.
        optimizer: how the weights are changed.
        run: how long, how often, where.
    """

    data: DataOptions = field(default_factory=DataOptions)
    batch: BatchOptions = field(default_factory=BatchOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    run: RunOptions = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            group, key = name.split(".")
            if not getattr(getattr(self, group), key) >= least:
                raise ValueError(f"`{name}` must be at least {least}; got {getattr(getattr(self, group), key)}")
        for name in ("optimizer.learning_rate", "optimizer.clip_norm"):
            group, key = name.split(".")
            if not getattr(getattr(self, group), key) > 0:
                raise ValueError(f"`{name}` must be above 0; got {getattr(getattr(self, group), key)}")
        for name in ("label_smoothing", "ema_decay"):
            value = getattr(self.optimizer, name)
            if not 0 <= value < 1:
                raise ValueError(f"`optimizer.{name}` must be at least 0 and below 1; got {value}")
        if self.data.dataset is not None and self.data.source is not None:
            raise ValueError("`data.source` and `data.dataset` are two trainings' text: give one of them")
        segmentations = (self.data.source_segmentation, self.data.segmentation)
        if self.data.sentencepiece_model is not None and "sentencepiece" not in segmentations:
            raise ValueError("`data.sentencepiece_model` needs `data.segmentation` to be sentencepiece")
        if self.optimizer.schedule == "cosine" and not (self.run.epochs or self.run.updates):
            raise ValueError("`optimizer.schedule` cosine needs an end: `run.epochs` or `run.updates`")


_LEAST = {
    "data.vocabulary_size": 5,
    "data.min_count": 1,
    "data.max_length": 2,
    "batch.size": 1,
    "batch.tokens": 0,
    "batch.sort": 1,
    "batch.accumulate": 1,
    "optimizer.warmup_updates": 0,
    "optimizer.plateau_patience": 1,
    "optimizer.weight_decay": 0,
    "run.epochs": 0,
    "run.updates": 0,
    "run.evaluate_every": 0,
    "run.save_every": 0,
    "run.keep": 1,
    "run.patience": 0,
    "run.samples": 0,
    "run.beam_size": 1,
    "run.log_every": 1,
    "run.max_nonfinite": 1,
}


def preset(name: str) -> dict[str, Any]:
    """What ``--preset name`` sets, by dotted key."""
    known = {entry.name for entry in fields(ModelOptions)}
    sizes = {f"model.{key}": value for key, value in PRESETS[name].items() if key in known}
    return {**sizes, **_TRAINING_PRESETS[name]}
