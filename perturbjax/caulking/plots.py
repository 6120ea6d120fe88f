"""The plots of a grid: accuracy against examples, and examples against the quality of the base."""

from pathlib import Path

from matplotlib.ticker import NullLocator

from perturbjax.caulking.headline import curve_name
from perturbjax.caulking.results import Curve, Results
from perturbjax.report.figure import BLUE, GREEN, GREY, INK, PURPLE, VERMILLION, label_right, new_figure, percent_axis, save
from perturbjax.report.words import count, percent, shorten

_COLORS = (BLUE, VERMILLION, GREEN, PURPLE)
_MARKERS = "osD^vP"


def plot_curves(path: Path, results: Results) -> None:
    """Accuracy against the number of examples, one curve a method and base, with intervals over seeds.

    Args:
        path: PNG to write.
        results: content of results.json.
    """
    figure, (axis,) = new_figure(4.2)
    axis.set_xscale("log", base=2)
    labels = []
    for number, curve in enumerate(results.curves):
        color = GREY if curve.sigma is None else _COLORS[number % len(_COLORS)]
        n, right = [point.samples for point in curve.points], [1 - point.error for point in curve.points]
        low, high = ([1 - point.interval[end] for point in curve.points] for end in (1, 0))
        axis.fill_between(n, low, high, color=color, alpha=0.15, linewidth=0)
        axis.plot(n, right, color=color, marker=_MARKERS[number % len(_MARKERS)], markersize=4.5, linewidth=1.8)
        labels.append((right[-1], shorten(curve_name(curve), 22), color))
    axis.axhline(1 - results.bases[0].error, color=INK, linewidth=1.2, linestyle=":")
    labels.append((1 - results.bases[0].error, "base alone", INK))
    for needed in results.curves[0].needed:
        axis.axhline(needed.accuracy, color="#bbbbbb", linewidth=1.0, linestyle=(0, (4, 2)), zorder=0)
    samples = [point.samples for point in results.curves[0].points]
    axis.set_xticks(samples, [count(n) for n in samples])
    axis.xaxis.set_minor_locator(NullLocator())
    percent_axis(axis, "y")
    axis.set_xlabel("labeled examples")
    axis.set_ylabel("right answers")
    label_right(axis, labels)
    save(figure, path)


def plot_needed(path: Path, results: Results) -> None:
    """n_req of the first accuracy against the error of the base alone, both on log axes; an arrow where n_req is above the largest n."""
    figure, (axis,) = new_figure(3.8)
    axis.set_xscale("log")
    axis.set_yscale("log", base=2)
    errors = {base.sigma: max(base.error, 0.5 / results.n) for base in results.bases}
    labels = []
    for number, method in enumerate(dict.fromkeys(curve.method for curve in results.caulked)):
        color = _COLORS[number % len(_COLORS)]
        curves = [curve for curve in results.caulked if curve.method == method]
        reached = [(errors[curve.sigma], curve) for curve in curves if curve.sigma is not None and _reached(curve)]
        reached.sort(key=lambda pair: pair[0])
        for x, curve in reached:
            needed = curve.needed[0]
            high = needed.high if needed.high is not None else curve.points[-1].samples
            axis.plot((x, x), (needed.low or needed.samples, high), color=color, linewidth=2.0)
        axis.plot(
            [x for x, _ in reached], [curve.needed[0].samples for _, curve in reached], color=color, marker=_MARKERS[number], linewidth=1.4
        )
        for curve in curves:
            if curve.sigma is not None and not _reached(curve):
                axis.plot(errors[curve.sigma], curve.needed[0].samples, marker="^", color=color, fillstyle="none", markersize=9)
        labels.append(([curve.needed[0].samples for curve in curves][-1], method, color))
    samples = [point.samples for point in results.curves[0].points]
    axis.set_yticks(samples, [count(n) for n in samples])
    axis.yaxis.set_minor_locator(NullLocator())
    ticks = sorted(set(errors.values()))
    axis.set_xticks(ticks, [percent(x) for x in ticks])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("wrong answers of the base alone")
    axis.set_ylabel(f"examples for {percent(results.curves[0].needed[0].accuracy)}")
    axis.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    for place, name, color in labels:
        axis.annotate(name, (1.0, place), (6, 0), xycoords=("axes fraction", "data"), textcoords="offset points", color=color, va="center")
    save(figure, path)


def _reached(curve: Curve) -> bool:
    return curve.needed[0].censored != "above"
