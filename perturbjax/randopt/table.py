"""What a search knows of its candidates, and the one form in which that goes to disk and to other processes: a row of words each."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Self

import numpy as np

from perturbjax.runs.identity import digest


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
    def empty(cls, candidates: int, examples: int, rounds: int = 1) -> Self:
        return cls(
            scores=np.full((candidates, examples), np.nan, np.float32),
            tokens=np.zeros((candidates, rounds), np.int64),
            nonfinite=[0] * rounds,
        )

    @classmethod
    def of(cls, rows: np.ndarray, examples: int, nonfinite: list[int], seconds: float) -> Self:
        """The table whose ``rows`` these are."""
        scores = np.ascontiguousarray(rows[:, :examples]).view(np.float32)
        return cls(scores, np.ascontiguousarray(rows[:, examples:]).view(np.int64), nonfinite, seconds)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, D, R)."""
        return (*self.scores.shape, self.tokens.shape[1])

    @property
    def done(self) -> np.ndarray:
        """(N,) bool, which candidates are scored on at least the examples of the first round."""
        return ~np.isnan(self.scores[:, 0])

    def rows(self) -> np.ndarray:
        """(N, D + 2R) uint32: the bits of a candidate's scores, then those of its tokens, low word first. Of one type, and one that JAX
        keeps as it is: it would make int32 of int64."""
        return np.concatenate([self.scores.view(np.uint32), self.tokens.astype("<i8").view(np.uint32)], axis=1)


def checksum(rows: np.ndarray, record: Mapping[str, Any]) -> str:
    """sha256 over the rows and everything that is recorded beside them."""
    hasher = sha256(digest(dict(record)).encode())
    hasher.update(f"{rows.dtype} {rows.shape}".encode())
    hasher.update(np.ascontiguousarray(rows).data)
    return hasher.hexdigest()
