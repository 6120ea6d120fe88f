"""The search loop: score what is not scored yet, one chunk at a time, and commit every chunk."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from perturbjax.errors import InputError
from perturbjax.search.artifacts import candidate_scores
from perturbjax.search.metrics import MetricsLog
from perturbjax.search.state import RunState


class Outputs(Protocol):
    """What the loop reads of the engine's answer for n candidates on E examples."""

    @property
    def scores(self) -> np.ndarray: ...  # (n, E) float32
    @property
    def tokens(self) -> np.ndarray: ...  # (n,) int64
    @property
    def seconds(self) -> float: ...
    @property
    def nonfinite(self) -> int: ...


class ScoringEngine(Protocol):
    """What the loop needs of a scoring engine; ``scoring.Engine`` is the real one."""

    @property
    def chunk(self) -> int: ...

    def run(self, candidates: Any, prepared: Any, /) -> Outputs: ...


class CandidateSource(Protocol):
    """What the loop needs of a population; ``perturb.Population`` is the real one."""

    def __len__(self) -> int: ...

    def candidates(self, indices: np.ndarray, /) -> Any: ...


@dataclass(frozen=True)
class ChunkReport:
    """One committed chunk: the line of metrics.jsonl and the news for a progress bar.

    Attributes:
        chunk: number of the commit, from 1.
        candidates: scored in this chunk.
        done: scored so far, of all the run.
        total: N.
        candidates_per_s: of this chunk.
        tokens_per_s: of this chunk, padding not counted.
        best: highest mean score so far.
        mean: mean score of all candidates so far.
        nonfinite: candidates with NaN or infinite logits so far.
        commit_s: what committing the chunk *before* this one took, in seconds (0.0 for the first of a process).
        elapsed: scoring time of the whole run so far, in seconds.
    """

    chunk: int
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
    engine: ScoringEngine,
    population: CandidateSource,
    prepared: Any,
    state: RunState,
    metrics: MetricsLog,
    on_chunk: Callable[[ChunkReport], None] = lambda report: None,
) -> None:
    """Score every candidate of the population that ``state`` has no scores of.

    Args:
        engine: scores ``engine.chunk`` candidates a call; the result must not depend on how they are grouped.
        population: N candidates.
        prepared: the engine's own form of the search examples.
        state: committed after every chunk; its table is complete when this returns.
        metrics: gets one line a chunk.
        on_chunk: called after every commit.

    Raises:
        InputError: the task gave a score that is not a finite number.
        OSError: a chunk could not be committed; those before are.
    """
    table = state.table
    metrics.rewind(state.step)
    remaining = np.flatnonzero(~table.done)
    commit_s = 0.0
    for start in range(0, len(remaining), engine.chunk):
        indices = remaining[start : start + engine.chunk]
        outputs = engine.run(population.candidates(indices), prepared)
        bad = np.argwhere(~np.isfinite(outputs.scores))
        if bad.size:
            row, example = bad[0]
            raise InputError(f"--task: its score of example {example} for candidate {indices[row]} is not a finite number; scores must be")
        table.scores[indices] = outputs.scores
        table.tokens[indices] = outputs.tokens
        table.nonfinite += outputs.nonfinite
        table.seconds += outputs.seconds
        means = candidate_scores(table.scores[table.done])
        report = ChunkReport(
            chunk=state.step + 1,
            candidates=len(indices),
            done=len(means),
            total=len(population),
            candidates_per_s=len(indices) / outputs.seconds,
            tokens_per_s=float(outputs.tokens.sum()) / outputs.seconds,
            best=float(means.max()),
            mean=float(means.mean()),
            nonfinite=table.nonfinite,
            commit_s=commit_s,
            elapsed=table.seconds,
        )
        metrics.append(asdict(report))
        started = time.perf_counter()
        state.commit()
        commit_s = time.perf_counter() - started
        on_chunk(report)
