"""The plots of a training of a value network."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from perturbjax.ivl.results import WITH_VALUE, BaseEntries, Results
from perturbjax.report.figure import BLUE, GREEN, GREY, INK, VERMILLION, label_right, label_top, new_figure, percent_axis, round_ticks, save
from perturbjax.report.words import points, shorten

_NAME = 24
"""Longest line of a name beside its bar, in characters."""


def plot_learning(path: Path, results: Results, power: str) -> None:
    """Cross-entropy of the joined logits in training and validation beside the base's own, and below it the norm of z_V.

    Args:
        path: PNG to write.
        results: content of results.json.
        power: of the norm, "1" or "2".
    """
    figure, (losses, norms) = new_figure(5.6, rows=2)
    training = {name: [(look.step, look.losses[name]) for look in results.looks] for name in results.looks[0].losses}
    looked = [look for look in results.looks if look.validation]
    validation = {name: [(look.step, look.validation[name]) for look in looked] for name in (looked[0].validation if looked else ())}
    _curves(
        losses,
        [
            ("base, training", training["base_cross_entropy"], GREY, "", ":"),
            ("base, validation", validation.get("base_cross_entropy", []), INK, "", "-"),
            ("training", training["cross_entropy"], BLUE, "o", "-"),
            ("validation", validation.get("cross_entropy", []), VERMILLION, "s", "-"),
        ],
    )
    losses.set_ylabel("cross-entropy, nats a token")
    _curves(norms, [("training", training["norm"], BLUE, "o", "-"), ("validation", validation.get("norm", []), VERMILLION, "s", "-")])
    norms.set_ylim(bottom=0)
    norms.set_ylabel("mean |z_V|" if power == "1" else "mean z_V squared")
    norms.set_xlabel("optimizer steps")
    norms.xaxis.set_major_locator(MaxNLocator(7, integer=True, steps=[1, 2, 5, 10]))
    first, last, best = results.looks[0].step, results.looks[-1].step, results.best_step
    norms.set_xlim(0 if first == last else first - 0.03 * (last - first), last + 0.03 * max(1, last - first))
    for axis in (losses, norms):
        axis.axvline(best, color=GREEN, linewidth=1.4, linestyle=(0, (4, 2)), zorder=0)
    label_top(losses, best, f"weights of step {best}", GREEN, "right" if best > (first + last) / 2 or first == last else "left")
    save(figure, path)


def plot_gains(path: Path, results: Results) -> None:
    """What the value network takes off the base's cross-entropy on validation, with the norm in its loss and without, by optimizer steps.

    Args:
        path: PNG to write.
        results: content of results.json, with at least one look at validation.
    """
    figure, (axis,) = new_figure(3.2)
    axis.axhline(0, color=INK, linewidth=1.2)
    marks = zip(results.gains.items(), ((VERMILLION, "s"), (GREY, "o")), strict=False)
    _curves(axis, [(name, [(gain.step, gain.nats) for gain in gains], *mark, "-") for (name, gains), mark in marks])
    axis.set_ylabel("gain, nats a token")
    axis.set_xlabel("optimizer steps")
    axis.xaxis.set_major_locator(MaxNLocator(7, integer=True, steps=[1, 2, 5, 10]))
    save(figure, path)


def plot_effects(path: Path, measured: Sequence[tuple[tuple[str, ...], BaseEntries]]) -> None:
    """What the value network changes on each base, and beside the first also the other systems: differences to the base, 95 % intervals.

    Args:
        path: PNG to write.
        measured: the lines of a name, and the entries, of each base, the training base first.
    """
    (base, *_), first = measured[0]
    found = [(name, entries.with_value, BLUE) for name, entries in measured]
    found[1:1] = [((base, system), entry, GREY) for system, entry in first.systems.items() if system != WITH_VALUE]
    figure, (axis,) = new_figure(1.2 + 0.5 * len(found))
    axis.axvline(0, color=INK, linewidth=1.5)
    for y, (_, entry, color) in enumerate(found):
        axis.plot(entry.difference_interval, (y, y), color=color, linewidth=2.2, solid_capstyle="butt")
        axis.plot(entry.difference, y, "o", color=color, markersize=8)
        text = {"textcoords": "offset points", "ha": "center", "color": color, "fontsize": 10}
        text["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # readable where the line of zero passes
        axis.annotate(points(entry.difference), (entry.difference, y), (0, 8), **text)
    axis.set_yticks(range(len(found)), ["\n".join(shorten(line, _NAME) for line in name) for name, _, _ in found])
    axis.set_ylim(len(found) - 0.5, -0.7)
    axis.tick_params(axis="y", length=0)
    low, high = axis.get_xlim()
    if high - low < 0.05:  # no difference anywhere: an axis all the same
        axis.set_xlim(min(low, -0.05), max(high, 0.05))
    axis.xaxis.set_major_locator(round_ticks())
    percent_axis(axis, "x")
    axis.xaxis.set_major_formatter(lambda value, _: f"{round(100 * value):+d}" if round(100 * value) else "0")
    axis.set_xlabel("right answers against the base alone, in points")
    save(figure, path)


def _curves(axis: Axes, curves: Sequence[tuple[str, list[tuple[int, float]], str, str, str]]) -> None:
    """Named curves of (step, value) with their names at the right; those without a point are left out."""
    labels = []
    for name, places, color, marker, line in curves:
        if places:
            steps, values = zip(*places, strict=True)
            axis.plot(steps, values, color=color, marker=marker, markersize=4.5, linewidth=1.8, linestyle=line)
            labels.append((values[-1], name, color))
    axis.yaxis.set_major_locator(MaxNLocator(5))
    axis.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axis.set_axisbelow(True)
    label_right(axis, labels)
