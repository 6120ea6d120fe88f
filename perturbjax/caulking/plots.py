"""The plots of a grid: accuracy against examples, and examples against the quality of the base."""

from pathlib import Path

from matplotlib.ticker import MaxNLocator, NullLocator

from perturbjax.caulking.config import RATES
from perturbjax.caulking.results import Results, loggable
from perturbjax.report.figure import BLUE, GREEN, GREY, INK, PURPLE, VERMILLION, label_right, new_figure, percent_axis, save
from perturbjax.report.words import count, percent

_COLORS = (BLUE, VERMILLION, GREEN, PURPLE, GREY, INK)
_MARKERS = "osD^vP"
_LINES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1, 2)), (0, (6, 1.5, 1, 1.5, 1, 1.5)), (0, (1, 3)))
_METHODS = tuple(RATES)
_ASIDE = 0.02
"""Of the width of a plot, from one method to the next."""
_LABELS = 6
"""Names that stand beside their lines at most; more get a legend, in the order in which the lines end."""


def plot_curves(path: Path, results: Results) -> None:
    """Accuracy against the number of examples: a color a method, a line style a base; bands are intervals over seeds.

    Args:
        path: PNG to write.
        results: content of results.json.
    """
    figure, (axis,) = new_figure(4.2)
    axis.set_xscale("log", base=2)
    labels, handles = [], []
    sigmas = [base.sigma for base in results.bases]
    for curve in results.curves:
        kind = _METHODS.index(curve.method)
        line = _LINES[0 if curve.sigma is None else sigmas.index(curve.sigma) % len(_LINES)]
        n, right = [point.samples for point in curve.points], [1 - point.error for point in curve.points]
        low, high = ([1 - point.interval[end] for point in curve.points] for end in (1, 0))
        axis.fill_between(n, low, high, color=_COLORS[kind], alpha=0.12, linewidth=0)
        style = {"color": _COLORS[kind], "marker": _MARKERS[kind], "markersize": 4.5, "linewidth": 1.8, "linestyle": line}
        handles += axis.plot(n, right, **style)
        labels.append((right[-1], f"{curve.method}, {curve.sigma:g} off" if curve.sigma else curve.method, _COLORS[kind]))
    handles.append(axis.axhline(1 - results.bases[0].error, color=INK, linewidth=1.2, linestyle=":"))
    labels.append((1 - results.bases[0].error, "no caulk", INK))
    for needed in results.curves[0].needed:
        axis.axhline(needed.accuracy, color="#bbbbbb", linewidth=1.0, linestyle=(0, (4, 2)), zorder=0)
    samples = [point.samples for point in results.curves[0].points]
    axis.set_xticks(samples, [count(n) for n in samples])
    axis.xaxis.set_minor_locator(NullLocator())
    percent_axis(axis, "y")
    axis.set_xlabel("labeled examples")
    axis.set_ylabel("right answers")
    if len(labels) <= _LABELS:
        label_right(axis, labels)
    else:
        order = sorted(range(len(labels)), key=lambda number: labels[number], reverse=True)
        shown = [handles[number] for number in order], [labels[number][1] for number in order]
        axis.legend(*shown, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=10, handlelength=3.2)
    save(figure, path)


def plot_needed(path: Path, results: Results) -> None:
    """n_req of the first accuracy against the error of the base alone, both on log axes; an open triangle that points where n_req is, above
    the largest n or below the smallest. Methods of one base stand side by side."""
    figure, (axis,) = new_figure(3.8)
    axis.set_xscale("log")
    axis.set_yscale("log", base=2)
    samples = [point.samples for point in results.curves[0].points]
    errors = {base.sigma: loggable(base.error, results.n) for base in results.bases}
    low, high = min(errors.values()) / 1.1, max(errors.values()) * 1.1
    methods = list(dict.fromkeys(curve.method for curve in results.caulked))
    for number, method in enumerate(methods):
        kind = _METHODS.index(method)
        style = {"color": _COLORS[kind], "marker": _MARKERS[kind], "markersize": 6}
        aside = (high / low) ** (_ASIDE * (number - (len(methods) - 1) / 2))
        places = [(errors[curve.sigma] * aside, curve) for curve in results.caulked if curve.method == method and curve.sigma is not None]
        needs = sorted(((x, curve.needed[0]) for x, curve in places), key=lambda pair: pair[0])
        for x, needed in needs:
            axis.plot((x, x), (needed.low or needed.samples, needed.high or samples[-1]), color=_COLORS[kind], linewidth=2.0)
        known = [(x, needed.samples) for x, needed in needs if needed.censored == "no"]
        axis.plot([x for x, _ in known], [n for _, n in known], linewidth=1.4, label=method, **style)
        for x, needed in needs:
            if needed.censored != "no":
                marker = "^" if needed.censored == "above" else "v"
                axis.plot(x, needed.samples, **style | {"marker": marker, "fillstyle": "none", "markersize": 9})
    axis.set_yticks(samples, [count(n) for n in samples])
    axis.set_ylim(samples[0] / 1.3, samples[-1] * 1.3)
    ticks = [tick for tick in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= tick <= high]
    axis.set_xlim(low, high)
    axis.set_xticks(ticks, [percent(x) for x in ticks])
    for each in (axis.xaxis, axis.yaxis):
        each.set_minor_locator(NullLocator())
    axis.set_xlabel("wrong answers of the base alone")
    axis.set_ylabel(f"examples for {percent(results.curves[0].needed[0].accuracy)} right")
    axis.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axis.legend(frameon=False, fontsize=10)
    save(figure, path)
