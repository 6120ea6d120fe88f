"""Screening: whether one gradient finds, in a huge population, the candidates that a search would have to run to find.

All N candidates get their inner product with the gradient of a smooth objective on some questions (``searchers.screening``); none is run.
Then *random* candidates, the first of the population, and the most *promising* ones, those with the highest products of all N, answer the
questions of the gradient and as many *other* questions.

- **r**: Pearson's correlation of product and measured change of log-odds over the random candidates (Fisher's interval), and Spearman's
  with the change of accuracy.
- **recall**: of the true top K of the random candidates, the share that is among the quarter, or the half, with the highest products;
  chance is 0.25 and 0.5. Candidates that tie for the last places of the top K share them.
- **gain**: mean of the promising less mean of the random candidates; resampled. On the questions of the gradient it is what was aimed at;
  on the others it is what screening is worth.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from perturbjax.errors import InputError
from perturbjax.models.noise_groups import GROUPS, decoder_noise
from perturbjax.noise import Population, scales
from perturbjax.noise.distributions import DistributionName
from perturbjax.noise.spec import Scale
from perturbjax.report.words import count, percent, points
from perturbjax.runs.config import Base, Machine, check_choices, check_positive, check_seed, check_text
from perturbjax.runs.console import SILENT, Progress
from perturbjax.studies.asking import check_one_device, load_base, load_questions, make_engine, population_of
from perturbjax.studies.estimates import Estimate
from perturbjax.studies.groups import check_group
from perturbjax.studies.linearity import fisher
from perturbjax.tasks.base import Objective
from perturbjax.tree import derived_seed

KEPT = (0.25, 0.5)
"""Shares of the random candidates that are kept for the recall."""
RESAMPLES = 2000


@dataclass(frozen=True)
class Config:
    """What is measured. Field names are the flags of ``perturbjax study screening``."""

    base: Base = field(default_factory=Base)
    task: str = "sst2"
    """A multiple-choice task, as for randopt."""
    template: str | None = None
    """Prompt template, by name; the task's first when left out."""
    objective: Objective = "log_odds"
    """What is differentiated: the mean log-odds of the right choice, or its mean probability among the choices."""
    group: str = "all"
    """Parameters that move: all, embedding (and head), attention, mlp or norms."""
    noise: DistributionName = "gaussian"
    """As for randopt."""
    rank: int | None = 1
    """As for randopt. At a low rank a candidate costs about one token's forward pass; None: full rank, whose noise costs far more."""
    scale: Scale = "absolute"
    """As for randopt."""
    sigma: float = 0.002
    """Noise scale of all candidates."""
    population: int = 10_000
    """N, candidates that are screened."""
    candidates: int = 24
    """Random ones that are run."""
    promising: int = 8
    """Of the highest products, that are run."""
    top_k: int = 4
    """K of the recall."""
    questions: int = 32
    """Questions of the gradient, and as many others; the last of the seed's order."""
    seed: int = 0
    """Of the candidates and the questions."""
    machine: Machine = field(default_factory=Machine)

    def validate(self) -> None:
        """Raise ``InputError`` for settings that cannot be used."""
        self.base.validate()
        self.machine.validate()
        check_text("task", self.task)
        check_choices(self)
        check_positive(self, "candidates", "questions", "rank", "population", "promising", "top_k")
        check_group(self.group)
        if self.candidates < 8:
            raise InputError(f"`candidates` {self.candidates}: at least 8 are required, or there is no recall to measure")
        if self.top_k >= self.candidates:
            raise InputError(f"`top_k` {self.top_k}: fewer than the {self.candidates} `candidates` are required")
        if self.population < self.candidates + self.promising:
            raise InputError(
                f"`population` {self.population}: at least {self.candidates + self.promising} are required, those that are run"
            )
        check_seed(self.seed)
        check_one_device(self.machine)
        self.drawn()

    def drawn(self) -> Population:
        """The population."""
        return population_of("population", "screening", self.seed, self.population, self.sigma)


@dataclass(frozen=True)
class Row:
    """One measure on one set of questions; changes against the base.

    Attributes:
        random, promising: (n,) changes of the candidates that were run.
        r: Pearson's correlation with the products for log-odds, Spearman's for accuracy, over the random ones; None where all changed
            alike.
        recall: for each of ``KEPT``.
        gain: mean of the promising less that of the random.
    """

    questions: Literal["gradient", "other"]
    measure: Literal["log-odds", "accuracy"]
    random: tuple[float, ...]
    promising: tuple[float, ...]
    r: Estimate | None
    recall: tuple[Estimate, ...]
    gain: Estimate

    @property
    def r_words(self) -> str:
        return "undefined" if self.r is None else f"{self.r.value:.2f}"


@dataclass(frozen=True)
class Cost:
    """What screening costs: ``seconds`` a candidate, measured after compilation; ``tokens``, of the plain model's forward pass, that take
    as long; ``formula``, the same by floating-point operations (``searchers.Cost``); ``drawn``, numbers of noise a candidate."""

    seconds: float
    tokens: float
    formula: float
    drawn: int


@dataclass(frozen=True)
class Results:
    """``products`` (of the random, and of the promising) are changes of the objective as the gradient predicts them; ``deviation`` is that
    of all N."""

    config: Config
    model: str
    base: float
    deviation: float
    random_products: tuple[float, ...]
    promising_products: tuple[float, ...]
    rows: tuple[Row, ...]
    cost: Cost

    def row(self, questions: str, measure: str) -> Row:
        return next(row for row in self.rows if (row.questions, row.measure) == (questions, measure))

    @property
    def sentence(self) -> str:
        """What was found, a null as plainly as a finding."""
        seen, other = (self.row(name, "log-odds") for name in ("gradient", "other"))
        accuracy = self.row("other", "accuracy").gain
        clear = "clearly above" if accuracy.above else "clearly below" if accuracy.below else "not clearly different from"
        half = seen.recall[-1]
        return (
            f"The gradient predicts log-odds with r {seen.r_words} on its questions and {other.r_words} on others; the better half "
            f"by it holds {percent(half.value)} of the true top {self.config.top_k}. The {self.config.promising} most promising of "
            f"{count(self.config.population)} are {clear} random ones on other questions: {points(accuracy.value)} points of accuracy, "
            f"{points(accuracy.interval[0])} to {points(accuracy.interval[1])}."
        )


def run(config: Config, progress: Progress = SILENT) -> Results:
    """Screens and runs; writes nothing.

    Args:
        config: the settings.
        progress: told what goes on.

    Raises:
        InputError: the settings, or what they name, cannot be used.

    >>> from perturbjax.studies import screening
    >>> print(screening.run(screening.Config(population=2000)).sentence)  # doctest: +SKIP
    """
    config.validate()
    from perturbjax.inference.log_odds import GRADIENT_TOKENS, log_odds, objective_gradient, right_choices
    from perturbjax.randopt.flow import run_base, run_members
    from perturbjax.scoring import top_k
    from perturbjax.searchers import Cost as Formula
    from perturbjax.searchers import inner_products
    from perturbjax.searchers.screening import CALL

    task, template, examples = load_questions(config.task, config.template, 2 * config.questions, config.seed)
    if task.kind != "choice":
        raise InputError(f"`task` {config.task}: a multiple-choice task is required; the log-odds of a generated reply are not known")
    model = load_base(config.base, config.machine, progress)
    noise, population = decoder_noise(config.noise, config.rank, config.scale, GROUPS[config.group]), config.drawn()
    engine = make_engine(model, task, noise, config.machine)
    sets = {"gradient": examples[config.questions :], "other": examples[: config.questions]}
    _, gradient = objective_gradient(
        model.params, model.config, engine.prepare(sets["gradient"], template, GRADIENT_TOKENS), config.objective
    )
    leaf_scales = scales(model.params, noise)
    inner_products(gradient, population, noise, leaf_scales, np.arange(min(CALL, len(population))))  # compiles
    started = time.perf_counter()
    products = inner_products(gradient, population, noise, leaf_scales, None, progress)
    seconds = (time.perf_counter() - started) / len(population)

    random = np.arange(config.candidates)
    chosen = len(random) + top_k(products[len(random) :], config.promising)
    rows, base = [], 0.0
    for name, mine in sets.items():
        batch, right = engine.prepare(mine, template), right_choices(tuple(mine))
        at_base = run_base(engine, batch)
        found = run_members(engine, population, np.concatenate([random, chosen]), batch, f"{name} questions", progress)
        changes = {
            "log-odds": log_odds(found.log_probs, right).mean(axis=1) - log_odds(at_base.log_probs, right).mean(),
            "accuracy": found.scores.mean(axis=1, dtype=np.float64) - at_base.scores.mean(dtype=np.float64),
        }
        if not np.isfinite(changes["log-odds"]).all():
            raise InputError(f"`sigma` {config.sigma:g}: gives log-odds that are not finite; lower it")
        rows += [row_of(config, name, measure, products[random], values) for measure, values in changes.items()]
        if name == "other":
            base, rate = float(at_base.scores.mean(dtype=np.float64)), engine.reference(batch, rounds=1)
    formula = Formula.of(model.config, model.params, noise)
    cost = Cost(seconds, seconds * rate, formula.products(1) / formula.forward(1), formula.drawn)
    return Results(
        config,
        model.name,
        base,
        float(products.std()),
        tuple(products[random].tolist()),
        tuple(products[chosen].tolist()),
        tuple(rows),
        cost,
    )


def row_of(config: Config, questions, measure, products: np.ndarray, changes: np.ndarray) -> Row:
    """The row of (n,) products of the random candidates and of changes of the random ones and, after them, the promising ones."""
    from scipy.stats import rankdata  # half a second, and importing a study does without it

    n = len(products)
    random, promising = changes[:n], changes[n:]
    generator = np.random.default_rng(derived_seed(config.seed, f"{questions} {measure}"))
    drawn = generator.integers(0, n, (RESAMPLES, n))
    ranked = measure == "accuracy"
    x, y = (rankdata(np.round(values, 9)) if ranked else values for values in (products, random))
    spread = x.std() * y.std()
    r = fisher(float(((x - x.mean()) * (y - y.mean())).mean() / spread), n) if spread > 0 else None
    recalls = []
    for share in KEPT:
        values = [recall(products, random, config.top_k, share), *(recall(products[d], random[d], config.top_k, share) for d in drawn)]
        recalls.append(_estimate(values))
    others = generator.integers(0, len(promising), (RESAMPLES, len(promising)))
    gains = promising[others].mean(axis=1) - random[drawn].mean(axis=1)
    gain = _estimate([promising.mean() - random.mean(), *gains])
    return Row(questions, measure, tuple(random.tolist()), tuple(promising.tolist()), r, tuple(recalls), gain)


def recall(products: np.ndarray, changes: np.ndarray, k: int, kept: float) -> float:
    """Of the k candidates with the highest changes, the share among those with the highest products, ``kept`` of all. Candidates that tie
    for the last of the k places share them.

    >>> recall(np.array([4.0, 3, 2, 1]), np.array([0.3, 0.1, 0.2, 0.2]), 2, 0.5)
    0.5
    """
    changes = np.round(changes, 9)
    limit = np.sort(changes)[-k]
    above, tied = changes > limit, changes == limit
    weights = above + tied * (k - above.sum()) / tied.sum()
    first = np.argsort(-products, kind="stable")[: round(kept * len(products))]
    return float(weights[first].sum() / k)


def _estimate(values: Sequence[float]) -> Estimate:
    """The first of the values, with the middle 95 % of the others."""
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return Estimate(float(values[0]), (float(low), float(high)))


def table(results: Results) -> Iterator[str]:
    """What the products say, a line for each measure and set of questions, and what it costs."""
    config = results.config
    yield (
        f"{config.task}, {results.model}, sigma {config.sigma:g}: base {percent(results.base)} of {config.questions} other questions; "
        f"{config.candidates} random candidates"
    )
    best = max(results.promising_products) / results.deviation if results.deviation > 0 else 0.0
    yield (
        f"predicted change of {config.objective.replace('_', '-')} over {count(config.population)} candidates: deviation "
        f"{results.deviation:.4g}, the best {best:.1f} deviations up"
    )
    heads = "".join(f"{f'top {config.top_k} in best {share:.0%}':<24}" for share in KEPT)
    yield f"{'questions':<10}{'change of':<11}{'r, 95 %':<22}{heads}{'random':>9} {'promising':>9}  gain, 95 %"
    for row in results.rows:
        factor, form = (100, "+.1f") if row.measure == "accuracy" else (1, "+.3f")
        # Of candidates that all changed alike none is a top one.
        figures = "".join(f"{'-' if row.r is None else each.words():<24}" for each in row.recall)
        means = " ".join(f"{factor * float(np.mean(values)):{form}}".rjust(9) for values in (row.random, row.promising))
        gain = Estimate(factor * row.gain.value, (factor * row.gain.interval[0], factor * row.gain.interval[1]))
        yield f"{row.questions:<10}{row.measure:<11}{'-' if row.r is None else row.r.words():<22}{figures}{means}  {gain.words(form)}"
    cost = results.cost
    yield (
        f"cost of a screened candidate: {1000 * cost.seconds:.2f} ms, {cost.tokens:.2f} tokens of plain inference; by the formula "
        f"{cost.formula:.2f} tokens, and {count(cost.drawn)} numbers of noise"
    )
