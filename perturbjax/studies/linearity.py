"""Linearity: how well one backward pass predicts what noise does.

The log-odds of a question are those of its right choice against all others. One backward pass gives the gradient g of their mean over the
questions; the change that a candidate sigma E should make is then sigma <g, E>, with the noise E made leaf by leaf and never kept. It is
compared to the change measured on the same questions, over candidates: Pearson's r with Fisher's interval, and the slope of measured on
predicted, which is 1 where the model is linear. The products of all groups come from one making of the noise, because a group's candidate
has the noise of the whole one where its parameters move; they are exact for every sigma, because they are proportional to it.

A high r means that candidates could be screened by an inner product. It says nothing about accuracy, which is a step function of log-odds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from perturbjax.errors import InputError
from perturbjax.models.noise_groups import GROUPS, decoder_noise
from perturbjax.noise import Population, scales
from perturbjax.noise.distributions import DistributionName
from perturbjax.noise.spec import Scale, moving
from perturbjax.runs.config import Base, Machine, check_choices, check_positive, check_seed, check_text
from perturbjax.runs.console import SILENT, Progress
from perturbjax.studies.asking import check_one_device, load_base, load_questions, make_engine
from perturbjax.studies.estimates import Estimate
from perturbjax.studies.groups import check_groups
from perturbjax.tree import derived_seed


@dataclass(frozen=True)
class Config:
    """What is measured. Field names are the flags of ``perturbjax study linearity``."""

    base: Base = field(default_factory=Base)
    task: str = "sst2"
    """A multiple-choice task, as for randopt."""
    template: str | None = None
    """Prompt template, by name; the task's first when left out."""
    groups: tuple[str, ...] = ("all", "embedding", "attention", "mlp", "norms")
    """Parameters that move, comma separated; embedding includes the head."""
    sigmas: tuple[float, ...] = (0.001, 0.002, 0.005)
    """Noise scales, comma separated; all have the same noise."""
    noise: DistributionName = "gaussian"
    """As for randopt."""
    rank: int | None = None
    """As for randopt."""
    scale: Scale = "absolute"
    """As for randopt."""
    candidates: int = 12
    """Candidates of each group and sigma."""
    questions: int = 16
    """How many are asked, the last of the seed's order."""
    seed: int = 0
    """Of the candidates and the questions."""
    machine: Machine = field(default_factory=Machine)

    def validate(self) -> None:
        """Raise ``InputError`` for settings that cannot be used."""
        self.base.validate()
        self.machine.validate()
        check_text("task", self.task)
        check_choices(self)
        check_positive(self, "candidates", "questions", "rank")
        check_groups(self.groups)
        if self.candidates < 4:
            raise InputError(f"`candidates` {self.candidates}: at least 4 are required, or there is no interval")
        check_seed(self.seed)
        check_one_device(self.machine)
        self.population()

    def population(self) -> Population:
        """The candidates, at any of the sigmas."""
        try:
            Population(0, 0, self.sigmas)
            return Population(derived_seed(self.seed, "linearity"), self.candidates)
        except ValueError as error:
            raise InputError(f"`sigmas`{str(error).removeprefix('sigmas')}") from error


@dataclass(frozen=True)
class Row:
    """One group at one sigma: changes of the mean log-odds, in nats.

    Attributes:
        predicted, measured: (n,) of each candidate.
        r: their correlation; ``slope``: of measured on predicted.
        mean: measured mean, which a linear model would not have beyond chance.
    """

    group: str
    sigma: float
    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    r: Estimate
    slope: float
    mean: float

    @property
    def name(self) -> str:
        """``mlp at 0.002``."""
        return f"{self.group} at {self.sigma:g}"


@dataclass(frozen=True)
class Results:
    """``log_odds``: the base's mean over ``config.questions`` questions."""

    config: Config
    model: str
    log_odds: float
    rows: tuple[Row, ...]

    @property
    def sentence(self) -> str:
        """What was found, a null as plainly as a finding."""
        clear = [row.r.value for row in self.rows if row.r.above]
        null = [f"{row.name} (r {row.r.value:.2f})" for row in self.rows if not row.r.above]
        reach = f" (r from {min(clear):.2f} to {max(clear):.2f})" if clear else ""
        unclear = f"; not clearly for {', '.join(null)}" if null else ""
        return f"One backward pass predicts the change of log-odds in {len(clear)} of {len(self.rows)} rows{reach}{unclear}."


def run(config: Config, progress: Progress = SILENT) -> Results:
    """Predicts and measures; writes nothing.

    Args:
        config: the settings.
        progress: told what goes on.

    Raises:
        InputError: the settings, or what they name, cannot be used.

    >>> from perturbjax.studies import linearity
    >>> found = linearity.run(linearity.Config(sigmas=(1e-3,)))  # doctest: +SKIP
    >>> found.rows[0].r.words()  # doctest: +SKIP
    """
    config.validate()
    from perturbjax.inference.log_odds import GRADIENT_TOKENS, log_odds, objective_gradient, right_choices
    from perturbjax.randopt.flow import run_base, run_members
    from perturbjax.searchers.screening import leaf_products

    task, template, examples = load_questions(config.task, config.template, config.questions, config.seed)
    if task.kind != "choice":
        raise InputError(f"`task` {config.task}: a multiple-choice task is required; the log-odds of a generated reply are not known")
    model = load_base(config.base, config.machine, progress)
    noises = {group: decoder_noise(config.noise, config.rank, config.scale, GROUPS[group]) for group in config.groups}
    engine = make_engine(model, task, noises[config.groups[0]], config.machine)
    batch, right = engine.prepare(examples, template), right_choices(examples)
    _, gradient = objective_gradient(model.params, model.config, engine.prepare(examples, template, GRADIENT_TOKENS), "log_odds")

    population, rows, base = config.population(), [], 0.0
    everything = decoder_noise(config.noise, config.rank, config.scale)
    leaf_scales = scales(model.params, everything)
    products = leaf_products(gradient, population, everything, leaf_scales, np.arange(len(population)), progress)
    for group, noise in noises.items():
        engine = make_engine(model, task, noise, config.machine)
        base = log_odds(run_base(engine, batch).log_probs, right).mean()
        mine = np.sum([products[path] for path in moving(model.params, noise)], axis=0)
        for sigma in config.sigmas:
            of_sigma = replace(population, sigmas=(sigma,))  # the noise of a candidate does not depend on it
            outputs = run_members(engine, of_sigma, np.arange(len(population)), batch, f"noise in {group}, sigma {sigma:g}", progress)
            rows.append(row_of(group, sigma, sigma * mine, log_odds(outputs.log_probs, right).mean(axis=1) - base))
    return Results(config, model.name, float(base), tuple(rows))


def row_of(group: str, sigma: float, predicted: np.ndarray, measured: np.ndarray) -> Row:
    """The row of (n,) predicted and measured changes.

    Raises:
        InputError: one is not finite.
    """
    if not np.isfinite(measured).all():
        raise InputError(f"`sigmas` {sigma:g}: gives log-odds that are not finite with noise in {group}; lower it")
    x, y = predicted - predicted.mean(), measured - measured.mean()
    length = math.sqrt(float(x @ x) * float(y @ y))
    r = float(x @ y) / length if length > 0 else 0.0
    slope = float(x @ y) / float(x @ x) if x.any() else 0.0
    return Row(group, sigma, tuple(predicted.tolist()), tuple(measured.tolist()), fisher(r, len(x)), slope, float(measured.mean()))


def fisher(r: float, n: int) -> Estimate:
    """A correlation of n pairs, at least 4, with Fisher's interval.

    >>> fisher(0.9, 12).words()
    '0.90 [0.67, 0.97]'
    """
    z = math.atanh(min(max(r, -1 + 1e-12), 1 - 1e-12))
    half = 1.959964 / math.sqrt(n - 3)
    return Estimate(r, (math.tanh(z - half), math.tanh(z + half)))


def table(results: Results) -> Iterator[str]:
    """A line for every group and sigma."""
    config = results.config
    yield (
        f"{config.task}, {results.model}: mean log-odds {results.log_odds:+.3f} nats over {config.questions} questions; "
        f"{config.candidates} candidates a row"
    )
    yield f"{'noise in':<10} {'sigma':>8}  {'r, 95 %':<22} {'slope':>7}  {'predicted, sd':>13} {'measured, sd':>12} {'mean':>8}"
    for row in results.rows:
        predicted, measured = _spread(row.predicted), _spread(row.measured)
        figures = f"{row.r.words():<22} {row.slope:>7.2f}  {predicted:>13.4f} {measured:>12.4f} {row.mean:>+8.4f}"
        yield f"{row.group:<10} {row.sigma:>8g}  {figures}"


def _spread(changes: Sequence[float]) -> float:
    return float(np.std(changes, ddof=1))
