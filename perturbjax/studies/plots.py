"""The figures of the studies."""

from __future__ import annotations

from pathlib import Path
from statistics import NormalDist

import numpy as np
from matplotlib.ticker import MaxNLocator, NullLocator

from perturbjax.report import figure as draw
from perturbjax.report.words import percent
from perturbjax.studies import density, discordance, linearity, rivals, scaling, screening, signals
from perturbjax.studies import forecasting as toy

_REGIMES = {"needle": draw.GREY, "plateau": draw.PURPLE, "thicket": draw.GREEN}


def plot_signals(path: Path, results: signals.Results) -> None:
    """A row for each base: one forecast, and the errors on every family with the name of the regime.

    Args:
        path: PNG to write.
        results: of the study.
    """
    k = results.config.top_k
    systems = (
        ("base", "base_error", "of_base", draw.INK, "o"),
        (f"{k} random", "random_error", "of_random", draw.VERMILLION, "^"),
        (f"{k} best", "top_error", "of_top", draw.BLUE, "s"),
    )
    figure, axes = draw.new_figure(7.6, rows=len(results.examples), columns=2)
    for example, left, right in zip(results.examples, axes[::2], axes[1::2], strict=True):
        t, future = np.arange(toy.LENGTH), np.arange(toy.CONTEXT, toy.LENGTH)
        left.axvspan(0, toy.CONTEXT - 0.5, color=draw.GREY, alpha=0.14, linewidth=0)
        left.plot(t, example.signal, color=draw.GREY, linewidth=3.5, alpha=0.45, label="signal")
        for name, _, forecast, color, _ in systems:
            left.plot(future, getattr(example, forecast), color=color, linewidth=1.3, label=name)
        left.set(ylim=(-toy.LIMIT * 1.05, toy.LIMIT * 1.05), ylabel=example.base)
        left.yaxis.label.set_fontweight("bold")
        cells = [cell for cell in results.cells if cell.base == example.base]
        for number, (_, error, _, color, marker) in enumerate(systems):
            places = np.arange(len(cells)) + 0.2 * (number - 1)
            found = [getattr(cell, error) for cell in cells]
            values = np.array([e.value for e in found])
            bounds = np.array([[max(e.interval[0], 1e-3), e.interval[1]] for e in found]).T
            right.errorbar(places, values, np.abs(bounds - values), color=color, marker=marker, markersize=5, linestyle="", elinewidth=1)
        right.axhline(1, color=draw.GREY, linewidth=1, linestyle=(0, (4, 2)))
        right.set(yscale="log", ylim=(1e-3, 300), xlim=(-0.5, len(cells) - 0.5), ylabel="error")
        right.yaxis.set_minor_locator(NullLocator())
        right.set_yticks([0.01, 0.1, 1, 10], ["0.01", "0.1", "1", "10"])
        for place, cell in enumerate(cells):
            words = f"{cell.regime}\n{100 * cell.density.value:.1f} %"
            style = {"ha": "center", "va": "top", "color": _REGIMES[cell.regime], "fontsize": 9}
            right.annotate(words, (place, 0.99), xycoords=("data", "axes fraction"), **style)
    axes[0].legend(fontsize=8, ncols=2, loc="lower left", frameon=False, handlelength=1.2, columnspacing=1)
    axes[0].set_title(f"a {signals.SHOWN}, ten values seen", fontsize=11)
    axes[1].set_title("error; share of solutions", fontsize=11)
    axes[-2].set_xlabel("time")
    axes[-1].set_xticks(range(len(toy.FAMILIES)), toy.FAMILIES)
    axes[-1].set_xlabel("1: a forecast without a model")
    draw.save(figure, path)


_COLORS = (draw.BLUE, draw.VERMILLION, draw.GREEN, draw.PURPLE, draw.INK)


def plot_density(path: Path, results: density.Results) -> None:
    """delta(m) as measured (steps) and without the noise of the questions (thin), against m: axes for each group, a color for each sigma.

    Args:
        path: PNG to write.
        results: of the study.
    """
    groups = list(dict.fromkeys(row.group for row in results.rows))
    sigmas = list(dict.fromkeys(row.sigma for row in results.rows))
    figure, axes = draw.new_figure(1.6 + 1.5 * len(groups), rows=len(groups))
    widest = max(0.05, *(abs(gain) for row in results.rows for gain in row.gains)) * 1.1
    margins = np.linspace(-widest, widest, 401)
    for group, axis in zip(groups, axes, strict=True):
        for row in (row for row in results.rows if row.group == group):
            color = _COLORS[sigmas.index(row.sigma) % len(_COLORS)]
            gains = np.array(row.gains)
            axis.step(margins, [(gains >= m - 1e-9).mean() for m in margins], color=color, linewidth=2, label=f"sigma {row.sigma:g}")
            if row.spread > 0:
                net = [1 - NormalDist(row.mean_gain.value, row.spread).cdf(m) for m in margins]
                axis.plot(margins, net, color=color, linewidth=1.1, linestyle=(0, (3, 2)))
        axis.axvline(0, color=draw.INK, linewidth=1.2)
        axis.set(ylim=(0, 1.02), xlim=(-widest, widest))
        draw.percent_axis(axis, "y")
        if len(groups) > 1:
            axis.text(0.985, 0.93, group, transform=axis.transAxes, ha="right", va="top", fontweight="bold", color=draw.INK)
    if any(row.spread > 0 for row in results.rows):
        axes[0].plot([], [], color=draw.GREY, linewidth=1.1, linestyle=(0, (3, 2)), label="net of luck")
    axes[0].legend(fontsize=9, loc="lower left", frameon=False)
    axes[-1].xaxis.set_major_locator(draw.round_ticks())
    axes[-1].xaxis.set_major_formatter(lambda value, _: f"{100 * value:+g}" if value else "base")
    axes[-1].set_xlabel(f"m, points over the base's {percent(results.base_score)} of {results.questions} questions")
    figure.supylabel("candidates at m or above", fontsize=11)
    draw.save(figure, path)


def plot_scaling(path: Path, results: scaling.Results) -> None:
    """Four axes: what the best keep against N, their vote against N and against K, and the right members of a question.

    Args:
        path: PNG to write.
        results: of the study.
    """
    figure, (gains, votes_n, votes_k, members) = draw.new_figure(6.2, rows=2, columns=2, share=False)
    ks, sizes = sorted({row.k for row in results.recorded}), sorted({row.n for row in results.recorded})
    for k, color in zip((ks[0], ks[-1]), _COLORS, strict=False):
        mine = [row.gain for row in results.recorded if row.k == k]
        low, high = ([gain.interval[end] for gain in mine] for end in (0, 1))
        gains.fill_between(sizes, low, high, color=color, alpha=0.14, linewidth=0)
        gains.plot(sizes, [gain.value for gain in mine], color=color, marker="o", markersize=5, linewidth=1.8, label=f"K = {k}")
    gains.axhline(0, color=draw.INK, linewidth=1)
    gains.set(xscale="log", xlabel="N, first candidates", ylabel="kept gain, points")
    gains.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}")
    gains.legend(fontsize=9, frameon=False)
    curves = (
        (votes_n, [v for v in results.votes if not v.random and v.k == ks[-1]], "n", draw.BLUE, f"{ks[-1]} best"),
        (votes_k, [v for v in results.votes if not v.random and v.n == sizes[-1]], "k", draw.BLUE, f"best of {sizes[-1]}"),
        (votes_k, [v for v in results.votes if v.random], "k", draw.VERMILLION, "unchosen"),
    )
    for axis, votes, along, color, name in curves:
        shift = 1.05 if color == draw.VERMILLION else 1
        x, y = np.array([getattr(v, along) for v in votes]) * shift, np.array([v.accuracy.value for v in votes])
        bounds = np.array([v.accuracy.interval for v in votes]).T
        axis.errorbar(x, y, np.abs(bounds - y), color=color, marker="o", markersize=5, linewidth=1.6, elinewidth=1, capsize=2, label=name)
    for axis, ticks, label in ((votes_n, sizes, "N, first candidates"), (votes_k, ks, "K, votes")):
        axis.axhspan(*results.base.interval, color=draw.GREY, alpha=0.14, linewidth=0)
        axis.axhline(results.base.value, color=draw.INK, linewidth=1.3, label="base")
        axis.set(xscale="log", xlabel=label, ylabel=f"vote on {results.asked} questions")
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        draw.percent_axis(axis, "y")
        axis.margins(y=0.2)
        axis.legend(fontsize=9, frameon=False, loc="lower left", ncols=2)
    gains.set_xticks(sizes, [str(size) for size in sizes])
    for axis in (gains, votes_n, votes_k):
        axis.xaxis.set_minor_locator(NullLocator())
    places = np.arange(len(results.best.p))
    for shift, diagnosis, color, name in ((-0.2, results.best, draw.BLUE, "best"), (0.2, results.random, draw.VERMILLION, "unchosen")):
        members.bar(places + shift, diagnosis.p, width=0.4, color=color, alpha=0.85, label=name)
    members.set(xlabel=f"right members of {ks[-1]}", ylabel="share of questions")
    draw.percent_axis(members, "y")
    members.margins(y=0.3)  # room for the legend
    members.legend(fontsize=9, frameon=False, loc="upper left", ncols=2)
    draw.save(figure, path)


def plot_discordance(path: Path, results: discordance.Results) -> None:
    """The rank correlations of the tasks, and D of the halves across tasks and within one.

    Args:
        path: PNG to write.
        results: of the study.
    """
    names = [task.name for task in results.tasks]
    figure, (grid, bars) = draw.new_figure(3.6, columns=2, share=False)
    values = np.array(results.correlations)
    grid.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1)
    for (row, column), value in np.ndenumerate(values):
        grid.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=9, color="white" if abs(value) > 0.6 else draw.INK)
    grid.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=9)
    grid.set_yticks(range(len(names)), names, fontsize=9)
    grid.spines[["left", "bottom"]].set_visible(False)
    grid.tick_params(length=0)
    grid.set_title("correlation of the rankings", fontsize=11)
    rows = (("all questions,\nacross tasks", results.discordance, draw.INK), ("halves,\nacross tasks", results.across, draw.BLUE))
    for place, (_, found, color) in enumerate(rows := (*rows, ("halves,\nwithin a task", results.within, draw.VERMILLION))):
        bars.plot(found.interval, (place, place), color=color, linewidth=2.2, solid_capstyle="butt")
        bars.plot(found.value, place, "o", color=color, markersize=8)
        bars.annotate(f"{found.value:.2f}", (found.value, place), (0, 8), textcoords="offset points", ha="center", color=color, fontsize=10)
    bars.set_yticks(range(len(rows)), [name for name, _, _ in rows], fontsize=9)
    bars.set(ylim=(len(rows) - 0.5, -0.6), xlabel="D (0: one ranking)")
    bars.grid(axis="x", color="#e4e4e4", linewidth=0.8)
    bars.set_axisbelow(True)
    draw.save(figure, path)


def plot_linearity(path: Path, results: linearity.Results) -> None:
    """Measured against predicted change of log-odds: a row of axes for each group, a column for each sigma; the line is linearity.

    Args:
        path: PNG to write.
        results: of the study.
    """
    groups = list(dict.fromkeys(row.group for row in results.rows))
    sigmas = list(dict.fromkeys(row.sigma for row in results.rows))
    figure, axes = draw.new_figure(0.7 + 1.55 * len(groups), rows=len(groups), columns=len(sigmas), share=False)
    for axis, row in zip(axes, results.rows, strict=True):
        widest = 1.15 * max(np.abs([*row.predicted, *row.measured]).max(), 1e-9)
        axis.axhline(0, color="#cccccc", linewidth=0.8)
        axis.axvline(0, color="#cccccc", linewidth=0.8)
        axis.plot((-widest, widest), (-widest, widest), color=draw.GREY, linewidth=1, linestyle=(0, (4, 2)))
        axis.plot(row.predicted, row.measured, "o", color=draw.BLUE if row.r.above else draw.GREY, markersize=4.5, alpha=0.85)
        axis.set(xlim=(-widest, widest), ylim=(-widest, widest))
        axis.xaxis.set_major_locator(MaxNLocator(3, symmetric=True))
        axis.yaxis.set_major_locator(MaxNLocator(3, symmetric=True))
        axis.tick_params(labelsize=8)
        axis.text(0.04, 0.96, f"r {row.r.value:.2f}", transform=axis.transAxes, va="top", fontsize=9, color=draw.INK)
    for axis, sigma in zip(axes, sigmas, strict=False):
        axis.set_title(f"sigma {sigma:g}", fontsize=11)
    for axis, group in zip(axes[:: len(sigmas)], groups, strict=True):
        axis.set_ylabel(group, fontweight="bold")
    figure.supxlabel("change of log-odds predicted by one backward pass, nats", fontsize=11)
    figure.supylabel("measured", fontsize=11)
    draw.save(figure, path)


def plot_screening(path: Path, results: screening.Results) -> None:
    """Measured change against the predicted one, of random and promising candidates: rows log-odds and accuracy, columns the gradient's
    questions and others.

    Args:
        path: PNG to write.
        results: of the study.
    """
    figure, axes = draw.new_figure(4.8, rows=2, columns=2)
    for axis, (measure, questions) in zip(axes, [(m, q) for m in ("log-odds", "accuracy") for q in ("gradient", "other")], strict=True):
        row, factor = results.row(questions, measure), 100 if measure == "accuracy" else 1
        for products, changes, color, marker, name in (
            (results.random_products, row.random, draw.VERMILLION, "o", "random"),
            (results.promising_products, row.promising, draw.BLUE, "^", "promising"),
        ):
            axis.plot(products, np.multiply(factor, changes), marker, color=color, markersize=4.5, alpha=0.8, label=name)
        axis.axhline(0, color="#cccccc", linewidth=0.8)
        axis.axvline(0, color="#cccccc", linewidth=0.8)
        axis.text(0.03, 0.97, f"r {row.r_words}", transform=axis.transAxes, va="top", fontsize=9, color=draw.INK)
    axes[0].set_title("questions of the gradient", fontsize=11)
    axes[1].set_title("other questions", fontsize=11)
    axes[0].set_ylabel("log-odds, nats")
    axes[2].set_ylabel("accuracy, points")
    axes[0].legend(fontsize=9, frameon=False, loc="lower right")
    figure.supxlabel(f"predicted change of {results.config.objective.replace('_', '-')}", fontsize=11)
    draw.save(figure, path)


def plot_rivals(path: Path, results: rivals.Results) -> None:
    """The paired difference of every searcher to the base: axes for each task, a line for each searcher; clear ones are filled.

    Args:
        path: PNG to write.
        results: of the study.
    """
    figure, axes = draw.new_figure(0.9 + 1.9 * len(results.tasks), rows=len(results.tasks))
    for axis, each in zip(axes, results.tasks, strict=True):
        rows = [row for row in each.rows if row.name != rivals.BASE]
        for place, row in enumerate(rows):
            color = draw.BLUE if "vote" in row.what else draw.VERMILLION
            found, clear = row.over_base, row.over_base.verdict != "no clear effect"
            axis.plot(np.multiply(100, found.difference_interval), (place, place), color=color, linewidth=2, solid_capstyle="butt")
            axis.plot(100 * found.difference, place, "o", color=color, markersize=7, markerfacecolor=color if clear else "white")
        axis.axvline(0, color=draw.INK, linewidth=1.2)
        axis.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=9)
        axis.set(ylim=(len(rows) - 0.5, -0.5))
        axis.set_title(f"{each.task}: base {percent(each.rows[0].accuracy.value)}", fontsize=11)
        axis.grid(axis="x", color="#e4e4e4", linewidth=0.8)
        axis.set_axisbelow(True)
    axes[-1].set_xlabel("points over the base, 95 % (blue: votes; red: one model)")
    draw.save(figure, path)
