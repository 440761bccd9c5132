"""The alignment of a source and its translation as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rnnsearch.model import Translation

END = "end"


def plot_alignment(path: Path, source: Sequence[str], translation: Translation) -> None:
    """Draw the attention weights of ``translation`` as a heat map: source left to right, target top to bottom.

    Raises:
        RuntimeError: matplotlib is not installed.
        ValueError: the name of the file has no ending, or one that matplotlib cannot write.
    """
    if not path.suffix:
        raise ValueError(f"the picture's name must end in .png or the like; got {path}")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RuntimeError("drawing needs matplotlib: pip install 'rnnsearch-kernels[plot]'") from error
    weights = translation.attn_weights.float().cpu().numpy()
    columns = [*source, END][: weights.shape[1]]
    rows = [*translation.tokens, END][: weights.shape[0]]
    cell, margin = 0.42, 1.1
    figure = Figure(figsize=(len(columns) * cell + margin + 0.5, len(rows) * cell + margin), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.xaxis.tick_top()
    image = axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    axes.set_xticks(range(len(columns)), columns, fontsize=11)
    axes.set_yticks(range(len(rows)), rows, fontsize=11, family="monospace")
    for place, label in ((len(source), axes.get_xticklabels()), (len(translation.tokens), axes.get_yticklabels())):
        for text in label[place:]:
            text.set(color="gray", style="italic", fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    # Thin white lines between the cells, so that neighbours can be told apart.
    axes.set_xticks([place - 0.5 for place in range(1, len(columns))], minor=True)
    axes.set_yticks([place - 0.5 for place in range(1, len(rows))], minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    bar = figure.colorbar(image, ax=axes, ticks=[0, 0.5, 1], shrink=0.8, pad=0.03)
    bar.set_label("attention", fontsize=9)
    bar.ax.tick_params(labelsize=9, length=0)
    bar.outline.set_visible(False)
    figure.savefig(path, dpi=150, bbox_inches="tight")
