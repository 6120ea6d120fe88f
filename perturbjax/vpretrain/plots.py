"""The plots of a steered pretraining."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from perturbjax.report.figure import BLUE, GREEN, GREY, INK, PURPLE, VERMILLION, label_right, new_figure, percent_axis, round_ticks, save
from perturbjax.report.words import shorten
from perturbjax.train.problem import Look
from perturbjax.vpretrain.headline import labels
from perturbjax.vpretrain.results import START, Measured, correlation, probe_pairs

COLORS = {
    "value": BLUE,
    "plain": INK,
    "random": VERMILLION,
    "uniform": GREY,
    "self": PURPLE,
    "oracle": GREEN,
    "fine_tuning": "#CC9900",
}


def plot_learning(path: Path, arms: Sequence[Measured], last: Look, against: str) -> None:
    """A curve of each arm from step 0 on, against ``steps`` or ``seconds``; a panel for each loss and each accuracy of the look ``last``,
    those of one set below each other."""
    panels = [(kind, name) for name in last.validation for kind in ("validation", "accuracy") if name in getattr(last, kind)]
    shown, words = labels(last.validation), {"validation": "nats a token", "accuracy": "questions right"}
    figure, axes = new_figure(1.0 + 2.4 * len(panels), rows=len(panels))
    place: Callable[[Look], float] = (lambda look: look.step) if against == "steps" else (lambda look: look.seconds)
    before = next((arm.looks for arm in arms if arm.mode == START), ())
    for axis, (kind, name) in zip(axes, panels, strict=True):
        ends = []
        for arm in arms:
            found = [(place(look), getattr(look, kind)) for look in (*before, *arm.looks)]
            points = [(x, values[name]) for x, values in found if name in values]
            if arm.mode != START and points:
                x, y = zip(*points, strict=True)
                axis.plot(x, y, color=COLORS[arm.mode], marker="o", markersize=3.5, linewidth=1.8)
                ends.append((y[-1], arm.mode.replace("_", "-"), COLORS[arm.mode]))
        axis.set_ylabel(f"{shorten(shown[name], 24)}\n{words[kind]}")
        _grid(axis)
        if kind == "accuracy":
            _shares(axis)
        label_right(axis, ends)
    axes[-1].set_xlabel("optimizer steps" if against == "steps" else "seconds of steps")
    axes[-1].xaxis.set_major_locator(MaxNLocator(7, integer=against == "steps"))
    save(figure, path)


def plot_probe(path: Path, trainings: Sequence[Sequence[Look]], unit: str = ", nats") -> None:
    """Predicted against realized falls of the feedback loss, a point for each update of each training; r is a mean over trainings."""
    figure, (axis,) = new_figure(3.6)
    each = [probe_pairs(tuple(looks)) for looks in trainings]
    pairs, found = [pair for some in each for pair in some], [r for r in map(correlation, each) if r is not None]
    axis.axhline(0, color=GREY, linewidth=0.8)
    axis.axvline(0, color=GREY, linewidth=0.8)
    if pairs:
        x, y = zip(*pairs, strict=True)
        axis.plot(x, y, "o", color=BLUE, markersize=4, alpha=0.7)
    axis.set_xlabel(f"predicted fall of the feedback loss{unit}")
    axis.set_ylabel(f"realized fall{unit}")
    over = f", a mean over {len(found)} trainings" if len(found) > 1 else ""
    title = f"r = {sum(found) / len(found):.2f}{over}, {len(pairs)} updates" if found else "too few updates for r"
    axis.set_title(title, loc="left", fontsize=11)
    _grid(axis)
    save(figure, path)


def plot_designer(path: Path, arms: Sequence[Measured]) -> None:
    """Mean alpha and entropy of r against steps, of the arms with soft targets."""
    figure, axes = new_figure(4.2, rows=2)
    panels: Mapping[str, str] = {"alpha": "mean alpha", "entropy": "entropy of r, nats"}
    for axis, (name, words) in zip(axes, panels.items(), strict=True):
        labels = []
        for arm in arms:
            points = [(look.step, look.losses[name]) for look in arm.looks if name in look.losses]
            if points:
                x, y = zip(*points, strict=True)
                axis.plot(x, y, color=COLORS[arm.mode], marker="o", markersize=3.5, linewidth=1.8)
                labels.append((y[-1], arm.mode, COLORS[arm.mode]))
        axis.set_ylabel(words)
        _grid(axis)
        label_right(axis, labels)
    axes[-1].set_xlabel("optimizer steps")
    axes[-1].xaxis.set_major_locator(MaxNLocator(7, integer=True))
    save(figure, path)


def _shares(axis: Axes) -> None:
    """Percents between 0 and 100, of at least 20 points: what few questions make of chance should not fill the panel."""
    low, high = axis.get_ylim()
    wider = max(0.0, 0.2 - (high - low)) / 2
    axis.set_ylim(max(low - wider, -0.01), min(high + wider, 1.01))
    axis.yaxis.set_major_locator(round_ticks())
    percent_axis(axis, "y")


def _grid(axis: Axes) -> None:
    axis.yaxis.set_major_locator(MaxNLocator(5))
    axis.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axis.set_axisbelow(True)
