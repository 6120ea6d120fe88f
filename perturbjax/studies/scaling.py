"""N and K: what more candidates, and more votes, are worth; and whether a vote gains by support or by voting.

**Recorded**, from the committed matrix alone: of the first N' candidates (nested prefixes) the K best on one half of the questions are
measured on the other, over random halves. *gain* is what they score there beyond the mean of the whole population: chosen by luck, it is 0.

**Asked**: the K best of every prefix, and K candidates that nobody chose, answer questions of the run's test split, on which nothing is
chosen here. Their votes are compared to the base, paired.

**Diagnostics** of a vote of K. With m the number of right members of a question, accuracy = sum over m of p(m) q(m): p the share of
questions with m right members, q the share of those whose vote is right. The difference between the K best and K others is split exactly
into *support*, sum of (p - p') (q + q') / 2, and *voting*, sum of (p + p') (q - q') / 2; where only one of them has questions with m, its q
stands for both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro

from perturbjax.errors import InputError
from perturbjax.report import Comparison, comparison
from perturbjax.report.accounting import wilson
from perturbjax.report.words import percent, points, points_range
from perturbjax.runs.config import Machine, check_positive, check_seed
from perturbjax.runs.console import SILENT, Progress
from perturbjax.scoring import top_k
from perturbjax.studies.asking import reopen_search
from perturbjax.studies.estimates import TRADED, Estimate, halves
from perturbjax.tree import derived_seed

if TYPE_CHECKING:
    from perturbjax.inference.outputs import Outputs

SPLITS, RESAMPLES = 200, 400


@dataclass(frozen=True)
class Config:
    """What is measured. Field names are the flags of ``perturbjax study scaling``."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run directory of a search (randopt); one with --racing off has asked all candidates everything."""
    trust: tuple[str, ...] = ()
    """As for perturbjax evaluate."""
    top_k: int = 8
    """K, the most votes."""
    questions: int = 64
    """Questions of the test split that the members are asked; all of them where there are fewer."""
    seed: int = 0
    """Of the halves and of the candidates that nobody chose."""
    machine: Machine = field(default_factory=Machine)

    def validate(self) -> None:
        """Raise ``InputError`` for settings that cannot be used."""
        self.machine.validate()
        check_positive(self, "top_k", "questions")
        check_seed(self.seed)


@dataclass(frozen=True)
class Recorded:
    """``gain`` of the ``k`` best of the first ``n`` candidates, on questions that did not choose them; 95 %, candidates resampled."""

    n: int
    k: int
    gain: Estimate


@dataclass(frozen=True)
class Vote:
    """The vote of the ``k`` best of the first ``n`` candidates (``random``: of k that nobody chose), and how it compares to the base."""

    n: int
    k: int
    random: bool
    accuracy: Estimate
    over_base: Comparison


@dataclass(frozen=True)
class Diagnosis:
    """A vote of K: (K + 1,) shares of questions with m right members, and how often the vote is then right (None: no such question)."""

    p: tuple[float, ...]
    q: tuple[float | None, ...]

    @property
    def accuracy(self) -> float:
        return sum(p * q for p, q in zip(self.p, self.q, strict=True) if q is not None)


@dataclass(frozen=True)
class Results:
    """``best`` and ``random`` are the votes of ``config.top_k`` of all candidates; their difference is ``support`` + ``voting``."""

    config: Config
    source: str
    searched: int
    asked: int
    base: Estimate
    recorded: tuple[Recorded, ...]
    votes: tuple[Vote, ...]
    best: Diagnosis
    random: Diagnosis
    support: float
    voting: float

    @property
    def sentence(self) -> str:
        """What was found, a null as plainly as a finding."""
        largest = max(row.n for row in self.recorded)
        k = max(row.k for row in self.recorded)
        last = next(row for row in self.recorded if (row.n, row.k) == (largest, k))
        first = next(row for row in self.recorded if row.k == k)
        found = f"goes from {points(first.gain.value)} of {first.n} to {points(last.gain.value)} points of {largest} candidates"
        if not last.gain.above:
            found = "is " + (f"clearly below what luck gives ({TRADED})" if last.gain.below else "not clearly above what luck gives")
        vote = next(vote for vote in self.votes if (vote.n, vote.k, vote.random) == (largest, k, False))
        apart = f"{points(vote.over_base.difference)} points from the base, {points_range(vote.over_base.difference_interval)}"
        gain = points(self.best.accuracy - self.random.accuracy)
        return (
            f"What the {k} best keep on other questions {found}; their vote is {apart} ({vote.over_base.verdict}). "
            f"It is {gain} points from that of {k} that nobody chose: {points(self.support)} by support, {points(self.voting)} by voting."
        )


def run(config: Config, progress: Progress = SILENT) -> Results:
    """Reads, asks and measures; writes nothing.

    Args:
        config: the settings.
        progress: told what goes on.

    Raises:
        InputError: the settings, or what they name, cannot be used.

    >>> from pathlib import Path
    >>> from perturbjax.studies import scaling
    >>> print(scaling.run(scaling.Config(Path("RUN"))).sentence)  # doctest: +SKIP
    """
    config.validate()
    from perturbjax.randopt.flow import run_base, run_voters
    from perturbjax.randopt.scores import read_scores

    found = read_scores(config.run, config.trust, progress)
    candidates = np.flatnonzero(found.asked.any(axis=1))
    scores = found.scores[candidates][:, found.asked[candidates].all(axis=0)]
    if scores.shape[1] < 4 or len(candidates) < 2 * config.top_k:
        raise InputError(
            f"`top_k` {config.top_k}: {len(candidates)} candidates of {config.run} answered the same {scores.shape[1]} questions; at least "
            f"{2 * config.top_k} candidates and 4 questions are required"
        )
    sizes = prefixes(len(candidates), config.top_k)
    ks = sorted({config.top_k, *(k for k in (1, 2, 4, 8, 16, 32, 64) if k < config.top_k)})
    recorded = tuple(Recorded(n, k, kept(scores, n, k, config.seed)) for k in ks for n in sizes)

    parts, engine = reopen_search(config.run, config.trust, config.machine, progress)
    batch = engine.prepare(parts.splits.test[: config.questions], parts.template)
    chosen = {n: candidates[top_k(scores[:n], config.top_k)] for n in sizes}
    others = np.setdiff1d(candidates, chosen[len(candidates)])
    random = np.random.default_rng(derived_seed(config.seed, "random")).choice(others, config.top_k, replace=False)
    members = np.unique(np.concatenate([random, *chosen.values()]))
    base = run_base(engine, batch).scores[0]
    outputs = run_voters(engine, parts.population, found.index[members], batch, "asking", progress)
    pools = {(n, False): chosen[n] for n in sizes} | {(len(candidates), True): random}
    votes, diagnoses = [], {}
    for (n, is_random), mine in pools.items():
        curve, diagnosis = diagnose(outputs.take(np.searchsorted(members, mine)))
        diagnoses[n, is_random] = diagnosis
        for k in ks if n == len(candidates) else [config.top_k]:
            figures = comparison(curve[k - 1], base, derived_seed(config.seed, "bootstrap"))
            votes.append(Vote(n, k, is_random, _accuracy(curve[k - 1]), figures))
    best, unchosen = diagnoses[len(candidates), False], diagnoses[len(candidates), True]
    source = f"{parts.task.name}, {parts.model.name}, {config.run.name}: {len(candidates)} candidates"
    asked = len(batch.examples)
    return Results(config, source, scores.shape[1], asked, _accuracy(base), recorded, tuple(votes), best, unchosen, *shares(best, unchosen))


def prefixes(candidates: int, k: int) -> list[int]:
    """Ascending sizes: all candidates, half of them, a quarter and so on, as long as k can be chosen.

    >>> prefixes(36, 4)
    [4, 9, 18, 36]
    """
    sizes = [candidates]
    while sizes[0] // 2 >= k:
        sizes.insert(0, sizes[0] // 2)
    return sizes


def kept(scores: np.ndarray, n: int, k: int, seed: int) -> Estimate:
    """What the k best of the first n candidates of (N, D), chosen on half of the questions, score on the others beyond the mean of all."""
    generator = np.random.default_rng(derived_seed(seed, "kept"))
    one, other = halves(scores.astype(np.float64), generator, SPLITS)
    means = []
    for resample in range(RESAMPLES + 1):
        drawn = np.arange(n) if resample == 0 else np.sort(generator.integers(0, n, n))
        best = drawn[np.argsort(-one[:, drawn], axis=1, kind="stable")[:, :k]]
        means.append((np.take_along_axis(other, best, axis=1) - other.mean(axis=1, keepdims=True)).mean())
    low, high = np.quantile(means[1:], [0.025, 0.975])
    return Estimate(float(means[0]), (float(low), float(high)))


def diagnose(outputs: Outputs) -> tuple[np.ndarray, Diagnosis]:
    """The (K, B) scores of the votes of the first k members, and the diagnosis of the vote of all."""
    from perturbjax.randopt.flow import vote_curve

    curve = vote_curve(outputs).scores
    right = (outputs.scores > 0.5).sum(axis=0)
    sets = [curve[-1][right == m] for m in range(len(outputs.scores) + 1)]
    p = tuple(len(mine) / curve.shape[1] for mine in sets)
    return curve, Diagnosis(p, tuple(float(mine.mean(dtype=np.float64)) if len(mine) else None for mine in sets))


def shares(best: Diagnosis, other: Diagnosis) -> tuple[float, float]:
    """(support, voting): what of the difference in accuracy comes from more right members, and what from better votes."""
    support = voting = 0.0
    for p, q, p_other, q_other in zip(best.p, best.q, other.p, other.q, strict=True):
        mine, theirs = (q if q is not None else q_other), (q_other if q_other is not None else q)
        if mine is not None and theirs is not None:
            support += (p - p_other) * (mine + theirs) / 2
            voting += (p + p_other) * (mine - theirs) / 2
    return support, voting


def _accuracy(scores: np.ndarray) -> Estimate:
    total = float(scores.sum(dtype=np.float64))
    return Estimate(total / len(scores), wilson(total, len(scores)))


def table(results: Results) -> Iterator[str]:
    """The recorded curves, the votes, and the diagnosis."""
    yield f"{results.source}, {results.searched} search questions; members asked {results.asked} test questions"
    sizes = sorted({row.n for row in results.recorded})
    yield ""
    yield "recorded: points that the K best keep on other questions, over the mean of all candidates"
    yield f"{'':<8}" + "".join(f"{f'N = {n}':<22}" for n in sizes).rstrip()
    for k in sorted({row.k for row in results.recorded}):
        cells = [row.gain for row in results.recorded if row.k == k]
        shown = [f"{points(gain.value)} [{points(gain.interval[0])}, {points(gain.interval[1])}]" for gain in cells]
        yield f"{f'K = {k}':<8}" + "".join(f"{each:<22}" for each in shown).rstrip()
    yield ""
    yield f"{'vote on the test questions':<28} {'right':>7}  {'vs base':>7}  95 %"
    yield f"{'base':<28} {percent(results.base.value):>7}"
    for vote in results.votes:
        name = f"{vote.k} that nobody chose" if vote.random else f"{vote.k} best of {vote.n}"
        compared = f"{points(vote.over_base.difference):>7}  {points_range(vote.over_base.difference_interval)}"
        yield f"{name:<28} {percent(vote.accuracy.value):>7}  {compared}"
    yield ""
    yield f"{'right members':<16}" + "".join(f"{m:>6}" for m in range(len(results.best.p)))
    for name, diagnosis in (("best", results.best), ("unchosen", results.random)):
        yield f"{f'{name}: p, %':<16}" + "".join(f"{100 * p:>6.1f}" for p in diagnosis.p)
        yield f"{f'{name}: q, %':<16}" + "".join(f"{'-' if q is None else f'{100 * q:.0f}':>6}" for q in diagnosis.q)
