"""Rivals: what else the tokens of a search could have bought, on the same questions.

A plain search runs M candidates on the search questions; that is the budget, in floating-point operations by one formula
(``searchers.Cost``). Every other searcher spends at most as much on the same search questions, chooses on the same select questions, and is
tested once on the same test questions. Differences are paired.

- **base**: the model itself.
- **search**: the K best of the M by accuracy, majority vote (RandOpt). Candidates are the first M of the population.
- **search, log-odds**: the same candidates and tokens, but the K best by mean log-odds, which has no ties.
- **screening**: all N candidates by their inner product with one gradient; the most promising, and a share of others that keeps diversity,
  are run with what is left of the budget; the K best of them by log-odds vote.
- **es**: an evolution strategy of M candidates in steps; one model.
- **one gradient step**: its length chosen on select.
- **sft**: gradient steps on the right answers of the search questions, as many as the budget pays; one model.

K (of votes), the step after which ES or SFT stops, and the length of the gradient step are chosen on select, by accuracy; ties go to the
later, and of lengths to the shorter. What is spent on select is stated beside the budget, not part of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from perturbjax.errors import InputError
from perturbjax.inference.log_odds import Objective
from perturbjax.noise import Noise, Population, scales
from perturbjax.noise.distributions import DistributionName
from perturbjax.noise.spec import Scale
from perturbjax.report import Comparison, comparison
from perturbjax.report.accounting import wilson
from perturbjax.report.words import count, percent, points, points_range
from perturbjax.runs.config import Base, Machine, check_choices, check_positive, check_seed, check_text
from perturbjax.runs.console import SILENT, Progress
from perturbjax.studies.asking import check_one_device, load_base, make_engine
from perturbjax.studies.estimates import Estimate
from perturbjax.studies.groups import check_group, noise_of
from perturbjax.tasks import load_task
from perturbjax.tasks.base import Task, Template
from perturbjax.tasks.splits import Splits, make_splits
from perturbjax.tree import derived_seed

if TYPE_CHECKING:
    from perturbjax.inference.engine import Engine
    from perturbjax.inference.outputs import EncodedBatch, Outputs
    from perturbjax.pretrained import Model
    from perturbjax.searchers import Cost
    from perturbjax.train.rows import Rows

LENGTHS = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0)
"""Of the gradient step, in sigmas along the gradient: the best of 100,000 candidates lies about 4 up."""
BASE, SEARCH, BY_LOG_ODDS, SCREENING, ES, STEP, SFT = (
    "base", "search", "search, log-odds", "screening", "es", "one gradient step", "sft"
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """What is compared. Field names are the flags of ``perturbjax study rivals``."""

    base: Base = field(default_factory=Base)
    tasks: tuple[str, ...] = ("sst2", "boolq")
    """Multiple-choice tasks, comma separated; each under its first template."""
    group: str = "all"
    """Parameters that move: all, embedding (and head), attention, mlp or norms."""
    noise: DistributionName = "gaussian"
    """As for randopt."""
    rank: int | None = 1
    """As for randopt, of all searchers; None: full rank, whose noise makes screening far more expensive than its operations say."""
    scale: Scale = "absolute"
    """As for randopt."""
    sigma: float = 0.002
    """Noise scale of all candidates."""
    candidates: int = 48
    """M, that the plain search runs: the budget."""
    top_k: int = 8
    """K, most votes."""
    screen: int = 10_000
    """N, candidates that are screened; at a low rank each costs about one token of the budget."""
    explore: float = 0.25
    """Share of the candidates run after screening that is drawn from the others, from 0 to 1."""
    objective: Objective = "log_odds"
    """What the gradients are of: the mean log-odds of the right choice, or its mean probability among the choices."""
    es_size: int = 12
    """Candidates of a step of ES, at most M."""
    es_length: float = 0.5
    """Length of a step of ES without ties, in lengths of a candidate."""
    antithetic: bool = False
    """Candidates of ES come in pairs of opposite sign."""
    learning_rate: float = 1e-5
    """Of SFT (AdamW)."""
    search_examples: int = 64
    """Questions of the search split."""
    select_examples: int = 64
    """Questions of the select split."""
    test_examples: int = 256
    """Questions of the test split."""
    seed: int = 0
    """Of splits, candidates, draws and bootstrap."""
    machine: Machine = field(default_factory=Machine)

    def validate(self) -> None:
        """Raise ``InputError`` for settings that cannot be used."""
        self.base.validate()
        self.machine.validate()
        check_choices(self)
        check_group(self.group)
        check_positive(self, "rank", "candidates", "top_k", "screen", "es_size")
        for task in self.tasks:
            check_text("tasks", task)
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise InputError(f"`tasks` {','.join(self.tasks)}: at least 1 is required, each once")
        if self.top_k > self.candidates:
            raise InputError(f"`top_k` {self.top_k}: at most the {self.candidates} `candidates` are required")
        if not 2 <= self.es_size <= self.candidates:
            raise InputError(f"`es_size` {self.es_size}: from 2 to the {self.candidates} `candidates` is required")
        if self.antithetic and self.es_size % 2:
            raise InputError(f"`es_size` {self.es_size}: antithetic candidates come in pairs; use {self.es_size + 1}")
        if self.screen < self.candidates:
            raise InputError(f"`screen` {self.screen}: at least the {self.candidates} `candidates` are required")
        if not 0 <= self.explore <= 1:
            raise InputError(f"`explore` {self.explore}: a share from 0 to 1 is required")
        for name in ("es_length", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"`{name}` {getattr(self, name)}: a number above 0 is required")
        check_seed(self.seed)
        check_one_device(self.machine)
        self.population()

    def population(self) -> Population:
        """All candidates that are screened; the plain search runs the first of them."""
        try:
            return Population(derived_seed(self.seed, "rivals"), self.screen, (self.sigma,))
        except ValueError as error:
            name = "screen" if str(error).startswith("size") else "sigma"
            raise InputError(f"`{name}`{str(error).removeprefix('sigmas').removeprefix('size')}") from error


@dataclass(frozen=True)
class Row:
    """One searcher on one task.

    Attributes:
        name: of the searcher; ``what``: what it chose, in words.
        accuracy: on the test questions.
        over_base, over_search: paired differences there.
        flops: spent on the search questions, by the formula; ``drawn``: numbers of noise made for it.
        search_tokens, select_tokens: put through a model, backward passes counted as two more.
    """

    name: str
    what: str
    accuracy: Estimate
    over_base: Comparison
    over_search: Comparison
    flops: float
    drawn: float
    search_tokens: int
    select_tokens: int


@dataclass(frozen=True)
class TaskRows:
    """All searchers on one task; ``budget`` in floating-point operations."""

    task: str
    budget: float
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Results:
    """A block of rows for each task."""

    config: Config
    model: str
    tasks: tuple[TaskRows, ...]

    @property
    def sentence(self) -> str:
        """What was found, a null as plainly as a finding."""
        found = [(each.task, row) for each in self.tasks for row in each.rows if row.name != BASE]
        parts = []
        for against, of in (("base", lambda row: row.over_base), ("plain search", lambda row: row.over_search)):
            for verdict, words in (("helped", "better"), ("hurt", "worse")):
                clear = [f"{row.name} on {task} ({points(of(row).difference)})" for task, row in found if of(row).verdict == verdict]
                if clear:
                    parts.append(f"clearly {words} than the {against}: {', '.join(clear)}")
        compared = f"{len(found)} comparisons with the base"
        return f"Of {compared} at equal cost, {'; '.join(parts)}." if parts else f"Of {compared} at equal cost none shows a clear effect."


def run(config: Config, progress: Progress = SILENT) -> Results:
    """Searches and measures; writes nothing.

    Args:
        config: the settings.
        progress: told what goes on.

    Raises:
        InputError: the settings, or what they name, cannot be used.

    >>> from perturbjax.studies import rivals
    >>> print(rivals.run(rivals.Config(tasks=("sst2",))).sentence)  # doctest: +SKIP
    """
    config.validate()
    parts = []
    for name in config.tasks:
        task = load_task(name)
        if task.kind != "choice":
            raise InputError(f"`tasks` {name}: multiple-choice tasks are required; the log-odds of a generated reply are not known")
        splits = make_splits(task.examples(), config.search_examples, config.select_examples, config.test_examples, config.seed)
        parts.append((task, splits))
    model = load_base(config.base, config.machine, progress)
    noise = noise_of(config.group, config.noise, config.rank, config.scale)
    # All of them first: what one cannot pay is refused before another has run.
    contests = [
        Contest.of(config, model, make_engine(model, task, noise, config.machine), task, splits, progress) for task, splits in parts
    ]
    return Results(config, model.name, tuple(contest.rows() for contest in contests))


@dataclass(frozen=True)
class Entrant:
    """What a searcher came to: its (B,) test scores, what it chose, and what it spent (as in ``Row``)."""

    name: str
    what: str
    scores: np.ndarray
    flops: float = 0.0
    drawn: float = 0.0
    search_tokens: int = 0
    select_tokens: int = 0


@dataclass(frozen=True)
class Contest:
    """One task: its questions on the engine, and the searchers.

    Attributes:
        search, select, test: prepared questions.
        cost: the formula.
        right: (D,) right choices of the search questions.
        demonstrations: the search questions with their answers, as SFT reads them.
    """

    config: Config
    model: Model
    engine: Engine
    task: Task
    template: Template
    splits: Splits
    search: EncodedBatch
    select: EncodedBatch
    test: EncodedBatch
    cost: Cost
    right: np.ndarray
    demonstrations: Rows
    progress: Progress

    @classmethod
    def of(cls, config: Config, model: Model, engine: Engine, task: Task, splits: Splits, progress: Progress) -> Contest:
        """Prepares one task.

        Raises:
            InputError: the budget does not pay the gradient and the products of the screening, or one step of SFT.
        """
        from perturbjax.inference.log_odds import right_choices
        from perturbjax.searchers import Cost
        from perturbjax.studies.tuning import demonstration_rows

        template = task.templates[0]
        batches = (engine.prepare(getattr(splits, name), template) for name in ("search", "select", "test"))
        cost = Cost.of(model.config, model.params, engine.noise)
        rows, right = demonstration_rows(model, task, template, splits.search), right_choices(splits.search)
        found = cls(config, model, engine, task, template, splits, *batches, cost, right, rows, progress)
        if found.left < config.top_k:
            raise InputError(
                f"`screen` {config.screen}: a gradient and so many products leave {max(0, found.left)} of the {config.candidates} "
                f"`candidates` that the budget pays on {task.name}, fewer than `top_k` {config.top_k}; lower it, or raise `candidates`"
            )
        if not found.tuning_steps:
            raise InputError(f"`candidates` {config.candidates}: they do not pay one step of SFT on {task.name}; raise it")
        return found

    @property
    def noise(self) -> Noise:
        return self.engine.noise

    @property
    def tokens(self) -> int:
        """Of the search questions, through one model."""
        return self.search.prompt_tokens

    @property
    def budget(self) -> float:
        return self.config.candidates * self.cost.forward(self.tokens)

    @property
    def screening_flops(self) -> float:
        """Of one gradient and all products."""
        return self.cost.gradient(self.tokens) + self.cost.products(self.config.screen)

    @property
    def left(self) -> int:
        """Candidates that the budget pays after the screening."""
        return int((self.budget - self.screening_flops) / self.cost.forward(self.tokens))

    @property
    def tuning_steps(self) -> int:
        """Steps of SFT that the budget pays."""
        return int(self.budget / self.cost.gradient(self.demonstrations.tokens))

    def rows(self) -> TaskRows:
        """Every searcher, against the base and the plain search."""
        from perturbjax.inference.log_odds import GRADIENT_TOKENS, objective_gradient
        from perturbjax.randopt.flow import run_base

        base = Entrant(BASE, "", run_base(self.engine, self.test).scores[0])
        differentiated = self.engine.prepare(self.splits.search, self.template, GRADIENT_TOKENS)
        _, gradient = objective_gradient(self.model.params, self.model.config, differentiated, self.config.objective)
        entrants = [base, *self.searches(), self.screened(gradient), self.evolved(), self.stepped(gradient)]
        del gradient
        entrants.append(self.tuned())
        seed = derived_seed(self.config.seed, "bootstrap")

        def row(one: Entrant) -> Row:
            total = float(one.scores.sum(dtype=np.float64))
            accuracy = Estimate(total / len(one.scores), wilson(total, len(one.scores)))
            over = (comparison(one.scores, other.scores, seed) for other in (base, entrants[1]))
            spent: dict[str, Any] = {name: getattr(one, name) for name in ("flops", "drawn", "search_tokens", "select_tokens")}
            return Row(one.name, one.what, accuracy, *over, **spent)

        return TaskRows(self.task.name, self.budget, tuple(map(row, entrants)))

    def searches(self) -> tuple[Entrant, Entrant]:
        """The plain search, its members chosen by accuracy and by log-odds."""
        indices = np.arange(self.config.candidates)
        outputs = self._members(self.config.population(), indices, self.search, SEARCH)
        spent = Entrant("", "", np.zeros(0), self.budget, float(len(indices) * self.cost.drawn), int(outputs.tokens.sum()))
        by = ((SEARCH, outputs.scores.mean(axis=1, dtype=np.float64)), (BY_LOG_ODDS, self._log_odds(outputs)))
        first, second = (self._voted(name, indices, scores, spent) for name, scores in by)
        return first, second

    def screened(self, gradient: Any) -> Entrant:
        """The vote of the best of those that the gradient put first."""
        from perturbjax.searchers import choose, inner_products

        config, cost, left = self.config, self.cost, self.left
        population = config.population()
        products = inner_products(gradient, population, self.noise, scales(self.model.params, self.noise), None, self.progress)
        indices = choose(products, left, config.explore, derived_seed(config.seed, "explore")).all
        outputs = self._members(population, indices, self.search, SCREENING)
        tokens, flops = int(outputs.tokens.sum()) + 3 * self.tokens, self.screening_flops + left * cost.forward(self.tokens)
        spent = Entrant("", "", np.zeros(0), flops, float((config.screen + left) * cost.drawn), tokens)
        found = self._voted(SCREENING, indices, self._log_odds(outputs), spent)
        return replace(found, what=f"{found.what}; {left} run")

    def evolved(self) -> Entrant:
        """The center of an evolution strategy after the step that is best on select, made again from its record."""
        from perturbjax.searchers import EvolutionStrategy, rebuild
        from perturbjax.searchers.evolution import rate_of_length

        config, size = self.config, self.config.es_size
        rate = rate_of_length(config.es_length, config.sigma, size)
        seed = derived_seed(config.seed, ES)
        strategy = EvolutionStrategy(self.model.params, self.noise, size, config.sigma, rate, config.antithetic, seed)
        accuracies, tokens = [], 0
        for number in range(config.candidates // size):
            outputs = self._members(strategy.ask(), np.arange(size), self.search, f"{ES}, step {number + 1}")
            tokens += int(outputs.tokens.sum())
            strategy.tell(outputs.scores.mean(axis=1, dtype=np.float64))
            accuracies.append(self._accuracy(strategy.params, self.select))
        best = _last_best(accuracies)
        scores = self._scores(rebuild(self.model.params, self.noise, strategy.steps[: best + 1]), self.test)
        self.engine.rebase(self.model.params)
        steps = len(accuracies)
        flops = steps * size * self.cost.forward(self.tokens) + self.cost.products(steps * size)
        what = f"step {best + 1} of {steps}"
        return Entrant(ES, what, scores, flops, 2.0 * steps * size * self.cost.drawn, tokens, steps * self.select.prompt_tokens)

    def stepped(self, gradient: Any) -> Entrant:
        """One step along the gradient, of the length that is best on select."""
        from perturbjax.searchers import gradient_step

        leaf_scales = scales(self.model.params, self.noise)

        def of(length: float) -> Any:
            return gradient_step(self.model.params, gradient, leaf_scales, length * self.config.sigma)

        accuracies = [self._accuracy(of(length), self.select) for length in LENGTHS]
        length = LENGTHS[int(np.argmax(accuracies))]
        scores = self._scores(of(length), self.test)
        self.engine.rebase(self.model.params)
        flops, tokens = self.cost.gradient(self.tokens), len(LENGTHS) * self.select.prompt_tokens
        return Entrant(STEP, f"{length:g} sigma long", scores, flops, 0.0, 3 * self.tokens, tokens)

    def tuned(self) -> Entrant:
        """The base after as many steps of SFT on all search questions as the budget pays, or after fewer, as select says."""
        from perturbjax.studies.tuning import Tuner

        tuner, steps = Tuner(self.model, self.demonstrations, self.config.learning_rate), self.tuning_steps
        looks = sorted({steps, *(2**n for n in range(steps.bit_length()) if 2**n <= steps)})
        accuracies, kept, best = [], None, 0
        with self.progress.bar(SFT, steps) as bar:
            for number, look in enumerate(looks):
                tuner.advance(look - tuner.step)
                accuracies.append(self._accuracy(tuner.params, self.select))
                if _last_best(accuracies) == number:
                    best, kept = look, self._scores(tuner.params, self.test)
                bar.update(look)
        assert kept is not None
        self.engine.rebase(self.model.params)
        spent = self.cost.gradient(tuner.tokens) * steps
        what = f"step {best} of {steps}"
        return Entrant(SFT, what, kept, spent, 0.0, 3 * steps * tuner.tokens, len(looks) * self.select.prompt_tokens)

    def _voted(self, name: str, indices: np.ndarray, scores: np.ndarray, spent: Entrant) -> Entrant:
        """The vote of the best of the candidates by their scores, K as chosen on select."""
        from perturbjax.randopt.flow import vote_curve
        from perturbjax.scoring import top_k

        best = indices[top_k(scores, min(self.config.top_k, len(indices)))]
        on_select = self._members(self.config.population(), best, self.select, f"{name}, select")
        k = _last_best(vote_curve(on_select).accuracies.tolist()) + 1
        votes = vote_curve(self._members(self.config.population(), best[:k], self.test, f"{name}, test")).scores[-1]
        return replace(spent, name=name, what=f"vote of {k}", scores=votes, select_tokens=int(on_select.tokens.sum()))

    def _members(self, population: Population, indices: np.ndarray, batch: EncodedBatch, stage: str) -> Outputs:
        from perturbjax.randopt.flow import run_members

        return run_members(self.engine, population, indices, batch, f"{self.task.name}: {stage}", self.progress)

    def _log_odds(self, outputs: Outputs) -> np.ndarray:
        """(n,) mean log-odds on the search questions, the lowest where they are not finite."""
        from perturbjax.inference.log_odds import log_odds

        return np.nan_to_num(log_odds(outputs.log_probs, self.right).mean(axis=1), nan=-1e30, posinf=-1e30, neginf=-1e30)

    def _scores(self, params: Any, batch: EncodedBatch) -> np.ndarray:
        """(B,) scores of one model; the engine's base is then this model."""
        from perturbjax.randopt.flow import run_base

        self.engine.rebase(params)
        return run_base(self.engine, batch).scores[0]

    def _accuracy(self, params: Any, batch: EncodedBatch) -> float:
        return float(self._scores(params, batch).mean(dtype=np.float64))


def _last_best(values: Sequence[float]) -> int:
    """The last position of the highest value."""
    return len(values) - 1 - int(np.argmax(values[::-1]))


def table(results: Results) -> Iterator[str]:
    """A block of lines for each task: equal budget, equal questions."""
    config = results.config
    yield (
        f"{results.model}, sigma {config.sigma:g}; {config.search_examples} search, {config.select_examples} select, "
        f"{config.test_examples} test questions"
    )
    for each in results.tasks:
        yield ""
        yield f"{each.task}: budget {each.budget / 1e12:.2f} TFLOP, what {config.candidates} candidates take on the search questions"
        head = f"{'':<18} {'right':>7} {'vs base':>8}  {'95 %':<15} {'vs search':>9}  {'95 %':<15} {'TFLOP':>6} {'tokens':>9} {'select':>9}"
        yield f"{head}  chosen"
        for row in each.rows:
            over = "".join(
                f" {points(found.difference):>{width}}  {points_range(found.difference_interval):<15}"
                for found, width in ((row.over_base, 8), (row.over_search, 9))
            )
            spent = f" {row.flops / 1e12:>6.2f} {count(row.search_tokens):>9} {count(row.select_tokens):>9}"
            yield f"{row.name:<18} {percent(row.accuracy.value):>7}{over}{spent}  {row.what}".rstrip()
