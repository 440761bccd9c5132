"""The table at a glance: how many times faster than eager float32, a panel for each op."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report import Row, eager_of

# Baselines are greys, ours are colours; the lighter tone is bfloat16.
GREYS = {"eager": "#8c8c8c", "eager_hoisted": "#7a7a7a", "compile": "#4d4d4d", "graph": "#2b2b2b"}
COLOURS = ("#0b6e99", "#c8553d", "#5b8e3e", "#8457a3")
TITLES = {
    "beam_step": "beam decode step",
    "step": "decoder step",
    "additive_attention": "additive attention",
    "beam_search": "whole beam search",
    "scan": "teacher-forced decoder",
}
FORMATS = (".png", ".svg", ".pdf")
GAP = 0.9  # between the groups of a panel, in bars
INCHES = 0.21  # a bar's height


def why_no_picture(path: Path) -> str | None:
    if path.suffix not in FORMATS:
        return f"--plot must end in one of {', '.join(FORMATS)}; got {path}"
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return "--plot needs matplotlib: pip install 'rnnsearch-kernels[plot]'"
    return None


def draw(path: Path, rows: Sequence[Row], caption: str) -> None:
    """Bars of eager float32's median over each row's; the line at 1 is eager float32.

    The reference is left out where a backend with kernels of its own is there: it is the definition, not a racer;
    and the careful baseline is shown in float32 only.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ours = list(dict.fromkeys(row.backend for row in rows if row.backend not in GREYS))
    if len(ours) > 1 and "reference" in ours:
        ours.remove("reference")
    panels = {op: _groups(rows, op, ours) for op in TITLES}
    panels = {op: groups for op, groups in panels.items() if groups}
    lengths = [_length(groups) for groups in panels.values()]
    columns = min(2, len(panels))
    heights = [max(lengths[place : place + columns]) for place in range(0, len(lengths), columns)]
    figure = Figure(figsize=(6.4 * columns, 1.0 + sum(heights) * INCHES + 0.75 * len(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
    for place, (op, groups) in enumerate(panels.items()):
        axes = figure.add_subplot(grid[place // columns, place % columns])
        _panel(axes, groups, ours, heights[place // columns])
        axes.set_title(TITLES[op], loc="left", fontsize=11.5, fontweight="bold")
    figure.suptitle("Times faster than eager PyTorch in float32; the line is eager", fontsize=13, x=0.01, ha="left")
    figure.supxlabel(caption, fontsize=8, x=0.01, ha="left", color="#555555")
    figure.savefig(path, dpi=120)


Groups = dict[str, list[tuple[Row, float]]]


def _groups(rows: Sequence[Row], op: str, ours: Sequence[str]) -> Groups:
    """The bars of a panel by workload and batch: each row with its ratio."""
    groups: Groups = {}
    for row in rows:
        eager = eager_of(rows, row, "float32")
        careful = row.backend == "eager_hoisted" and row.dtype != "float32"
        if row.op == op and eager not in (None, row) and not careful and row.backend in (*ours, *GREYS):
            batched = row.rows != row.sentences and row.sentences > 1
            name = f"{row.workload}\n{row.sentences} at once" if batched else row.workload
            groups.setdefault(name, []).append((row, eager.median_ms / row.median_ms))
    return groups


def _length(groups: Groups) -> float:
    return sum(len(bars) for bars in groups.values()) + GAP * len(groups)


def _panel(axes: Any, groups: Groups, ours: Sequence[str], height: float) -> None:
    y, ticks = 0.0, []
    longest = max(ratio for bars in groups.values() for _, ratio in bars)
    axes.axvline(1.0, color="black", linewidth=0.8, zorder=3)
    for bars in groups.values():
        ticks.append(y + (len(bars) - 1) / 2)
        for row, ratio in bars:
            narrow = row.dtype != "float32"
            is_ours = row.backend in ours
            colour = COLOURS[ours.index(row.backend) % len(COLOURS)] if is_ours else GREYS[row.backend]
            axes.barh(y, ratio, height=0.86, color=colour, alpha=0.6 if narrow else 1.0)
            text = f"{ratio:.1f}× {row.backend}{' bfloat16' if narrow else ''}"
            # Short bars end left of the line; their text begins right of it.
            x = ratio if ratio > 1.0 else 1.0
            style = {"color": "black", "fontweight": "bold"} if is_ours else {"color": "#666666"}
            axes.annotate(text, (x, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8, **style)
            y += 1
        y += GAP
    axes.set_yticks(ticks, list(groups), fontsize=9.5)
    axes.set_ylim(height - 0.5 - GAP / 2, -0.5 - GAP / 2)
    axes.set_xlim(0, max(longest, 1.0) * 1.5)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
