"""Figures of one style, as PNG files. Matplotlib's figure objects are used directly: no display, no global state.

The colors are Okabe and Ito's ("Color Universal Design", 2008), which stay apart under the common forms of color blindness; markers and
labels beside the lines say the same once more.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from perturbjax.runs.files import write_atomically

INK, GREY, BLUE, VERMILLION, GREEN, PURPLE = "#222222", "#767676", "#0072B2", "#D55E00", "#009E73", "#A6528B"
WIDTH = 6.4  # inches; with 11-point text still readable when a phone shows the figure 9 cm wide
DPI = 200
LINE = 0.22  # inches between names of 11 points, with what the margins of a panel take


def new_figure(height: float, rows: int = 1, columns: int = 1, share: bool = True) -> tuple[Figure, list[Axes]]:
    """A figure ``height`` inches high with ``rows`` x ``columns`` axes, row by row; with ``share`` those above each other share x."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(np.ravel(figure.subplots(rows, columns, sharex="col" if share else False)))
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=10, colors=INK)
        axis.xaxis.label.set_size(11)
        axis.yaxis.label.set_size(11)
    return figure, axes


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG, atomically; equal figures give equal bytes."""
    # Matplotlib would put its version inside.
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None}))


def round_ticks() -> MaxNLocator:
    """Few ticks at round numbers: whole percents, where the range is wide enough for them."""
    return MaxNLocator(7, steps=[1, 2, 5, 10], min_n_ticks=3)


def percent_axis(axis: Axes, which: Literal["x", "y"]) -> None:
    """Fractions in percent along one axis, with a grid behind the data."""
    (axis.xaxis if which == "x" else axis.yaxis).set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.grid(axis=which, color="#e4e4e4", linewidth=0.8)
    axis.set_axisbelow(True)


def label_top(axis: Axes, x: float, words: str, color: str, align: str) -> None:
    """A name above the axes at ``x``, to its ``"left"`` or ``"right"``."""
    offset = (-3 if align == "right" else 3, 3)
    axis.annotate(
        words, (x, 1.0), offset, xycoords=("data", "axes fraction"), textcoords="offset points", ha=align, color=color, fontsize=10
    )


def label_right(axis: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Names beside the right ends of the lines, pushed apart where they would overlap, each with a thin line to its end."""
    low, high = axis.get_ylim()
    ordered = sorted(labels)
    ends = np.array([y for y, _, _ in ordered])
    figure, spec = axis.get_figure(root=True), axis.get_subplotspec()
    assert figure is not None
    panel = figure.get_figheight() / (spec.get_gridspec().nrows if spec is not None else 1)
    gap = max(0.07, LINE / panel) * (high - low)
    # A crowded group at an edge keeps within the axes.
    room = gap * np.arange(len(ordered))
    heights = np.maximum(np.minimum(move_apart(ends, gap), high - room[::-1]), low + room)
    for height, end, (_, name, color) in zip(heights, ends, ordered, strict=True):
        axis.annotate(
            name,
            (1.0, end),
            (1.06, height),
            xycoords=("axes fraction", "data"),
            textcoords=("axes fraction", "data"),
            va="center",
            color=color,
            fontsize=11,
            # From the middle of the name's left side: a steep line would else cross the names beside it.
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.8, "shrinkA": 2, "shrinkB": 0, "relpos": (0, 0.5)},
        )


def move_apart(heights: np.ndarray, gap: float) -> np.ndarray:
    """Ascending heights moved apart to at least ``gap``; a crowded group stays centered on the mean of its members."""
    groups: list[list[float]] = []
    for height in heights:
        groups.append([height])
        while len(groups) > 1 and np.mean(groups[-1]) - np.mean(groups[-2]) < gap * (len(groups[-1]) + len(groups[-2])) / 2:
            groups[-2:] = [groups[-2] + groups[-1]]
    return np.concatenate([np.mean(group) + gap * (np.arange(len(group)) - (len(group) - 1) / 2) for group in groups])
