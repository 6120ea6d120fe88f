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
- **grpo**: gradient steps on the rewards of answers that are drawn to the search questions, as many as the budget pays; one model.

K (of votes), the step after which ES, SFT or GRPO stops, and the length of the gradient step are chosen on select, by accuracy; ties go to
the later, and of lengths to the shorter. What is spent on select is stated beside the budget, not part of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from perturbjax.errors import InputError
from perturbjax.models.noise_groups import GROUPS, decoder_noise
from perturbjax.noise import Population
from perturbjax.noise.distributions import DistributionName
from perturbjax.noise.spec import Scale
from perturbjax.report import Comparison
from perturbjax.report.words import count, percent, points, points_range
from perturbjax.runs.config import Base, Machine, check_choices, check_positive, check_seed, check_text
from perturbjax.runs.console import SILENT, Progress
from perturbjax.studies.asking import check_one_device, load_base, make_engine, population_of
from perturbjax.studies.estimates import Estimate
from perturbjax.studies.groups import check_group
from perturbjax.tasks import load_task
from perturbjax.tasks.base import Objective
from perturbjax.tasks.splits import make_splits

BASE, SEARCH, BY_LOG_ODDS, SCREENING, ES, STEP, SFT, GRPO = (
    "base", "search", "search, log-odds", "screening", "es", "one gradient step", "sft", "grpo"
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
    grpo_learning_rate: float = 1e-5
    """Of GRPO (AdamW)."""
    draws: int = 16
    """Answers that GRPO draws to a question in a step."""
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
        check_positive(self, "rank", "candidates", "top_k", "screen", "es_size", "draws")
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
        if self.draws < 2:
            raise InputError(f"`draws` {self.draws}: at least 2 are required, or no answer is better than another")
        for name in ("es_length", "learning_rate", "grpo_learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"`{name}` {getattr(self, name)}: a number above 0 is required")
        check_seed(self.seed)
        check_one_device(self.machine)
        self.population()

    def population(self) -> Population:
        """All candidates that are screened; the plain search runs the first of them."""
        return population_of("screen", "rivals", self.seed, self.screen, self.sigma)


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
        task = load_task(name, argument="tasks")
        if task.kind != "choice":
            raise InputError(f"`tasks` {name}: multiple-choice tasks are required; the log-odds of a generated reply are not known")
        splits = make_splits(task.examples(), config.search_examples, config.select_examples, config.test_examples, config.seed)
        parts.append((task, splits))
    from perturbjax.studies.contest import Contest

    model = load_base(config.base, config.machine, progress)
    noise = decoder_noise(config.noise, config.rank, config.scale, GROUPS[config.group])
    # All of them first: what one cannot pay is refused before another has run.
    contests = [
        Contest.of(config, model, make_engine(model, task, noise, config.machine), task, splits, progress) for task, splits in parts
    ]
    return Results(config, model.name, tuple(contest.rows() for contest in contests))


def table(results: Results) -> Iterator[str]:
    """A block of lines for each task: equal budget, equal questions."""
    config = results.config
    yield (
        f"{results.model}, sigma {config.sigma:g}; {config.search_examples} search, {config.select_examples} select, "
        f"{config.test_examples} test questions"
    )
    for each in results.tasks:
        yield ""
        yield f"{each.task}: budget {each.budget / 1e12:.3g} TFLOP, what {config.candidates} candidates take on the search questions"
        head = f"{'':<18} {'right':>7} {'vs base':>8}  {'95 %':<15} {'vs search':>9}  {'95 %':<15} {'TFLOP':>8} {'tokens':>9} {'select':>9}"
        yield f"{head}  chosen"
        for row in each.rows:
            over = "".join(
                f" {points(found.difference):>{width}}  {points_range(found.difference_interval):<15}"
                for found, width in ((row.over_base, 8), (row.over_search, 9))
            )
            spent = f" {row.flops / 1e12:>8.3g} {count(row.search_tokens):>9} {count(row.select_tokens):>9}"
            yield f"{row.name:<18} {percent(row.accuracy.value):>7}{over}{spent}  {row.what}".rstrip()
