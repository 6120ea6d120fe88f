"""The search loop: round by round, score what is not scored yet, one chunk at a time, and commit every chunk."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from perturbjax.errors import InputError
from perturbjax.inference.outputs import Outputs
from perturbjax.randopt.flow import CandidateSource, ChunkEngine, graded_chunks
from perturbjax.randopt.racing import Part, Race
from perturbjax.randopt.table import ScoreTable, candidate_scores
from perturbjax.runs.console import SILENT, Bar, Progress
from perturbjax.runs.files import MetricsLog
from perturbjax.runs.state import RunState


class Scored(CandidateSource, Protocol):
    """What the loop needs of a population besides; ``noise.Population`` and ``noise.Subset`` are the real ones."""

    def index_of(self, positions: np.ndarray, /) -> np.ndarray: ...


@dataclass(frozen=True)
class ChunkReport:
    """One committed chunk: the line of metrics.jsonl and the news for a progress bar.

    Attributes:
        chunk: number of the commit, from 1.
        round: of the race, from 1.
        rounds: how many there are.
        examples: that each candidate of this round is scored on, in this round.
        candidates: scored in this chunk.
        done: candidates scored so far, of this round.
        total: candidates of this round.
        candidates_per_s: of this chunk.
        tokens_per_s: of this chunk, padding not counted.
        best: highest mean score so far, of the candidates that this round has scored, over all examples that they were asked.
        mean: the mean of those.
        nonfinite: candidates with NaN or infinite logits so far, in this round.
        commit_s: how long the search stood still for the commit of the chunk *before* this one, in seconds (0.0 for the first of a
            process); most of a commit is written while the next chunk is scored.
        elapsed: scoring time of the whole run so far, in seconds.
    """

    chunk: int
    round: int
    rounds: int
    examples: int
    candidates: int
    done: int
    total: int
    candidates_per_s: float
    tokens_per_s: float
    best: float
    mean: float
    nonfinite: int
    commit_s: float
    elapsed: float


def search(
    engine: ChunkEngine,
    population: Scored | Callable[[np.ndarray], Scored],
    race: Race,
    prepare: Callable[[np.ndarray], Any],
    state: RunState,
    metrics: MetricsLog,
    progress: Progress = SILENT,
    look: Callable[[ScoreTable], None] = lambda _: None,
) -> ScoreTable:
    """Scores what ``state`` has no scores of: in each round, every candidate that the rounds before it promoted.

    All processes of a run call it with the same arguments, and so commit and decide the same. While a chunk is graded and committed the
    next one of its round runs; the first of a round waits, because the scores of the round before say who takes part in it.

    Args:
        engine: scores ``engine.chunk`` candidates a call; the result must not depend on how they are grouped.
        population: N candidates; or, of a search that chooses them as it goes, what gives those that the scores so far let it choose.
        race: the rounds, and who is promoted.
        prepare: gives the engine's own form of the search examples with these numbers, once a part of the race.
        state: committed after every chunk, and written while the next is scored; every round is complete and on disk when this returns.
        metrics: gets one line a chunk.
        progress: gets a bar for each round, which is told of a chunk when its commit is on disk, so one chunk after it began.
        look: is shown the table before the first chunk and after every chunk, and may raise to stop the search; every chunk that it was
            shown is on disk then.

    Returns:
        The complete table.

    Raises:
        InputError: the task gave a score that is not a finite number.
        OSError: a chunk could not be committed; those before are.
    """
    table = ScoreTable.of(state, race)
    metrics.rewind(state.step)
    look(table)
    commits = _Commits(state, metrics)
    for number in range(race.parts):
        part = race.part(table.scores, number)
        scored = ~np.isnan(table.scores[part.candidates, part.columns[0]])
        remaining = part.candidates[~scored]
        if not remaining.size:
            continue
        prepared = prepare(part.columns)
        candidates = population(table.scores) if callable(population) else population
        label = "search" if race.parts == 1 else f"search, round {number + 1} of {race.parts}"
        with progress.bar(label, len(part.candidates), int(scored.sum()), unit="candidate") as commits.bar:
            for indices, outputs in graded_chunks(engine, candidates, remaining, prepared):
                commits.wait()
                _record(table, outputs, indices, part, candidates)
                commits.commit(table, _report(state.step + 1, table, outputs, len(indices), part, number, race, commits.waited))
                try:
                    look(table)
                except InputError:
                    commits.wait()
                    raise
            commits.wait()
            commits.report_written()
    return table


class _Commits:
    """The commit that is being written, and the report of the one before.

    Attributes:
        bar: is told of every report.
        waited: seconds that the search stood still for the last one.
    """

    bar: Bar

    def __init__(self, state: RunState, metrics: MetricsLog):
        self._state, self._metrics = state, metrics
        self._writing: ChunkReport | None = None
        self._written: ChunkReport | None = None
        self.waited = 0.0

    def wait(self) -> None:
        """Waits for the commit under way, if any."""
        if self._writing is None:
            return
        started = time.perf_counter()
        self._state.wait()
        self.waited += time.perf_counter() - started
        self._written, self._writing = self._writing, None

    def commit(self, table: ScoreTable, report: ChunkReport) -> None:
        """Commits the next and reports the one before: in this order, so that a caller who stops at the report loses no chunk."""
        self._metrics.append(asdict(report))
        started = time.perf_counter()
        table.commit(self._state)
        self.waited = time.perf_counter() - started
        self._writing = report
        self.report_written()

    def report_written(self) -> None:
        report, self._written = self._written, None
        if report is not None:
            figures = {"best": f"{report.best:.3f}", "mean": f"{report.mean:.3f}", "tokens/s": f"{report.tokens_per_s:.0f}"}
            self.bar.update(report.done, **figures)


def _record(table: ScoreTable, outputs: Outputs, indices: np.ndarray, part: Part, population: Scored) -> None:
    bad = np.argwhere(~np.isfinite(outputs.scores))
    if bad.size:
        number_in_chunk, example = bad[0]
        which = f"its score of example {part.columns[example]} for candidate {population.index_of(indices[[number_in_chunk]])[0]}"
        raise InputError(f"--task: {which} is not a finite number; scores must be")
    table.scores[np.ix_(indices, part.columns)] = outputs.scores
    table.tokens[indices, part.round] = outputs.tokens
    table.nonfinite[part.round] += outputs.nonfinite
    table.seconds += outputs.seconds


def _report(
    chunk: int, table: ScoreTable, outputs: Outputs, count: int, part: Part, number: int, race: Race, commit_s: float
) -> ChunkReport:
    scored = part.candidates[~np.isnan(table.scores[part.candidates, part.columns[0]])]
    means = candidate_scores(race.filled(table.scores)[scored, : race.ends[part.round]])
    return ChunkReport(
        chunk=chunk,
        round=number + 1,
        rounds=race.parts,
        examples=len(part.columns),
        candidates=count,
        done=len(means),
        total=len(part.candidates),
        candidates_per_s=count / outputs.seconds,
        tokens_per_s=float(outputs.tokens.sum()) / outputs.seconds,
        best=float(means.max()),
        mean=float(means.mean()),
        nonfinite=table.nonfinite[part.round],
        commit_s=commit_s,
        elapsed=table.seconds,
    )
