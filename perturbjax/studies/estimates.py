"""Figures with intervals that several studies print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from perturbjax.report.accounting import student_half
from perturbjax.report.schema import Interval

TRADED = "what candidates win on some questions they lose on others, as a bias to one answer does"
"""Why those chosen on one half of the questions can be below the others on the other half."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval."""

    value: float
    interval: Interval

    @property
    def above(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.interval[0] > 0

    @property
    def below(self) -> bool:
        """Whether the whole interval lies below 0."""
        return self.interval[1] < 0

    def words(self, form: str = ".2f") -> str:
        """``0.41 [0.12, 0.66]``."""
        low, high = self.interval
        return f"{self.value:{form}} [{low:{form}}, {high:{form}}]"


def mean_of(values: Sequence[float] | np.ndarray) -> Estimate:
    """The mean of independent repetitions, at least 2, with Student's interval."""
    values = np.asarray(values, np.float64)
    half = student_half(values)
    return Estimate(float(values.mean()), (float(values.mean() - half), float(values.mean() + half)))


def halves(values: np.ndarray, generator: np.random.Generator, splits: int) -> np.ndarray:
    """Means (2, 2 x splits, n) of values (n, D): on a random half of the D, and on the others; every half is once the first."""
    examples = values.shape[1]
    first = np.zeros((splits, examples), bool)
    for row in first:
        row[generator.permutation(examples)[: examples // 2]] = True
    one, other = (mask @ values.T / mask.sum(axis=1, keepdims=True) for mask in (first, ~first))
    return np.stack([np.concatenate([one, other]), np.concatenate([other, one])])
