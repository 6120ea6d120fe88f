"""The plots of a RandOpt run."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, PercentFormatter

from perturbjax.randopt.results import Results
from perturbjax.randopt.results_table import search_words
from perturbjax.randopt.screened import Screening
from perturbjax.report import figure as draw
from perturbjax.report.words import percent

_MIN_BINS, _MAX_BINS = 12, 40


def plot_scores(path: Path, results: Results, sigmas: np.ndarray, scores: np.ndarray, asked: np.ndarray) -> None:
    """Score distribution of the population against the base: one histogram per sigma, on one scale.

    Args:
        path: PNG to write.
        results: content of results.json.
        sigmas: (N,) of each candidate.
        scores: (N,) mean search scores.
        asked: (N,) on how many examples; candidates that a race stopped are left out, a mean over fewer is another scale.
    """
    values = [float(s.sigma) for s in results.population.per_sigma]
    base, last = results.racing.rounds[-1].base_score, results.ties.score_at_k
    examples = results.splits.search
    started, (sigmas, scores) = sigmas, (values_[asked == examples] for values_ in (sigmas, scores))
    edges = _bins(np.append(scores, [base]), examples)
    figure, axes = draw.new_figure(1.5 + 0.95 * len(values), rows=len(values))
    tallest = max(np.histogram(_of(scores, sigmas, sigma), edges)[0].max() for sigma in values)
    voting: list[Axes] = []  # the panels of the sigmas that voters may come from
    for panel, (axis, sigma) in enumerate(zip(axes, values, strict=True)):
        mine = _of(scores, sigmas, sigma)
        axis.hist(mine, edges.tolist(), color=draw.BLUE, alpha=0.85, edgecolor="white", linewidth=0.6)
        axis.axvline(base, color=draw.INK, linewidth=1.8)
        if results.selection.sigma in ("all", sigma):
            axis.axvline(last, color=draw.VERMILLION, linewidth=1.4, linestyle=(0, (4, 2)))
            voting.append(axis)
        axis.set_ylim(0, max(1, tallest) * 1.12)
        axis.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        axis.text(0.012, 0.86, f"sigma {sigma:g}", transform=axis.transAxes, va="top", color=draw.INK, fontweight="bold")
        count, of = mine.size, _of(started, started, sigma).size
        words = f"{count} candidates" if count == of else f"{count} of {of} finished"
        words += f"\nmean {percent(mine.mean())}" if count else ""
        axis.text(0.012, 0.60, words, transform=axis.transAxes, va="top", color=draw.GREY, fontsize=9)
        if panel < len(values) - 1:
            axis.tick_params(labelbottom=False)
    span = edges[-1] - edges[0]
    axes[0].set_xlim(edges[0] - 0.22 * span, edges[-1] + 0.02 * span)
    # Room on the left for words, but no ticks below 0 % or above 100 %, which no score can have.
    axes[-1].xaxis.set_major_locator(FixedLocator([t for t in draw.round_ticks().tick_values(edges[0], edges[-1]) if 0 <= t <= 1]))
    axes[-1].xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes[-1].set_xlabel(f"search score: right answers of {examples}")
    figure.supylabel("candidates", fontsize=11)
    base_side = "right" if base <= last else "left"  # outwards, so that the two never overlap
    draw.label_top(axes[0], base, f"base {percent(base)}", draw.INK, base_side)
    draw.label_top(voting[0], last, f"last voter {percent(last)}", draw.VERMILLION, "left" if base_side == "right" else "right")
    draw.save(figure, path)


def plot_accuracy(path: Path, results: Results) -> None:
    """Vote accuracy on the test split against K: RandOpt, its controls with as many votes, the base and the best prompt; 95 % intervals."""
    figure, (axis,) = draw.new_figure(4.4)
    ks = sorted(map(int, results.randopt))
    curves = [
        ("RandOpt", results.randopt, draw.BLUE, "o", 2.4),
        ("self-consistency", results.self_consistency.curve, draw.VERMILLION, "s", 1.5),
        ("random ensemble", results.random_k.curve, draw.GREEN, "^", 1.5),
    ]
    base, prompted = results.base, results.best_prompt
    axis.axhspan(*base.interval, color=draw.GREY, alpha=0.14, linewidth=0)
    axis.axhline(base.accuracy, color=draw.INK, linewidth=1.5)
    labels = [(base.accuracy, "base", draw.INK)]
    if prompted.prompt != base.prompt:
        axis.axhline(prompted.accuracy, color=draw.PURPLE, linewidth=1.5, linestyle=(0, (5, 2)))
        labels.append((prompted.accuracy, "best prompt", draw.PURPLE))
    for number, (name, entries, color, marker, width) in enumerate(curves):
        x = np.asarray(ks) * 1.035 ** (number - 1)  # side by side, so that the bars do not hide each other
        y = np.array([entries[str(k)].accuracy for k in ks])
        bounds = np.array([entries[str(k)].interval for k in ks]).T
        style = {"color": color, "marker": marker, "markersize": 5.5, "linewidth": width, "zorder": 5 - number}
        axis.errorbar(x, y, np.abs(bounds - y), elinewidth=1, capsize=2.5, **style)
        labels.append((y[-1], name, color))
    chosen = results.selection.K
    ring = {"markersize": 13, "markerfacecolor": "none", "markeredgecolor": draw.BLUE, "zorder": 6}
    axis.plot(chosen / 1.035, results.chosen.accuracy, "o", **ring)
    axis.set(xscale="log", xlim=(ks[0] / 1.15, ks[-1] * 1.15), xlabel="K, number of votes (ringed: chosen on the select split)")
    axis.xaxis.set_major_locator(FixedLocator(ks))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_major_locator(draw.round_ticks())
    draw.percent_axis(axis, "y")
    axis.set_ylabel(f"right answers of {results.splits.test} test questions")
    draw.label_right(axis, labels)
    draw.save(figure, path)


def plot_density(path: Path, results: Results) -> None:
    """Fraction of candidates that score at least as well as the base on the search split, per sigma and in all, with 95 % intervals."""
    population = results.population
    groups = [(f"sigma {s.sigma:g}", s, draw.BLUE) for s in population.per_sigma] + [("all", population, draw.INK)]
    figure, (axis,) = draw.new_figure(1.3 + 0.5 * len(groups))
    for y, (_, group, color) in enumerate(groups):
        fraction, bounds = group.share_at_or_above_base, group.share_interval
        axis.plot(bounds, (y, y), color=color, linewidth=2.2, solid_capstyle="butt")
        axis.plot(fraction, y, "o", color=color, markersize=8)
        axis.annotate(percent(fraction), (fraction, y), (0, 8), textcoords="offset points", ha="center", color=color, fontsize=10)
    axis.set_yticks(range(len(groups)), [f"{name}\n{group.n} candidates" for name, group, _ in groups])
    axis.set(ylim=(len(groups) - 0.5, -0.7), xlim=(-0.03, 1.03))
    draw.percent_axis(axis, "x")
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel(f"candidates at or above the base's {percent(population.base_search_score)} on {search_words(results)}")
    draw.save(figure, path)


def plot_racing(path: Path, results: Results) -> None:
    """The race: who was still in it (the colored area is the work done, the grey one the work saved), and how those who went on scored."""
    rounds, examples = results.racing.rounds, results.splits.search
    figure, (field, scores) = draw.new_figure(5.6, rows=2)
    ends = np.array([r.examples for r in rounds])
    starts, candidates = np.append(0, ends[:-1]), [r.candidates for r in rounds]
    field.bar(0, candidates[0], width=examples, align="edge", color=draw.GREY, alpha=0.18)
    field.bar(starts, candidates, width=ends - starts, align="edge", color=draw.BLUE, alpha=0.85, edgecolor="white", linewidth=0.8)
    for start, end, number in zip(starts, ends, candidates, strict=True):
        field.annotate(
            str(number), ((start + end) / 2, number), (0, 3), textcoords="offset points", ha="center", color=draw.INK, fontsize=10
        )
    spent = f"{percent(results.racing.share)} of the tokens\nof asking all everything"
    field.text(0.985, 0.80, spent, transform=field.transAxes, ha="right", va="top", color=draw.INK, fontsize=10)
    field.set(ylim=(0, candidates[0] * 1.16), ylabel="candidates in the race")
    curves = [
        ("went on", [r.kept_mean_score for r in rounds], draw.BLUE, "o"),
        ("in the round", [r.mean_score for r in rounds], draw.GREEN, "^"),
        ("base", [r.base_score for r in rounds], draw.INK, "s"),
    ]
    for _, heights, color, marker in curves:
        scores.plot(ends, heights, color=color, marker=marker, markersize=5.5, linewidth=1.8)
    scores.set(xlim=(0, examples), xlabel="search questions asked so far", ylabel="mean score on them")
    scores.xaxis.set_major_locator(FixedLocator([0, *ends]))
    scores.yaxis.set_major_locator(draw.round_ticks())
    draw.percent_axis(scores, "y")
    draw.label_right(scores, [(heights[-1], name, color) for name, heights, color, _ in curves])
    draw.save(figure, path)


def plot_screening(path: Path, results: Results, screening: Screening, scores: np.ndarray, asked: np.ndarray) -> None:
    """What the gradient predicted for each candidate that was run, and what it scored.

    Args:
        path: PNG to write.
        results: content of results.json.
        screening: how the candidates were chosen.
        scores, asked: (N,) as for ``plot_scores``.
    """
    figure, (axis,) = draw.new_figure(3.6)
    ended, drawn, products = asked == results.splits.search, np.array(screening.drawn), np.array(screening.products)
    for mine, color, marker in ((ended & ~drawn, draw.BLUE, "o"), (ended & drawn, draw.VERMILLION, "^")):
        axis.plot(products[mine], scores[mine], marker, color=color, alpha=0.75, markersize=6)
    base = results.racing.rounds[-1].base_score
    axis.axhline(base, color=draw.INK, linewidth=1.5)
    axis.set(xlabel="change of mean log-odds that the gradient predicts", ylabel=f"search score, of {results.splits.search}")
    axis.yaxis.set_major_locator(draw.round_ticks())
    draw.percent_axis(axis, "y")
    groups = [(scores[ended & ~drawn], "put first", draw.BLUE), (scores[ended & drawn], "drawn", draw.VERMILLION)]
    labels = [(float(mine.mean()), f"{name}, mean", color) for mine, name, color in groups if mine.size]
    draw.label_right(axis, [(base, "base", draw.INK), *labels])
    draw.save(figure, path)


def _of(scores: np.ndarray, sigmas: np.ndarray, sigma: float) -> np.ndarray:
    return scores[sigmas.astype(np.float32) == np.float32(sigma)]


def _bins(values: np.ndarray, examples: int) -> np.ndarray:
    """Edges of bins that are whole steps of 1/examples, centered on the possible scores."""
    low, high = np.floor(values.min() * examples + 1e-6), np.ceil(values.max() * examples - 1e-6)
    spare = max(0, _MIN_BINS - int(high - low + 1))  # few distinct scores stay narrow bars
    low, high = low - spare // 2, high + spare - spare // 2
    step = int(np.ceil((high - low + 1) / _MAX_BINS))
    return (np.arange(low - 0.5, high + 0.5 + step, step)) / examples
