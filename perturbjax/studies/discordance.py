"""Discordance of specialists: whether the candidates that are good at one task are others than those that are good at the next.

The same N candidates answer M tasks. Every column of the N x M matrix of mean scores is turned into percentile ranks (ties share their mean
rank), and D = 1 - the mean Pearson correlation of two different columns ("Neural Thickets", arXiv 2603.12228): 0 where one ranking serves
all tasks, 1 where the rankings have nothing in common.

Scores on few questions are noisy, and noise alone drives D to 1. So D is also measured between halves of the questions: *across*, one half
of a task against one half of another, beside *within*, one half of a task against the other half of the same task. Both have the same
noise: only what *across* has over *within* is discordance.

All candidates have one sigma, because a sigma that breaks the model ranks last on every task. A task on which all candidates of a column
score the same has no ranking; its correlations count as 0, and it is named.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from perturbjax.errors import InputError
from perturbjax.models.noise_groups import decoder_noise
from perturbjax.noise import Population
from perturbjax.noise.distributions import DistributionName
from perturbjax.noise.spec import Scale
from perturbjax.report.words import percent
from perturbjax.runs.config import Base, Machine, check_choices, check_positive, check_seed, check_text
from perturbjax.runs.console import SILENT, Progress
from perturbjax.studies.asking import load_base, load_questions, make_engine
from perturbjax.studies.estimates import Estimate, halves
from perturbjax.tree import derived_seed

SPLITS, RESAMPLES = 50, 400


@dataclass(frozen=True)
class Config:
    """What is measured. Field names are the flags of ``perturbjax study discordance``."""

    base: Base = field(default_factory=Base)
    tasks: tuple[str, ...] = ("sst2", "rte", "arc_easy", "boolq")
    """Tasks, comma separated, at least 2; each as for randopt, under its first template."""
    candidates: int = 32
    """N, the same for all tasks."""
    questions: int = 32
    """Questions of each task, the last of the seed's order."""
    sigma: float = 0.002
    """Noise scale of all candidates."""
    noise: DistributionName = "gaussian"
    """As for randopt."""
    rank: int | None = None
    """As for randopt."""
    scale: Scale = "absolute"
    """As for randopt."""
    seed: int = 0
    """Of the candidates, the questions and the halves."""
    machine: Machine = field(default_factory=Machine)

    def validate(self) -> None:
        """Raise ``InputError`` for settings that cannot be used."""
        self.base.validate()
        self.machine.validate()
        check_choices(self)
        check_positive(self, "candidates", "questions", "rank")
        for task in self.tasks:
            check_text("tasks", task)
        if len(self.tasks) < 2 or len(set(self.tasks)) < len(self.tasks):
            raise InputError(f"`tasks` {','.join(self.tasks)}: at least 2 are required, each once")
        for name in ("candidates", "questions"):
            if getattr(self, name) < 4:
                raise InputError(f"`{name}` {getattr(self, name)}: at least 4 are required")
        check_seed(self.seed)
        self.population()

    def population(self) -> Population:
        """The candidates."""
        try:
            return Population(derived_seed(self.seed, "discordance"), self.candidates, (self.sigma,))
        except ValueError as error:
            raise InputError(f"`sigma`{str(error).removeprefix('sigmas')}") from error


@dataclass(frozen=True)
class TaskScores:
    """One column: the base's score, and the (N,) mean scores of the candidates."""

    name: str
    base: float
    scores: tuple[float, ...]

    @property
    def ranked(self) -> bool:
        """Whether candidates differ at all."""
        return len(set(self.scores)) > 1


@dataclass(frozen=True)
class Results:
    """``correlations`` (M, M) and D are of all questions, ``across`` and ``within`` of halves; intervals resample the candidates."""

    config: Config
    model: str
    tasks: tuple[TaskScores, ...]
    correlations: tuple[tuple[float, ...], ...]
    discordance: Estimate
    across: Estimate
    within: Estimate
    excess: Estimate

    @property
    def sentence(self) -> str:
        """What was found, a null as plainly as a finding."""
        d = f"D = {self.discordance.words()} over {len(self.tasks)} tasks"
        halves = f"half a task against half another has {self.across.value:.2f}, against the rest of its own {self.within.value:.2f}"
        more = (
            f"more than noise makes by {self.excess.words()}"
            if self.excess.above
            else "not clearly more than the noise of so few questions"
        )
        flat = [task.name for task in self.tasks if not task.ranked]
        unranked = f" On {', '.join(flat)} all candidates score the same." if flat else ""
        return f"{d}; {halves}: {more}.{unranked}"


def run(config: Config, progress: Progress = SILENT) -> Results:
    """Asks all candidates all tasks; writes nothing.

    Args:
        config: the settings.
        progress: told what goes on.

    Raises:
        InputError: the settings, or what they name, cannot be used.

    >>> from perturbjax.studies import discordance
    >>> print(discordance.run(discordance.Config()).sentence)  # doctest: +SKIP
    """
    config.validate()
    from perturbjax.randopt.flow import run_base, run_members

    asked = [load_questions(name, None, config.questions, config.seed, "tasks") for name in config.tasks]
    model = load_base(config.base, config.machine, progress)
    population, matrices, bases = config.population(), [], []
    for task, template, examples in asked:
        engine = make_engine(model, task, decoder_noise(config.noise, config.rank, config.scale), config.machine)
        batch = engine.prepare(examples, template)
        bases.append(float(run_base(engine, batch).scores.mean(dtype=np.float64)))
        matrices.append(run_members(engine, population, np.arange(len(population)), batch, task.name, progress).scores.astype(np.float64))
    return measure(config, model.name, bases, np.stack(matrices))


def measure(config: Config, model: str, bases: list[float], scores: np.ndarray) -> Results:
    """The results of scores (M, N, D) of N candidates on D questions of each of M tasks."""
    generator = np.random.default_rng(derived_seed(config.seed, "discordance"))
    split = np.stack([halves(each, generator, SPLITS) for each in scores])  # (M, 2, 2 x splits, N)
    means = scores.mean(axis=2)
    everyone = np.arange(means.shape[1])
    figures = [_figures(means, split, everyone)]
    for _ in range(RESAMPLES):
        drawn = generator.integers(0, len(everyone), len(everyone))
        figures.append(_figures(means, split, drawn))
    values = np.array(figures)
    low, high = np.quantile(values[1:], [0.025, 0.975], axis=0)
    estimates = [Estimate(float(v), (float(a), float(b))) for v, a, b in zip(values[0], low, high, strict=True)]
    tasks = tuple(TaskScores(name, base, tuple(row.tolist())) for name, base, row in zip(config.tasks, bases, means, strict=True))
    correlations = tuple(tuple(row) for row in correlation(means).tolist())
    return Results(config, model, tasks, correlations, *estimates)


def _figures(means: np.ndarray, split: np.ndarray, drawn: np.ndarray) -> tuple[float, float, float, float]:
    """D, and of halves D across, D within, and the first less the second."""
    tasks = len(means)
    apart = ~np.eye(tasks, dtype=bool)
    whole = 1 - correlation(means[:, drawn])[apart].mean()
    one, other = (standardized(split[:, half][..., drawn]) for half in (0, 1))  # (M, 2 x splits, n)
    between = np.einsum("asn,bsn->ab", one, other) / split.shape[2]
    across, within = 1 - between[apart].mean(), 1 - between[~apart].mean()
    return float(whole), float(across), float(within), float(across - within)


def correlation(means: np.ndarray) -> np.ndarray:
    """Pearson's correlations (M, M) of the percentile ranks of rows (M, n); 0 where a row has no ranking."""
    ranks = standardized(means)
    return ranks @ ranks.T


def standardized(values: np.ndarray) -> np.ndarray:
    """Percentile ranks along the last axis, ties sharing their mean, less their mean and at length 1; 0 where all are equal."""
    from scipy.stats import rankdata  # half a second, and importing a study does without it

    ranks = rankdata(np.round(values, 9), axis=-1)
    ranks = ranks - ranks.mean(axis=-1, keepdims=True)
    length = np.sqrt(np.square(ranks).sum(axis=-1, keepdims=True))
    return np.divide(ranks, length, out=np.zeros_like(ranks), where=length > 0)


def table(results: Results) -> Iterator[str]:
    """Tasks, correlations, and D."""
    config = results.config
    yield f"{results.model}, sigma {config.sigma:g}, {config.candidates} candidates, {config.questions} questions of each task"
    names = [task.name for task in results.tasks]
    yield f"{'rank correlation':<18}" + "".join(f"{name[:10]:>11}" for name in names) + f"{'base':>10}{'mean':>9}{'best':>9}"
    for task, row in zip(results.tasks, results.correlations, strict=True):
        figures = f"{percent(task.base):>10}{percent(float(np.mean(task.scores))):>9}{percent(max(task.scores)):>9}"
        yield f"{task.name[:17]:<18}" + "".join(f"{r:>11.2f}" for r in row) + figures
    yield f"{'D':<24}{results.discordance.words()}"
    yield f"{'half across tasks':<24}{results.across.words()}"
    yield f"{'half within a task':<24}{results.within.words()}"
    yield f"{'across over within':<24}{results.excess.words('+.2f')}"
