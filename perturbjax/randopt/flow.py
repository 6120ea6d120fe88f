"""What the two halves of an evaluation work from: the finished search, the engine that runs models, and the votes of their answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from perturbjax.inference.outputs import Outputs, Running, grouped
from perturbjax.noise import Candidate, Population, Subset
from perturbjax.randopt.racing import Race
from perturbjax.randopt.screened import Screening
from perturbjax.randopt.sigma_halving import SigmaHalving
from perturbjax.randopt.voting import BY_MAJORITY, MAJORITY, Voting
from perturbjax.runs.console import SILENT, Progress
from perturbjax.tasks.base import Example, Task, Template
from perturbjax.tasks.equality import AnswerGroups
from perturbjax.tasks.splits import Splits
from perturbjax.tree import derived_seed

if TYPE_CHECKING:
    from perturbjax.randopt.table import ScoreTable


class Engine(Protocol):
    """Turns (candidates, examples) into answers; ``inference.Engine`` is the one that runs language models.

    ``chunk`` candidates are one call of a compiled program, of which ``width`` run at once.

    ``task`` says which answers count as one; what ``prepare`` gives has the ``examples``.

    ``sample`` counts tokens as they are spent: where one forward pass gives all samples (choice tasks), the first row carries its tokens
    and the others 0, so that the sum over the first k rows is what k samples cost.
    """

    @property
    def task(self) -> Task: ...
    @property
    def chunk(self) -> int: ...
    @property
    def width(self) -> int: ...
    def prepare(self, examples: Sequence[Example], template: Template, /) -> Any: ...
    def run(self, candidates: Candidate, batch: Any, /) -> Outputs: ...
    def start(self, candidates: Candidate, batch: Any, /) -> Running: ...
    def sample(self, batch: Any, num_samples: int, temperature: float, seed: int, /) -> Outputs: ...
    def reference(self, batch: Any, rounds: int, /) -> float: ...


@dataclass(frozen=True)
class SearchRecord:
    """What a finished search hands over.

    Attributes:
        race: its rule and rounds.
        scores: (N, D) strict scores on the search split, NaN where the race did not ask, and as ``Race.filled`` where it skipped.
        skipped: examples that only the first candidates were asked.
        base_scores: (D,) of the unperturbed model there, under the same template.
        base_tokens: tokens that this put through the model.
        tokens: (N, R) tokens that scoring put through the model, by candidate and round.
        seconds: wall time of that scoring, compilation left out.
        nonfinite: candidates with NaN or inf in their outputs, by round.
    """

    race: Race
    scores: np.ndarray
    base_scores: np.ndarray
    base_tokens: int
    tokens: np.ndarray
    seconds: float
    nonfinite: Sequence[int]
    skipped: int = 0

    @classmethod
    def of(cls, race: Race, table: "ScoreTable", base_scores: np.ndarray, base_tokens: int) -> Self:
        """From the table of a search that has ended."""
        columns: dict[str, Any] = vars(table) | {"scores": race.filled(table.scores)}
        return cls(race, base_scores=base_scores, base_tokens=base_tokens, skipped=int(race.skipped(table.scores).sum()), **columns)

    @property
    def total_tokens(self) -> int:
        return int(self.tokens.sum())

    @property
    def mean_scores(self) -> np.ndarray:
        """(N,) float64, NaN where a candidate did not reach the end of the race."""
        return self.scores.mean(axis=1, dtype=np.float64)


@dataclass(frozen=True)
class Flow:
    """What an evaluation works from.

    Attributes:
        engine, task: run the models; grade the replies.
        splits: disjoint examples; only ``search`` was seen by the search.
        population, record: the N candidates searched, and their search scores. A candidate is named by its position here, from 0, but in
            results and files by its index in the whole population.
        top_k: most members of an ensemble, 1 <= top_k <= N.
        template: the prompt of the search.
        rule: by which the members vote, one of ``VOTE_RULES``.
        seed: of the random ensemble, the samples and the bootstrap.
        progress: told how far each stage is.
        screening: how the N candidates were chosen from the whole population, if they were.
        halving: how they were shared among the sigmas, if not equally.

    Raises:
        ValueError: ``record.scores`` is not (N, D), or ``top_k`` is out of range.
    """

    engine: Engine
    task: Task
    splits: Splits
    population: Population | Subset
    record: SearchRecord
    top_k: int
    template: Template
    rule: str = MAJORITY
    seed: int = 0
    progress: Progress = SILENT
    screening: Screening | None = None
    halving: SigmaHalving | None = None

    def __post_init__(self) -> None:
        if self.record.scores.shape != (len(self.population), len(self.splits.search)):
            expected = f"{len(self.population)} candidates x {len(self.splits.search)} examples"
            raise ValueError(f"record.scores has shape {self.record.scores.shape}; {expected} are required")
        if not 1 <= self.top_k <= len(self.population):
            raise ValueError(f"top_k {self.top_k}: between 1 and the population's {len(self.population)} is required")

    @property
    def search_tokens(self) -> int:
        """What was spent to score the candidates and, in tokens of as many operations, to choose them."""
        return self.record.total_tokens + (0 if self.screening is None else self.screening.tokens)

    def samples(self, prepared: Any, count: int, temperature: float, purpose: str) -> Outputs:
        """``count`` samples of the base, which vote."""
        outputs = self.engine.sample(prepared, count, temperature, derived_seed(self.seed, purpose))
        return grouped(outputs, prepared.examples, AnswerGroups(self.task))

    def voting(self, members: Sequence[int] | np.ndarray) -> Voting:
        """How candidates vote that were chosen by their scores; controls vote by majority."""
        return Voting(self.rule, self.record.mean_scores[np.asarray(members)])

    @property
    def bootstrap(self) -> int:
        """The seed of every bootstrap."""
        return derived_seed(self.seed, "bootstrap")


@dataclass(frozen=True)
class VoteCurve:
    """The vote of the first k of K members, for k = 1 ... K.

    Attributes:
        scores: (K, B) strict score of the voted answer. Where all abstain it is that of an absent answer.
        lenient: (K, B) lenient score of the reply whose answer was voted (the best-ranked supporter's; the best member's if all abstain).
        tokens: (K,) int64 tokens of the first k members together.
    """

    scores: np.ndarray
    lenient: np.ndarray
    tokens: np.ndarray

    @property
    def accuracies(self) -> np.ndarray:
        """(K,) mean strict score."""
        return self.scores.mean(axis=1, dtype=np.float64)


def vote_curve(outputs: Outputs, voting: Voting = BY_MAJORITY) -> VoteCurve:
    """Votes of the models of ``outputs``, which stand in rank order, best first."""
    winners = voting.winners(outputs.answers, outputs.keys).T  # (K, B)
    spokesman = np.maximum(winners, 0)
    columns = np.arange(outputs.scores.shape[1])
    return VoteCurve(outputs.scores[spokesman, columns], outputs.lenient[spokesman, columns], np.cumsum(outputs.tokens))


def run_base(engine: Engine, prepared: Any) -> Outputs:
    """The unperturbed model on one prepared split."""
    return engine.run(Candidate.base(1), prepared)


class ChunkEngine(Protocol):
    """What runs candidates a chunk at a time; the engine of a search needs no more."""

    @property
    def chunk(self) -> int: ...

    def start(self, candidates: Any, prepared: Any, /) -> Running: ...


class CandidateSource(Protocol):
    """What a chunk needs of a population; ``noise.Population`` is the real one."""

    def __len__(self) -> int: ...

    def __getitem__(self, item: np.ndarray, /) -> Any: ...


def graded_chunks(
    engine: ChunkEngine, population: CandidateSource, indices: np.ndarray, prepared: Any
) -> Iterator[tuple[np.ndarray, Outputs]]:
    """The candidates of these indices in order, a chunk at a time, with their graded answers.

    A chunk is graded while the next runs on the devices: that one is dispatched as soon as the results of this one are on the host, and
    before the task sees them. What grading raises is raised in the turn of its own chunk; the one that runs is given up then.
    """
    chunks = [indices[start : start + engine.chunk] for start in range(0, len(indices), engine.chunk)]
    running = engine.start(population[chunks[0]], prepared) if chunks else None
    for chunk, following in zip_longest(chunks, chunks[1:]):
        assert running is not None
        current = running
        current.wait()
        running = None if following is None else engine.start(population[following], prepared)
        yield chunk, current.graded()


def run_members(
    engine: Engine, population: Population | Subset, indices: np.ndarray, prepared: Any, stage: str, progress: Progress = SILENT
) -> Outputs:
    """The candidates of these (R,) indices on one prepared split, a chunk of the engine at a time."""
    outputs, done = [], 0
    with progress.bar(stage, len(indices)) as bar:
        for chunk, graded in graded_chunks(engine, population, indices, prepared):
            outputs.append(graded)
            done += len(chunk)
            bar.update(done)
    return Outputs.concatenate(outputs)


def run_voters(
    engine: Engine,
    population: Population | Subset,
    indices: np.ndarray,
    prepared: Any,
    stage: str,
    progress: Progress = SILENT,
    groups: AnswerGroups | None = None,
) -> Outputs:
    """As ``run_members``, for a vote: where the task compares answers two by two, equal ones have one key.

    ``groups``: goes on with those of earlier members of the same vote; None begins. They are found in the order of ``indices``.
    """
    outputs = run_members(engine, population, indices, prepared, stage, progress)
    return grouped(outputs, prepared.examples, groups or AnswerGroups(engine.task))
