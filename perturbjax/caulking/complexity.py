"""``sample_complexity``: from cells to the error surface E[m, n], and to n_req(m, e), the samples that an error e takes.

n_req: the mean over seeds is made non-increasing in n (isotonic regression), then read off linearly in (log n, error). Where no n of the
grid reaches e, n_req is above the largest n: that is said (``censored``), never dropped. An infinite mean (a seed that diverged) makes
those of the smaller n infinite too.

Intervals are over seeds, by Student's t: percentiles of a bootstrap of three to ten seeds are too narrow. n_req has the limits of an
inverse interval: between them lie the n whose mean error Student's t does not tell from e. A slope has the jackknife's standard error,
which is that of the mean itself where the figure is a mean. With one seed both limits are the value: nothing is known.

References:
    E. C. Fieller, "Some Problems in Interval Estimation", J. R. Stat. Soc. B 16 (1954).
    B. Efron, R. J. Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 11 (the jackknife).
    T. C. Hesterberg, "What Teachers Should Know about the Bootstrap", Am. Stat. 69 (2015), on intervals of small samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from perturbjax.caulking.cells import Measured
from perturbjax.errors import InputError
from perturbjax.report.accounting import student_half

PARTS = 4
"""Of the step from one n to the next, in log n, at whose ends limits of the mean error are known; they are read off linearly between."""
ROUNDING = 1e-6
"""Relative: errors are float32, and 1 - 0.8 is below what 20 wrong of 100 are in it. Such a tie is reached."""
Quality = float | None
Censored = Literal["no", "above", "below"]


@dataclass(frozen=True)
class Required:
    """Samples that an error takes.

    Attributes:
        samples: n_req; the largest n of the grid if the error is not reached there, the smallest if that reaches it.
        interval: 95 %, over seeds; infinite where a limit is above the largest n.
        censored: "above": no n of the grid reaches the error; "below": the smallest does, so fewer may do.
        reached: fraction of the seeds that reach it, each by its own errors.
        norm: of the caulk at n_req, the mean over seeds, linear in log n; NaN where "above".
    """

    samples: float
    interval: tuple[float, float]
    censored: Censored
    reached: float
    norm: float

    @property
    def words(self) -> str:
        """``120 [90, 160]``, ``more than 1,024``, ``at most 16``, and with an interval that says otherwise ``at most 16 [16, 40]``."""
        low, high = self.interval
        what = {"no": "", "above": "more than ", "below": "at most "}[self.censored] + f"{self.samples:,.0f}"
        if (self.censored == "above" and math.isinf(low)) or (self.censored == "below" and high <= self.samples):
            return what
        if math.isclose(low, high):  # one seed, or seeds that agree: no interval
            return what
        return f"{what} [{low:,.0f}, {'more' if math.isinf(high) else format(high, ',.0f')}]"


@dataclass(frozen=True)
class Surface:
    """All cells of one method.

    Attributes:
        qualities: Q of them, as the grid has them; (None,) from scratch.
        samples: N numbers of samples, growing.
        seeds: S of them.
        errors: (Q, N, S); norms: the same. An error that is not finite counts as infinite: it reaches nothing.
    """

    qualities: tuple[Quality, ...]
    samples: tuple[int, ...]
    seeds: tuple[int, ...]
    errors: np.ndarray
    norms: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """(Q, N)."""
        return self.errors.mean(axis=-1)

    def interval(self) -> np.ndarray:
        """(Q, N, 2): 95 % of the mean error, over seeds; an infinite mean (a seed diverged) has infinite limits."""
        return np.stack(_limits(self.mean, self.errors), axis=-1)

    def required(self, error: float) -> dict[Quality, Required]:
        """n_req of every quality."""
        found, norms = n_required(self.mean, self.samples, error), self.norms.mean(axis=-1)
        reached = np.isfinite(n_required(np.moveaxis(self.errors, -1, 0), self.samples, error)).mean(axis=0)
        limits = zip(*self._required_limits(error), strict=True)
        figures = zip(self.qualities, found, limits, reached, norms, strict=True)
        return {quality: self._required(float(n), low, high, float(part), norm) for quality, n, (low, high), part, norm in figures}

    def _required_limits(self, error: float) -> tuple[np.ndarray, np.ndarray]:
        """(Q,) each: the smallest n at which the lower limit of the mean error is at most ``error``, and the upper one. Between two n of
        the grid each seed's error is taken on its own, so that the limits hold what its errors have in common."""
        steps = np.arange(PARTS * (len(self.samples) - 1) + 1) / PARTS
        weights = np.array([np.interp(steps, range(len(self.samples)), row) for row in np.eye(len(self.samples))]).T
        finer = np.exp(weights @ np.log(self.samples))
        finer[::PARTS] = self.samples  # not by way of their logarithms
        errors = np.moveaxis(_weighted(np.moveaxis(self.errors, -1, 1), weights), 0, 1)
        falling = _weighted(non_increasing(self.mean), weights).T
        low, high = (_first_at(np.minimum.accumulate(limit, axis=-1), finer, error) for limit in _limits(falling, errors))
        return low, high

    def _required(self, n: float, low: float, high: float, reached: float, norms: np.ndarray) -> Required:
        least, most = self.samples[0], self.samples[-1]
        if math.isinf(n):
            return Required(float(most), (float(low), math.inf), "above", reached, math.nan)
        norm = float(np.interp(math.log(n), np.log(self.samples), norms))
        return Required(n, (min(float(low), n), max(float(high), n)), "below" if n <= least else "no", reached, norm)


def sample_complexity(cells: Sequence[Measured], error: float) -> dict[str, dict[Quality, Required]]:
    """Method -> quality -> the samples that ``error`` takes.

    Args:
        cells: of ``run_grid``; every method must have all its cells.
        error: e, in the units of the cells.

    Raises:
        InputError: there are no cells, one is missing or there twice, or none reaches the error.
    """
    if not cells:
        raise InputError("`cells`: none are given; those of run_grid are required")
    found = {method: surface.required(error) for method, surface in surfaces(cells).items()}
    if all(each.censored == "above" for required in found.values() for each in required.values()):
        lowest = min((cell.error for cell in cells if math.isfinite(cell.error)), default=math.nan)
        raise InputError(f"`error` {error:g}: no cells reach it on average, the lowest of one is {lowest:.3g}; ask for a higher error")
    return found


def surfaces(cells: Sequence[Measured]) -> dict[str, Surface]:
    """Method -> its surface.

    Raises:
        InputError: a cell is missing or there twice.
    """
    found = {}
    for method in dict.fromkeys(cell.method for cell in cells):
        mine = [cell for cell in cells if cell.method == method]
        qualities = tuple(dict.fromkeys(cell.quality for cell in mine))
        samples, seeds = tuple(sorted({cell.samples for cell in mine})), tuple(dict.fromkeys(cell.seed for cell in mine))
        errors, norms = np.full((2, len(qualities), len(samples), len(seeds)), np.nan)
        there = np.zeros(errors.shape, int)
        for cell in mine:
            place = qualities.index(cell.quality), samples.index(cell.samples), seeds.index(cell.seed)
            there[place] += 1
            errors[place], norms[place] = cell.error, cell.norm
        if (there != 1).any():
            q, n, s = np.argwhere(there != 1)[0]
            which = f"{method}, quality {qualities[q]}, n {samples[n]}, seed {seeds[s]}"
            raise InputError(f"`cells`: {which} is there {there[q, n, s]} times; every cell is required once")
        found[method] = Surface(qualities, samples, seeds, np.where(np.isfinite(errors), errors, np.inf), norms)
    return found


def n_required(means: np.ndarray, samples: Sequence[int], error: float) -> np.ndarray:
    """Smallest n at which the monotone mean error is at most ``error``: (..., N) -> (...), infinite where none is."""
    return _first_at(non_increasing(means), samples, error)


def _first_at(falling: np.ndarray, samples: Sequence[float] | np.ndarray, error: float) -> np.ndarray:
    """``n_required`` of values that do not increase."""
    logs = np.log(samples)
    good = falling <= error + ROUNDING * abs(error)
    first = np.where(good.any(axis=-1), good.argmax(axis=-1), 0)
    before = np.maximum(first - 1, 0)
    after_y, before_y = (np.take_along_axis(falling, at[..., None], axis=-1)[..., 0] for at in (first, before))
    with np.errstate(invalid="ignore", divide="ignore"):
        part = np.where(np.isfinite(before_y) & (before_y > after_y), (before_y - error) / (before_y - after_y), 1.0)
    part = np.minimum(part, 1.0)
    log_n = logs[before] + part * (logs[first] - logs[before])
    # Not by way of its logarithm: whoever compares with the smallest n must find it equal.
    found = np.where(first == 0, float(samples[0]), np.exp(log_n))
    return np.where(good.any(axis=-1), found, np.inf)


def non_increasing(values: np.ndarray) -> np.ndarray:
    """The non-increasing sequence nearest in squares along the last axis: (..., N), by the min-max formula of isotonic regression.

    References:
        R. E. Barlow et al., "Statistical Inference under Order Restrictions" (1972), eq. 1.9.
    """
    n = values.shape[-1]
    # Means of the blocks themselves: in differences of running sums a huge or infinite value would swallow those after it.
    blocks = {(a, b): values[..., a : b + 1].mean(axis=-1) for a in range(n) for b in range(a, n)}
    each = [np.min([np.max([blocks[a, b] for b in range(i, n)], axis=0) for a in range(i + 1)], axis=0) for i in range(n)]
    return np.stack(each, axis=-1)


def slope(required: np.ndarray, sources: np.ndarray) -> tuple[float, tuple[float, float], int]:
    """Slope of log n_req against log source error over the qualities, by least squares, with its 95 % interval.

    Args:
        required: (1 + S, Q) n_req of all S seeds, then of all but one each; infinite where censored, above or below.
        sources: (1 + S, Q) source errors of the same.

    Returns:
        The slope, its interval by the jackknife (NaN where without some seed there are fewer than two qualities), and the qualities that
        row 0 used.
    """
    slopes = np.full(len(required), np.nan)
    for number, (n, source) in enumerate(zip(required, sources, strict=True)):
        there = np.isfinite(n)
        if there.sum() >= 2 and np.ptp(np.log(source[there])) > 0:
            slopes[number] = np.polyfit(np.log(source[there]), np.log(n[there]), 1)[0]
    value, without = float(slopes[0]), slopes[1:]
    # Of a mean, what is left without each seed differs from it by the seed's own deviation over S - 1.
    half = float(student_half((len(without) - 1) * without)) if len(without) > 1 else 0.0
    return value, (value - half, value + half), int(np.isfinite(required[0]).sum())


def source_slope(surface: Surface, source_errors: Mapping[float, Sequence[float]], error: float) -> tuple[float, tuple[float, float], int]:
    """``slope`` of a method, from the errors of each quality's bases on the source, one a seed (in the order of ``surface.seeds``).

    Where the smallest n reaches the error already, n_req is as unknown as where none does: both are left out."""
    sources = np.array([source_errors[quality] for quality in surface.qualities if quality is not None], float)
    count = len(surface.seeds)
    weights = np.full((1, count), 1 / count)
    if count > 1:
        weights = np.concatenate([weights, (1 - np.eye(count)) / (count - 1)])
    required = n_required(_weighted(surface.errors, weights), surface.samples, error)
    required = np.where(required > surface.samples[0], required, np.inf)
    return slope(required, _weighted(sources, weights))


def _limits(means: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``means`` (...) less and plus the half width of the interval of the mean of values (..., S); infinite where they are."""
    if values.shape[-1] == 1:
        return means, means
    finite = np.isfinite(means)
    half = student_half(np.where(finite[..., None] & np.isfinite(values), values, 0.0))
    return np.where(finite, means - half, np.inf), np.where(finite, means + half, np.inf)


def _weighted(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Means over the last axis by each row of weights: (..., S), (R, S) -> (R, ...). A seed of weight 0 adds nothing, infinite or not."""
    finite = np.where(np.isfinite(values), values, 0.0)
    bad = np.einsum("rs,...s->r...", weights, (~np.isfinite(values)).astype(float)) > 0
    return np.where(bad, np.inf, np.einsum("rs,...s->r...", weights, finite))
