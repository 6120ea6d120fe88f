"""Solution density: the share of candidates that score at least ``m`` better than the base (delta(m), arXiv 2603.12228), and how much of it
is luck.

A score on D questions is an accuracy with measurement noise, and the noise alone puts candidates above the base: of N that are all equal to
it, nearly half come out above, and a search would find them "better". Three figures stand against that.

- **net**: delta(m) if what repeats between questions is normal: its mean is the mean gain, its variance that between candidates in a
  two-way analysis of variance (``randopt.reliability``), with the noise of the questions taken out.
- **repeats**: split halves. Candidates that gain ``m`` on one half of the questions are measured on the other; the share of them that gain
  ``m`` there, beside the share of all candidates that do.
- **kept**: what those chosen gain on the other half beyond what all candidates gain there. Selection that finds luck keeps 0. It keeps
  less than 0 where candidates win some questions and lose others for it, as one does that gives the same answer more often: what it wins on
  one half it loses on the other.

The base's own luck on these questions shifts all gains alike. It is in delta(m) and in net; *kept* is free of it, and the interval of the
mean gain holds it (questions and candidates vary). Other intervals are over candidates: Wilson for shares, resampling for *kept*, which
is too narrow for fewer than a few dozen candidates. With many rows one of them is clear by chance.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Annotated

import numpy as np
import tyro

from perturbjax.errors import InputError
from perturbjax.models.noise_groups import GROUPS, decoder_noise
from perturbjax.noise import Population
from perturbjax.noise.distributions import DistributionName
from perturbjax.noise.spec import Scale
from perturbjax.report.accounting import wilson
from perturbjax.report.words import percent, points
from perturbjax.runs.config import Base, Machine, check_choices, check_once, check_positive, check_seed, check_text
from perturbjax.runs.console import SILENT, Progress
from perturbjax.studies.asking import load_base, load_questions, make_engine, reopen_search
from perturbjax.studies.estimates import TRADED, Estimate, halves, mean_of
from perturbjax.studies.groups import check_groups
from perturbjax.tree import derived_seed

SPLITS, RESAMPLES = 200, 1000


@dataclass(frozen=True)
class Config:
    """What is measured. Field names are the flags of ``perturbjax study density``."""

    run: Annotated[Path | None, tyro.conf.Positional] = None
    """Run directory of a search (randopt), whose committed scores are read; only its base is asked again. Without it candidates of each
    group of the model are scored."""
    trust: tuple[str, ...] = ()
    """With RUN, as for perturbjax evaluate."""
    margins: tuple[float, ...] = (0.0, 0.02, 0.05)
    """m: by how much of the accuracy a candidate must be better, comma separated; 0 counts ties."""
    base: Base = field(default_factory=Base)
    """Without RUN."""
    task: str = "sst2"
    """Without RUN, as for randopt."""
    template: str | None = None
    """Without RUN: prompt template, by name; the task's first when left out."""
    groups: tuple[str, ...] = ("all", "embedding", "attention", "mlp", "norms")
    """Without RUN: parameters that move, comma separated; embedding includes the head."""
    noise: DistributionName = "gaussian"
    """Without RUN, as for randopt."""
    rank: int | None = None
    """Without RUN, as for randopt."""
    scale: Scale = "absolute"
    """Without RUN: absolute gives all groups the same sigma, rms the same size relative to their weights."""
    sigmas: tuple[float, ...] = (0.001, 0.002)
    """Without RUN: noise scales, comma separated."""
    candidates: int = 16
    """Without RUN: candidates of each group and sigma."""
    questions: int = 32
    """Without RUN: how many are asked, the last of the seed's order."""
    seed: int = 0
    """Of the candidates, the questions and the halves."""
    machine: Machine = field(default_factory=Machine)

    def validate(self) -> None:
        """Raise ``InputError`` for settings that cannot be used."""
        self.base.validate()
        self.machine.validate()
        check_text("task", self.task)
        check_choices(self)
        check_positive(self, "candidates", "questions", "rank")
        check_groups(self.groups)
        for name in ("candidates", "questions"):
            if getattr(self, name) < 4:
                raise InputError(f"`{name}` {getattr(self, name)}: at least 4 are required, or there are no halves to compare")
        if not self.margins or not all(0 <= margin <= 1 for margin in self.margins):
            raise InputError(f"`margins` {','.join(map(str, self.margins))}: shares from 0 to 1 are required, such as 0,0.02")
        check_once("margins", self.margins)
        check_seed(self.seed)
        self.population()
        if self.run is None and self.trust:
            raise InputError(f"`trust` {','.join(self.trust)}: only a run names code; give RUN, or leave it out")
        mine, default = ({**vars(each.base), **{name: getattr(each, name) for name in OF_A_MODEL}} for each in (self, Config()))
        if self.run is not None and (given := [name for name in mine if mine[name] != default[name]]):
            raise InputError(f"`{given[0]}`: with RUN it is that of the search; leave it out, or leave out RUN")

    def population(self) -> Population:
        """Candidates of one group; those of all groups have the same noise where they move the same parameter."""
        try:
            return Population(derived_seed(self.seed, "density"), self.candidates * len(self.sigmas), self.sigmas)
        except ValueError as error:
            raise InputError(f"`sigmas`{str(error).removeprefix('sigmas')}") from error


OF_A_MODEL = ("task", "template", "groups", "noise", "rank", "scale", "sigmas", "candidates", "questions")
"""Settings that are read without RUN, as those of ``base`` are."""


@dataclass(frozen=True)
class Level:
    """At one margin.

    Attributes:
        margin: m.
        density: delta(m) as measured.
        net: delta(m) without the noise of the questions, if the gains are normal.
        repeats: of the candidates that gain m on one half of the questions, the share that do on the other; None where nobody did.
        by_chance: the share of all candidates that gain m on a half.
        kept: what those chosen on one half gain on the other beyond the mean of all; None where nobody was chosen.
    """

    margin: float
    density: Estimate
    net: float
    repeats: float | None
    by_chance: float
    kept: Estimate | None


@dataclass(frozen=True)
class Row:
    """One group at one sigma: gains of its candidates over the base.

    Attributes:
        gains: (n,) mean gains on all questions.
        mean_gain: their mean; ``tied``: the share of exactly 0.
        spread: standard deviation of what repeats between questions.
        levels: one of each margin.
    """

    group: str
    sigma: float
    gains: tuple[float, ...]
    mean_gain: Estimate
    tied: float
    spread: float
    levels: tuple[Level, ...]

    @property
    def name(self) -> str:
        """``mlp at 0.002``."""
        return f"{self.group} at {self.sigma:g}"


@dataclass(frozen=True)
class Results:
    """``source``: what was measured; ``base_score`` and all gains are on ``questions`` questions."""

    config: Config
    source: str
    questions: int
    base_score: float
    rows: tuple[Row, ...]

    @property
    def sentence(self) -> str:
        """What was found, a null as plainly as a finding."""
        real = [row.name for row in self.rows if any(level.kept and level.kept.above for level in row.levels)]
        rising = [row.name for row in self.rows if row.mean_gain.above]
        mean = f"is clearly better than the base for {', '.join(rising)}" if rising else "is nowhere clearly better than the base"
        stay = "candidates chosen on one half of the questions"
        said = f"{stay} stay clearly ahead of the others on the other half for {', '.join(real)}, in {len(real)} of {len(self.rows)} rows"
        if not real:
            said = f"{stay} are nowhere clearly ahead of the others on the other half: nothing shows that more than luck makes them better"
        fallen = [row.name for row in self.rows if any(level.kept and level.kept.below for level in row.levels)]
        behind = f" They fall clearly behind in {len(fallen)} of {len(self.rows)} rows: {TRADED}." if fallen else ""
        return f"The mean candidate {mean}; {said}.{behind}"


def run(config: Config, progress: Progress = SILENT) -> Results:
    """Measures; writes nothing.

    Args:
        config: the settings.
        progress: told what goes on.

    Raises:
        InputError: the settings, or what they name, cannot be used.

    >>> from pathlib import Path
    >>> from perturbjax.studies import density
    >>> found = density.run(density.Config(run=Path("RUN")))  # doctest: +SKIP
    >>> found.rows[0].levels[0].density.words()  # doctest: +SKIP
    """
    config.validate()
    return _of_model(config, progress) if config.run is None else _of_run(config, config.run, config.trust, progress)


def _of_run(config: Config, run: Path, trusted: Collection[str], progress: Progress) -> Results:
    from perturbjax.randopt.flow import run_base
    from perturbjax.randopt.scores import read_scores

    found = read_scores(run, trusted, progress)
    # A race asks some candidates less, and those that it asks more are a selection.
    candidates = found.asked.any(axis=1)
    columns = found.asked[candidates].all(axis=0)
    if candidates.sum() < 4 or columns.sum() < 4:
        answered = f"{candidates.sum()} candidates answered the same {columns.sum()} questions"
        raise InputError(f"{run}: {answered}; at least 4 of both are required")
    parts, engine = reopen_search(run, trusted, config.machine, progress)
    asked = [example for example, one in zip(parts.splits.search, columns, strict=True) if one]
    base = run_base(engine, engine.prepare(asked, parts.template)).scores[0]
    scores, sigmas = found.scores[candidates][:, columns], found.sigma[candidates]
    every = [(sigma, scores[sigmas == np.float32(sigma)]) for sigma in parts.population.sigmas]
    rows = [measure("run", float(sigma), mine, base, config) for sigma, mine in every if len(mine) >= 2]
    source = f"{parts.task.name}, {parts.model.name}, {run.name}: {len(scores)} candidates"
    return Results(config, source, int(columns.sum()), float(base.mean(dtype=np.float64)), tuple(rows))


def _of_model(config: Config, progress: Progress) -> Results:
    from perturbjax.randopt.flow import run_base, run_members

    task, template, examples = load_questions(config.task, config.template, config.questions, config.seed)
    model = load_base(config.base, config.machine, progress)
    population, rows, base = config.population(), [], np.zeros(0)
    sigmas = population.sigma_of(np.arange(len(population)))
    for group in config.groups:
        engine = make_engine(model, task, decoder_noise(config.noise, config.rank, config.scale, GROUPS[group]), config.machine)
        batch = engine.prepare(examples, template)
        base = run_base(engine, batch).scores[0]
        scores = run_members(engine, population, np.arange(len(population)), batch, f"noise in {group}", progress).scores
        rows += [measure(group, sigma, scores[sigmas == np.float32(sigma)], base, config) for sigma in config.sigmas]
    source = f"{task.name}, {model.name}, {config.candidates} candidates of each row"
    return Results(config, source, len(examples), float(base.mean(dtype=np.float64)), tuple(rows))


def measure(group: str, sigma: float, scores: np.ndarray, base: np.ndarray, config: Config) -> Row:
    """The row of candidates with scores (n, D) around a base with scores (D,)."""
    from perturbjax.randopt.reliability import reliability

    gains = scores.astype(np.float64) - base.astype(np.float64)
    means = gains.mean(axis=1)
    found = reliability(gains, gains.shape[1])
    spread = found.between**0.5 if found else 0.0
    split = halves(gains, np.random.default_rng(derived_seed(config.seed, "halves")), SPLITS)
    levels = tuple(_level(margin, means, spread, split, config.seed) for margin in config.margins)
    tied = float((np.abs(means) < 1e-9).mean())
    return Row(group, sigma, tuple(means.tolist()), _mean_gain(gains, spread), tied, spread, levels)


def _mean_gain(gains: np.ndarray, spread: float) -> Estimate:
    """Of (n, D) gains: the variance of its questions, each with the luck of the base on it, and that of its candidates."""
    by_question = mean_of(gains.mean(axis=0))
    half = np.hypot(by_question.value - by_question.interval[0], 1.96 * spread / len(gains) ** 0.5)
    return Estimate(by_question.value, (float(by_question.value - half), float(by_question.value + half)))


def _level(margin: float, means: np.ndarray, spread: float, split: np.ndarray, seed: int) -> Level:
    # Equal counts of right answers must compare equal whatever the order of summation was.
    at = margin - 1e-9
    reached = int((means >= at).sum())
    net = 1 - NormalDist(float(means.mean()), spread).cdf(margin) if spread > 0 else float(means.mean() >= at)
    chosen, other = split[0] >= at, split[1]
    if not chosen.any():
        return Level(margin, Estimate(reached / len(means), wilson(reached, len(means))), net, None, float((other >= at).mean()), None)
    generator, n = np.random.default_rng(derived_seed(seed, "kept")), len(means)
    weights = np.concatenate([np.ones((1, n)), generator.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)])
    # Sums over candidates of each split, with each candidate as often as it was drawn.
    number, gained, everyone = weights @ chosen.T, weights @ (chosen * other).T, weights @ other.T / n
    kept = (gained - number * everyone).sum(axis=1) / np.maximum(number.sum(axis=1), 1)
    low, high = np.quantile(kept[1:], [0.025, 0.975])
    repeats = float((chosen & (other >= at)).sum() / chosen.sum())
    density = Estimate(reached / n, wilson(reached, n))
    return Level(margin, density, net, repeats, float((other >= at).mean()), Estimate(float(kept[0]), (float(low), float(high))))


def table(results: Results) -> Iterator[str]:
    """A line for every group, sigma and margin; gains in points."""
    yield f"{results.source}; {results.questions} questions, base {percent(results.base_score)}; gains in points"
    yield (
        f"{'noise in':<9} {'sigma':>6} {'mean gain, 95 %':<18} {'m':>4} {'m or more, 95 %':<18} {'net':>6} {'repeats':>7} "
        f"{'chance':>6}  kept, 95 %"
    )
    for row in results.rows:
        head = f"{row.group:<9} {row.sigma:>6g} {_points(row.mean_gain):<18}"
        for level in row.levels:
            low, high = level.density.interval
            share = f"{percent(level.density.value)} [{100 * low:.0f}, {100 * high:.0f}]"
            repeats = "-" if level.repeats is None else f"{100 * level.repeats:.1f}"
            kept = "-" if level.kept is None else _points(level.kept)
            line = f"{head} {100 * level.margin:>4g} {share:<18} {100 * level.net:>6.1f} {repeats:>7} {100 * level.by_chance:>6.1f}  {kept}"
            yield line.rstrip()
            head = " " * len(head)


def _points(estimate: Estimate) -> str:
    low, high = estimate.interval
    return f"{points(estimate.value)} [{points(low)}, {points(high)}]"
