"""What a search knows of its candidates, and candidates.parquet: one row a candidate, the same bytes for the same scores."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from perturbjax.errors import InputError
from perturbjax.randopt.racing import Race
from perturbjax.records import from_json, refuse, to_json
from perturbjax.runs.files import read_columns, write_atomically
from perturbjax.runs.identity import Identity
from perturbjax.runs.rundir import RunDirectory
from perturbjax.runs.state import RunState

_KINDS = {"sigma": pa.float32(), "score": pa.float64(), "examples_scored": pa.int32()}
_READ = pa.schema([pa.field(name, kind, nullable=False) for name, kind in _KINDS.items()])
"""What is read of candidates.parquet."""
_AGAIN = "resume the search to write it again"


@dataclass(frozen=True)
class _Record:
    """What is committed beside the arrays of a ``ScoreTable``."""

    nonfinite: tuple[int, ...]
    seconds: float


@dataclass
class ScoreTable:
    """What is known of N candidates on D examples.

    Attributes:
        scores: (N, D) float32, NaN where not scored.
        tokens: (N, R) int64, tokens put through the model for each, by round of the race.
        nonfinite: how many candidates had NaN or infinite logits, by round (they score 0 on its examples).
        seconds: time spent scoring, over all processes that worked on the run.
    """

    scores: np.ndarray
    tokens: np.ndarray
    nonfinite: list[int]
    seconds: float = 0.0

    @classmethod
    def empty(cls, race: Race) -> Self:
        """Nothing scored yet."""
        rounds = len(race.ends)
        scores = np.full((race.candidates, race.examples), np.nan, np.float32)
        return cls(scores, np.zeros((race.candidates, rounds), np.int64), [0] * rounds)

    @classmethod
    def of(cls, state: RunState, race: Race) -> Self:
        """As last committed."""
        if not state.step:
            return cls.empty(race)
        where = f"{state.directory}: step {state.step}"
        record = from_json(_Record, state.record, where)
        if len(record.nonfinite) != len(race.ends):
            refuse(where, "nonfinite", state.record["nonfinite"], f"{len(race.ends)} numbers are required")
        return cls(state.tree["scores"].copy(), state.tree["tokens"].copy(), list(record.nonfinite), record.seconds)

    def commit(self, state: RunState) -> None:
        """Starts to write the table as the state's next step."""
        state.commit(self._tree, to_json(_Record(tuple(self.nonfinite), self.seconds)))

    @property
    def done(self) -> np.ndarray:
        """(N,) bool, which candidates are scored on at least the examples of the first round."""
        return ~np.isnan(self.scores[:, 0])

    @property
    def _tree(self) -> dict[str, Any]:
        return {"scores": self.scores, "tokens": self.tokens}


def open_state(directory: Path, race: Race, identity: Identity) -> RunState:
    """The state of a search; ``ScoreTable.of`` reads it. Raises as ``RunState.open``."""
    return RunState.open(directory, identity, _like(race))


def read_table(directory: RunDirectory, race: Race, note: Callable[[str], None]) -> ScoreTable:
    """As last committed by a run, which is not changed and may be in progress.

    Args:
        directory: of the run.
        race: of the run's own settings.
        note: told of damage that was worked around.

    Raises:
        InputError: nothing was committed, or what was is damaged.
    """
    state = RunState.read(directory.state, directory.read_config()["identity"], _like(race))
    if not state.step:
        raise InputError(f"{directory.path}: no scores were committed; search with: perturbjax randopt ... --out {directory.path} --resume")
    for warning in state.warnings:
        note(f"perturbjax: warning: {warning}")
    return ScoreTable.of(state, race)


def _like(race: Race) -> dict[str, Any]:
    """Shapes and dtypes of a table, without its memory: the settings of a run from elsewhere may ask for any."""
    candidates = race.candidates
    return {
        "scores": np.broadcast_to(np.float32(np.nan), (candidates, race.examples)),
        "tokens": np.broadcast_to(np.int64(0), (candidates, len(race.ends))),
    }


def write_candidates(path: Path, sigmas: np.ndarray, scores: np.ndarray, indices: np.ndarray | None = None) -> None:
    """Write index, sigma, score (mean over the examples scored) and examples_scored of every candidate, atomically.

    Args:
        path: the parquet file.
        sigmas: (N,) float32, the sigma of each candidate.
        scores: (N, D) float32 score matrix, NaN where a candidate was not asked.
        indices: (N,) of the candidates in their population; 0 to N - 1 when left out.
    """
    indices = np.arange(len(scores)) if indices is None else indices
    table = pa.table(
        {
            "index": pa.array(indices.astype(np.uint32)),
            "sigma": pa.array(np.asarray(sigmas, np.float32)),
            "score": pa.array(candidate_scores(scores)),
            "examples_scored": pa.array((~np.isnan(scores)).sum(axis=1).astype(np.int32)),
        }
    )
    write_atomically(path, lambda file: pq.write_table(table, file, compression="zstd"))


def candidate_scores(scores: np.ndarray) -> np.ndarray:
    """Mean score of each candidate over the examples it was scored on: (N, D) with NaN elsewhere -> (N,) float64."""
    return np.nanmean(scores.astype(np.float64), axis=1)


def read_candidates(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N,) sigma, score and examples_scored of the candidates.

    Raises:
        InputError: the file is missing or damaged.
    """
    table = read_columns(path, _READ, _AGAIN)
    sigma, score, scored = (table[name].to_numpy() for name in _READ.names)
    if not len(score) or not np.isfinite(sigma).all() or not np.isfinite(score).all() or scored.min() < 1:
        raise InputError(f"{path}: a sigma, a score and the examples scored of each candidate are required; {_AGAIN}")
    return sigma, score, scored
