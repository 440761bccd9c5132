"""`rnnsearch average`: one model from the mean of several checkpoints' weights."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from rnnsearch import segmentation, snapshots
from rnnsearch.checkpoint import CheckpointError, check_weights
from rnnsearch.command_line import new_parser, parse, positive
from rnnsearch.model import RNNSearch
from rnnsearch.outputs import check_directory
from rnnsearch.segmentation import Segmentation
from rnnsearch.snapshots import INITIAL
from rnnsearch.trainer import CHECKPOINTS

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def main(arguments: Sequence[str]) -> int:
    options = parse(_parser(), arguments)
    check_directory("--output", options.output)
    model, source, target, places = average(options.sources, last=options.last)
    for place in places:
        print(place, file=sys.stderr)
    model.save_pretrained(options.output, dtype=DTYPES[options.dtype])
    segmentation.save(options.output, source, target)
    print(f"the mean of these {len(places)} is in {options.output}", file=sys.stderr)
    return 0


def average(sources: Sequence[Path], *, last: int = 5) -> tuple[RNNSearch, Segmentation, Segmentation, Sequence[Path]]:
    """A model whose every weight is the mean, taken in float64, of those of the given models.

    Args:
        sources: directories of models, or of runs, which stand for their newest ``last`` checkpoints: the weights as
            they were trained, not their moving average.

    Returns:
        The model, the segmentation of both sides, and the checkpoints and models that were averaged.

    Raises:
        CheckpointError: a directory is neither, a run has fewer checkpoints, or the models do not fit together.
    """
    model: RNNSearch | None = None
    sums: dict[str, Tensor] = {}
    places: list[Path] = []
    for source in sources:
        home = source / INITIAL if (source / CHECKPOINTS).is_dir() else source
        now = RNNSearch.from_pretrained(home)
        assert now.source_vocabulary is not None and now.target_vocabulary is not None
        sides = segmentation.load(home)
        # Dropout is a matter of training; the rest is what a weight means.
        config = {name: value for name, value in now.config.to_dict().items() if not name.endswith("_dropout")}
        described = (config, now.source_vocabulary.tokens, now.target_vocabulary.tokens)
        if model is None:
            model, first, kept = now, described, sides
        alike = [
            *(one == other for one, other in zip(first, described, strict=True)),
            all(segmentation.same(one, other) for one, other in zip(kept, sides, strict=True)),
        ]
        for what, same in zip(("sizes", "sources", "targets", "segmentation"), alike, strict=True):
            if not same:
                raise CheckpointError(f"{source} and {sources[0]} cannot be averaged: they differ in {what}")
        for place, weights in _weights(source, home, now, last):
            places.append(place)
            for name, weight in weights.items():
                sums[name] = sums[name] + weight.double() if name in sums else weight.double()
    if model is None:
        raise ValueError("there is nothing to average")
    model.load_state_dict({name: (value / len(places)).float() for name, value in sums.items()})
    return model, *kept, places


def _weights(source: Path, home: Path, model: RNNSearch, last: int) -> Iterator[tuple[Path, Mapping[str, Tensor]]]:
    if home == source:
        yield source, model.state_dict()
        return
    # The last save of each update: it may have been saved before and after it was measured.
    found = list({snapshots.update_of(place): place for place in snapshots.every(source / CHECKPOINTS)}.values())
    if len(found) < last:
        raise CheckpointError(
            f"{source / CHECKPOINTS} holds checkpoints of {len(found)} updates and {last} are wanted: see run.keep"
        )
    for place in found[-last:]:
        tensors, _ = snapshots.load(place)
        weights = tensors.get("model", {})
        check_weights(place, weights, model.state_dict())
        yield place, weights


def _parser() -> ArgumentParser:
    description = "Write a model whose weights are the mean of those of a run's checkpoints, or of models."
    example = "example: rnnsearch average run --last 4 --output averaged"
    parser = new_parser("average", "[options] DIRECTORY ...", description, example, config=False)
    parser.add_argument(
        "sources",
        nargs="+",
        type=Path,
        metavar="DIRECTORY",
        help="of a run, for its newest checkpoints; or of a model, such as run/best",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIRECTORY", help="where the model is written")
    parser.add_argument("--last", type=positive, default=5, metavar="N", help="so many checkpoints of each run")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="what weights are stored as")
    return parser
