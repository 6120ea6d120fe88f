"""results.json of a RandOpt run, typed: what was searched, what select chose, how it did on test beside its controls."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from perturbjax.randopt.entries import BaseEntry, PromptEntry, RandomEntry, RandOptEntry, SelfConsistencyEntry
from perturbjax.randopt.reliability import Reliability
from perturbjax.randopt.searcher_records import HalvingRung, ScreeningSummary
from perturbjax.records import from_json
from perturbjax.report.schema import Interval, Source
from perturbjax.runs.files import read_json

RESULTS_VERSION = 2
"""Of the layout of results.json."""


@dataclass(frozen=True)
class SplitSizes:
    """Examples of each split."""

    search: int
    select: int
    test: int


@dataclass(frozen=True)
class Option:
    """One option of a choice made on select, and its accuracy there."""

    value: str | int | float
    accuracy: float


@dataclass(frozen=True)
class Way:
    """One way to make an ensemble, and the accuracy on select that the vote of as many as may vote has.

    Attributes:
        members: the rule that chose them, one of ``MEMBER_RULES``.
        sigma: of the candidates that they were chosen from, or ``"all"``.
        vote: the rule by which they vote, one of ``VOTE_RULES``.
    """

    members: str
    sigma: str | float
    vote: str
    accuracy: float


@dataclass(frozen=True)
class Options:
    """Everything that select chose from."""

    sigma: tuple[Option, ...]
    K: tuple[Option, ...]
    prompt: tuple[Option, ...]
    temperature: tuple[Option, ...]


@dataclass(frozen=True)
class Selection:
    """What select chose.

    Attributes:
        sigma: one of the population's, or ``"all"``.
        K: size of the ensemble.
        prompt: template under which the base does best; ``search_prompt`` is that of the search.
        temperature: of self-consistency.
        members: candidate indices, best first, as many as may vote at most.
        candidates: the options.
    """

    sigma: str | float
    K: int
    prompt: str
    temperature: float
    members: tuple[int, ...]
    candidates: Options
    search_prompt: str


@dataclass(frozen=True)
class Round:
    """One round of the race.

    Attributes:
        candidates: that took part; ``examples``: that each has been asked by its end; ``tokens``: spent in it.
        mean_score, best_score, base_score: on those examples, of the candidates and of the base.
        kept: how many went on; ``kept_mean_score``: their mean score there.
        nonfinite: candidates with NaN or inf in their outputs.
    """

    candidates: int
    examples: int
    tokens: int
    mean_score: float
    best_score: float
    base_score: float
    kept: int
    kept_mean_score: float
    nonfinite: int


@dataclass(frozen=True)
class RacingSummary:
    """What the race did and saved.

    Attributes:
        rule: which candidates stop; ``error`` is what ``bounds`` promises, None for the others.
        tokens: spent in all; ``full_tokens``: what asking every candidate everything takes; ``share``: the fraction of the two.
        skipped: examples that ``dead`` asked of the first ``screen`` candidates alone, who were all right; the other rules have no
            ``screen``.
    """

    rule: str
    error: float | None
    rounds: tuple[Round, ...]
    tokens: int
    full_tokens: int
    share: float
    skipped: int = 0
    screen: int | None = None


@dataclass(frozen=True)
class ReliabilitySummary:
    """Whether the search could rank its candidates.

    Attributes:
        first_look: after the first few hundred scores.
        population: of all candidates, on the examples that all were asked.
    """

    first_look: Reliability
    population: Reliability


@dataclass(frozen=True)
class Ties:
    """How far ties decided who votes: candidates with the score of the last member, and how many of those are members."""

    score_at_k: float
    tied_candidates: int
    tied_inside_k: int


@dataclass(frozen=True)
class Throughput:
    """Of the search, and of plain inference with the base on the same tokens; None where no time was measured."""

    candidates_per_s: float | None
    tokens_per_s: float | None
    reference_tokens_per_s: float
    efficiency: float | None


@dataclass(frozen=True, kw_only=True)
class Density:
    """Which part of ``n`` candidates scores at or above the base: the RandOpt paper's density at margin 0, with its Wilson interval."""

    n: int
    share_at_or_above_base: float
    share_interval: Interval


@dataclass(frozen=True, kw_only=True)
class SigmaSummary(Density):
    """The candidates of one sigma."""

    sigma: float
    mean: float
    best: float


@dataclass(frozen=True, kw_only=True)
class PopulationSummary(Density):
    """The population on the first ``examples`` of the search split, those that every candidate was asked."""

    examples: int
    mean_score: float
    best_score: float
    base_search_score: float
    nonfinite: int
    per_sigma: tuple[SigmaSummary, ...]


@dataclass(frozen=True)
class TaskSource(Source):
    """The task of the run."""

    kind: Literal["choice", "generation"]


@dataclass(frozen=True, kw_only=True)
class Results:
    """The content of results.json; ``randopt`` and the curves are keyed by K, ``seconds`` by stage. There is no reliability of fewer than
    2 candidates or examples, nor in a file that was written before there was one."""

    version: int
    model: Source
    task: TaskSource
    base: BaseEntry
    self_consistency: SelfConsistencyEntry
    best_prompt: PromptEntry
    random_k: RandomEntry
    randopt: dict[str, RandOptEntry]
    splits: SplitSizes
    selection: Selection
    racing: RacingSummary
    ties: Ties
    throughput: Throughput
    population: PopulationSummary
    seconds: dict[str, float]
    reliability: ReliabilitySummary | None = None

    def __post_init__(self) -> None:
        if self.version != RESULTS_VERSION:
            raise ValueError(f"version {self.version}: this release reads {RESULTS_VERSION}; use the release that wrote it")
        if str(self.selection.K) not in self.randopt:
            raise ValueError(f"selection.K {self.selection.K}: randopt has no entry for it")

    @property
    def chosen(self) -> RandOptEntry:
        """RandOpt at the K that the select split chose."""
        return self.randopt[str(self.selection.K)]

    @property
    def most_votes(self) -> int:
        """The largest K of the run, ``--top-k``."""
        return max(map(int, self.randopt))

    @property
    def raced(self) -> bool:
        """Whether a race stopped candidates before the end, or could have."""
        return len(self.racing.rounds) > 1

    @property
    def same_prompt(self) -> bool:
        """Whether no other prompt did better for the base, so that the best-prompt control is the base itself."""
        return self.best_prompt.prompt == self.selection.search_prompt


@dataclass(frozen=True, kw_only=True)
class ScreenedResults(Results):
    """The content of results.json of a search that screened. Of others it is what it was before there was screening."""

    screening: ScreeningSummary


@dataclass(frozen=True, kw_only=True)
class HalvedResults(Results):
    """The content of results.json of a search that halved its sigmas."""

    halving: tuple[HalvingRung, ...]


def halving_of(results: Results) -> tuple[HalvingRung, ...]:
    """The rungs of the halving over the sigmas; none if the search had none."""
    return results.halving if isinstance(results, HalvedResults) else ()


def screening_of(results: Results) -> ScreeningSummary | None:
    """What the screening did, if the search had one."""
    return results.screening if isinstance(results, ScreenedResults) else None


def results_of(content: dict[str, Any], where: str) -> Results:
    """The results that a JSON object says; raises as ``from_json``."""
    kinds = {"screening": ScreenedResults, "halving": HalvedResults}
    return from_json(next((kind for name, kind in kinds.items() if name in content), Results), content, where)


def read_results(path: Path) -> Results:
    """results.json of a finished run.

    Raises:
        InputError: the file is missing or damaged; the field is named.
    """
    return results_of(read_json(path), str(path))
