"""A small deterministic engine and population for tests of the loop, the state and the command line: numpy only, no model."""

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from perturbjax.inference.outputs import Outputs, Running
from perturbjax.runs.console import Bar, Progress


@dataclass(frozen=True)
class FakePopulation:
    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, item: np.ndarray) -> np.ndarray:
        return np.asarray(item)

    def index_of(self, positions: np.ndarray) -> np.ndarray:
        return np.asarray(positions)


class FakeEngine:
    """Scores are a hash of (candidate, example): any grouping gives the same, and no two rows are likely to agree."""

    def __init__(self, chunk: int = 4, delay: float = 0.0):
        self.chunk = chunk
        self.delay = delay
        self.seen: list[int] = []
        self.asked: list[tuple[int, int]] = []

    def start(self, candidates: np.ndarray, prepared: list[int]) -> Running:
        return Running(lambda: None, lambda: self.run(candidates, prepared))

    def run(self, candidates: np.ndarray, prepared: list[int]) -> Outputs:
        time.sleep(self.delay)
        self.seen.extend(int(i) for i in candidates)
        self.asked.extend((int(i), e) for i in candidates for e in prepared)
        scores, tokens = expected_scores(candidates, prepared), (np.asarray(candidates, np.int64) + 100) * len(prepared)
        return Outputs((), (), scores, scores, tokens, seconds=0.5, nonfinite=0)


class Told(Progress):
    """Calls ``told`` with the number of candidates of every commit, when the search says that it is on disk."""

    def __init__(self, told: Callable[[int], None]):
        self.told = told

    def bar(self, label: str, total: int, done: int = 0, unit: str = "step") -> Bar:
        told = self.told

        class Telling(Bar):
            def update(self, done: int, **figures: str) -> None:
                step, self._done = done - self._done, done
                told(step)

        return Telling(self, label, total, done, unit, drawn=False)


def prepare(columns: np.ndarray) -> list[int]:
    """Examples as FakeEngine takes them."""
    return columns.tolist()


def expected_scores(candidates: np.ndarray, examples: Iterable[int]) -> np.ndarray:
    rows = [[hashlib.sha256(f"{int(i)},{e}".encode()).digest()[0] % 4 == 0 for e in examples] for i in candidates]
    return np.array(rows, np.float32)
