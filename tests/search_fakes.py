"""A small deterministic engine and population for tests of the loop, the state and the command line: numpy only, no model."""

import hashlib
import time
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class FakeOutputs:
    scores: np.ndarray
    tokens: np.ndarray
    seconds: float = 0.5
    nonfinite: int = 0


@dataclass(frozen=True)
class FakePopulation:
    size: int

    def __len__(self) -> int:
        return self.size

    def candidates(self, indices: np.ndarray) -> np.ndarray:
        return np.asarray(indices)


class FakeEngine:
    """Scores are a hash of (candidate, example): any grouping gives the same, and no two rows are likely to agree."""

    def __init__(self, chunk: int = 4, delay: float = 0.0):
        self.chunk = chunk
        self.delay = delay
        self.seen: list[int] = []

    def run(self, candidates: np.ndarray, prepared: int) -> FakeOutputs:
        time.sleep(self.delay)
        self.seen.extend(int(i) for i in candidates)
        return FakeOutputs(expected_scores(candidates, prepared), np.asarray(candidates, np.int64) + 100)


def expected_scores(candidates: np.ndarray, examples: int) -> np.ndarray:
    rows = [[hashlib.sha256(f"{int(i)},{e}".encode()).digest()[0] % 4 == 0 for e in range(examples)] for i in candidates]
    return np.array(rows, np.float32)
