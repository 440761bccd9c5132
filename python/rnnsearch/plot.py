"""Pictures, in the manner of the paper's: alignments (figure 3) and BLEU by sentence length (figure 2)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from rnnsearch.checkpoint import write_atomically
from rnnsearch.scores import Bucket

END = "end"
ENDINGS = (".png", ".svg", ".pdf")
_STYLES = ("-", "--", "-.", ":")


def plot_alignment(path: Path, source: Sequence[str], target: Sequence[str], attn_weights: Tensor) -> None:
    """Draw attention weights as a heat map: source left to right, target top to bottom, 0 is black and 1 white.

    Args:
        path: the picture; its ending, one of ENDINGS, says which kind.
        source, target: words, without their ends of sentence.
        attn_weights: (target, source), each with or without its end of sentence.

    Raises:
        RuntimeError: matplotlib is not installed.
        ValueError: the file has another ending.
    """
    weights = attn_weights.float().cpu().numpy()
    columns = [*source, END][: weights.shape[1]]
    rows = [*target, END][: weights.shape[0]]
    cell, margin = 0.36, 1.1
    figure = new_figure(path, (len(columns) * cell + margin + 0.5, len(rows) * cell + margin))
    axes = figure.add_subplot()
    axes.xaxis.tick_top()
    image = axes.imshow(weights, cmap="gray", vmin=0, vmax=1, aspect="equal")
    # parse_math: a word with two dollar signs is no formula.
    upright = max(map(len, source), default=0) <= 2
    axes.set_xticks(range(len(columns)), columns, fontsize=11, rotation=0 if upright else 90, parse_math=False)
    axes.set_yticks(range(len(rows)), rows, fontsize=11, parse_math=False)
    for place, labels in ((len(source), axes.get_xticklabels()), (len(target), axes.get_yticklabels())):
        for text in labels[place:]:
            text.set(color="gray", style="italic", fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, ticks=[0, 0.5, 1], shrink=0.8, pad=0.03)
    bar.set_label("attention", fontsize=9)
    bar.ax.tick_params(labelsize=9, length=0)
    save_figure(figure, path)


def plot_bleu_by_length(path: Path, systems: Mapping[str, Sequence[Bucket]], *, length: str, bleu: str) -> None:
    """Draw a line for each of ``systems``: BLEU of each bucket over its mean length, with its confidence.

    Args:
        length: what the lengths are of, under the axis. bleu: which BLEU it is, beside the axis.

    Raises as :func:`plot_alignment`.
    """
    figure = new_figure(path, (6.4, 4.0))
    axes = figure.add_subplot()
    for number, (name, buckets) in enumerate(systems.items()):
        values = [bucket.score.value for bucket in buckets]
        sure = [bucket.score.confidence or 0.0 for bucket in buckets]
        style = _STYLES[number % len(_STYLES)]
        places = [bucket.mean_length for bucket in buckets]
        axes.errorbar(places, values, sure, label=name, linestyle=style, marker="o", markersize=4, capsize=3)
    axes.set(xlabel=length, ylabel=bleu, xlim=(0, None), ylim=(0, None))
    axes.grid(linewidth=0.4, alpha=0.6)
    axes.legend(loc="lower left", frameon=False)
    for text in axes.get_legend().get_texts():
        text.set_parse_math(False)
    save_figure(figure, path)


def check_ending(path: Path, option: str = "a picture") -> None:
    """Raises as :func:`plot_alignment`; ``option`` is the one that the picture was asked for with."""
    if path.suffix not in ENDINGS:
        raise ValueError(f"{option} must end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}; got {path}")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise RuntimeError("drawing needs matplotlib: pip install 'rnnsearch-kernels[plot]'") from error


def new_figure(path: Path, size: tuple[float, float]) -> Any:
    """A matplotlib figure of ``size`` inches, for :func:`save_figure`. Raises as :func:`plot_alignment`."""
    check_ending(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path) -> None:
    from matplotlib import rc_context

    drawn = io.BytesIO()
    # Text stays text in an .svg: it can be found, and is shown in the reader's fonts.
    with rc_context({"svg.fonttype": "none"}):
        figure.savefig(drawn, format=path.suffix[1:], dpi=150, bbox_inches="tight")
    write_atomically({path: drawn.getvalue()})
