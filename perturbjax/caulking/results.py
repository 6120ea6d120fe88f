"""results.json of a grid on a language model, as typed records."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from perturbjax.caulking.cells import Measured
from perturbjax.caulking.complexity import Censored, Required, Surface, source_slope, surfaces
from perturbjax.caulking.config import RATES
from perturbjax.caulking.laws import FOLDS, FloorLaw, compare_laws
from perturbjax.errors import LARGEST
from perturbjax.records import from_json
from perturbjax.report.accounting import wilson
from perturbjax.report.schema import Interval, Source
from perturbjax.runs.files import read_json

VERSION = 2
"""Of the layout of results.json and of what its figures mean; those of version 1 had percentiles of a bootstrap as intervals."""


@dataclass(frozen=True)
class Point:
    """All seeds of one method, base and number of examples.

    Attributes:
        samples: n.
        error: mean over the seeds; ``interval``: 95 % over seeds; infinite errors (a training that diverged) count as 1.
        norm: mean size of the caulk.
    """

    samples: int
    error: float
    interval: Interval
    norm: float


@dataclass(frozen=True)
class Needed:
    """Examples that an accuracy takes.

    Attributes:
        accuracy: asked for.
        samples: n_req, or the largest or smallest n of the grid where ``censored`` says so.
        low, high: 95 % over seeds; None: above the largest n.
        censored: see ``complexity.Required``.
        reached: fraction of the seeds that reach the accuracy, each by its own errors.
        norm: of the caulk there; None where it is not reached.
    """

    accuracy: float
    samples: float
    low: float | None
    high: float | None
    censored: Censored
    reached: float
    norm: float | None

    @staticmethod
    def of(accuracy: float, required: Required) -> "Needed":
        low, high, norm = (value if math.isfinite(value) else None for value in (*required.interval, required.norm))
        return Needed(accuracy, required.samples, low, high, required.censored, required.reached, norm)

    @property
    def words(self) -> str:
        """``120 [90, 160]``, ``more than 512``, ``at most 16``."""
        low, high = (math.inf if value is None else value for value in (self.low, self.high))
        return Required(self.samples, (low, high), self.censored, self.reached, math.nan).words


@dataclass(frozen=True)
class Curve:
    """One method on one base.

    Attributes:
        method: its name.
        sigma: of the noise that moved the base; None: from scratch.
        points: one for each n.
        needed: one for each accuracy asked for.
        floor: fitted eps of eps + (c / n)^k, ``size`` c, and ``exponent`` k, which the method's curves share; None with fewer than four n,
            and where a constant is no worse on held-out cells (``HeldOut``).
    """

    method: str
    sigma: float | None
    points: tuple[Point, ...]
    needed: tuple[Needed, ...]
    floor: float | None
    size: float | None
    exponent: float | None


@dataclass(frozen=True)
class HeldOut:
    """What the law of a method says about means that it was not fitted to.

    Attributes:
        method: its name.
        law: root mean square of the error of log E; ``constant``: the same of a constant for each base.
    """

    method: str
    law: float
    constant: float

    @property
    def shown(self) -> bool:
        """Whether the law says more than a constant does."""
        return self.law < self.constant


@dataclass(frozen=True)
class Slope:
    """Slope of log n_req against log error of the base alone, over the bases whose n_req lies within the grid.

    Attributes:
        method: its name.
        accuracy: asked for.
        slope: by least squares; ``interval``: 95 % over seeds.
        bases: that it is of: they reach the accuracy, and not yet with the fewest examples.
    """

    method: str
    accuracy: float
    slope: float
    interval: Interval
    bases: int


@dataclass(frozen=True)
class BaseAlone:
    """A base without a caulk: error on the test questions, with Wilson's interval."""

    sigma: float
    error: float
    interval: Interval


@dataclass(frozen=True)
class Results:
    """The content of results.json.

    Attributes:
        version: of this format.
        task: the target; model: the base.
        template: of the prompts.
        seeds: how many; ``n``: test questions.
        pool: examples that cells draw from.
        bases: each without a caulk.
        curves: each method on each base.
        slopes: where two bases or more have a n_req within the grid.
        trained: method -> numbers that it trains.
        cells: how many; ``diverged``: of them, with an error that is not finite.
        tokens: put through the model by all trainings, padding included; ``test_tokens``: to measure them.
        unseen: numbers of examples with which some answer of the task is never seen in training.
        seconds: of trainings.
        held_out: of each method with four n or more.
    """

    version: int
    task: Source
    model: Source
    template: str
    seeds: int
    n: int
    pool: int
    bases: tuple[BaseAlone, ...]
    curves: tuple[Curve, ...]
    slopes: tuple[Slope, ...]
    trained: dict[str, int]
    cells: int
    diverged: int
    tokens: int
    test_tokens: int
    unseen: tuple[int, ...]
    seconds: float
    held_out: tuple[HeldOut, ...] = ()

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(f"version {self.version}: this release reads {VERSION}; resume the run to write it again, or use its release")
        if not self.curves:
            raise ValueError("curves: is empty, nothing was measured")
        if self.n < 1:
            raise ValueError(f"n {self.n}: at least 1 question is required")
        if not all(map(_of_fractions, self.bases)):
            raise ValueError("bases: errors from 0 to 1 are required")
        for curve in self.curves:
            self._check(curve)

    def _check(self, curve: Curve) -> None:
        """Raises ``ValueError`` if a curve does not fit the others, the bases, or itself."""
        if curve.method not in RATES:
            raise ValueError(f"curves: method {curve.method!r}: one of {', '.join(RATES)} is required")
        if curve.sigma is not None and curve.sigma not in {base.sigma for base in self.bases}:
            raise ValueError(f"curves: sigma {curve.sigma}: that of one of the bases is required")
        if curve.method not in self.trained:
            raise ValueError(f"trained: {curve.method} is missing")
        shape = len(curve.points), len(curve.needed)
        if 0 in shape or shape != (len(self.curves[0].points), len(self.curves[0].needed)):
            raise ValueError("curves: points and needed, as many in each curve, are required")
        if any(not (_of_fractions(point) and 1 <= point.samples <= LARGEST) for point in curve.points):
            raise ValueError("curves: points of errors from 0 to 1 and samples of at least 1 are required")
        if any(not 0 < needed.accuracy < 1 for needed in curve.needed):
            raise ValueError("curves: needed accuracies between 0 and 1 are required")
        if any(
            not 0 < value <= LARGEST for needed in curve.needed for value in (needed.samples, needed.low, needed.high) if value is not None
        ):
            raise ValueError("curves: needed samples above 0 are required")
        if len({value is None for value in (curve.floor, curve.size, curve.exponent)}) > 1:
            raise ValueError("curves: floor, size and exponent are required together")

    @property
    def accuracies(self) -> tuple[float, ...]:
        """Those asked for."""
        return tuple(needed.accuracy for needed in self.curves[0].needed)

    @property
    def scratch(self) -> Curve | None:
        """The control that starts from random weights, if it was asked for."""
        return next((curve for curve in self.curves if curve.sigma is None), None)

    @property
    def caulked(self) -> tuple[Curve, ...]:
        """The others."""
        return tuple(curve for curve in self.curves if curve.sigma is not None)


def _of_fractions(measured: Point | BaseAlone) -> bool:
    return all(0 <= error <= 1 for error in (measured.error, *measured.interval))


def base_alone(sigma: float, error: float, n: int) -> BaseAlone:
    """One base without a caulk; NaN, of a base that the noise has broken, counts as wrong everywhere."""
    error = error if math.isfinite(error) else 1.0
    low, high = wilson(round(error * n), n)
    return BaseAlone(sigma, error, (low, high))


def loggable(error: float, n: int) -> float:
    """The error on n questions for a log axis: half a question in place of none."""
    return max(error, 0.5 / n)


def make_curves(cells: Sequence[Measured], accuracies: Sequence[float]) -> tuple[tuple[Curve, ...], tuple[HeldOut, ...]]:
    """The curves of all methods, and how their laws fare. Errors that are not finite count as 1: every answer wrong."""
    curves, held_out = list[Curve](), list[HeldOut]()
    for method, surface in surfaces(cells).items():
        # Of infinite errors there is no interval. What an accuracy takes is asked of them as they are: a seed that diverged reaches
        # nothing.
        shown = replace(surface, errors=np.minimum(surface.errors, 1.0))
        law = None
        if len(surface.samples) >= FOLDS and (shown.mean > 0).all():
            compared = compare_laws(shown.mean, [0.0] * len(shown.mean), surface.samples)
            held_out.append(HeldOut(method, compared.floor_held_out, compared.constant_held_out))
            law = compared.floor if held_out[-1].shown else None
        curves += _curves(method, surface, shown, accuracies, law)
    return tuple(curves), tuple(held_out)


def make_slopes(cells: Sequence[Measured], bases: Sequence[BaseAlone], accuracies: Sequence[float], n: int) -> tuple[Slope, ...]:
    """Slopes where two bases or more have a n_req within the grid; the bases' errors were measured on ``n`` questions."""
    found = []
    for method, surface in surfaces(cells).items():
        sources = {base.sigma: [loggable(base.error, n)] * len(surface.seeds) for base in bases}
        for accuracy in accuracies if surface.qualities != (None,) else ():
            slope, interval, used = source_slope(surface, sources, 1 - accuracy)
            if used >= 2 and all(map(math.isfinite, (slope, *interval))):
                found.append(Slope(method, accuracy, slope, interval, used))
    return tuple(found)


def _curves(method: str, surface: Surface, shown: Surface, accuracies: Sequence[float], law: FloorLaw | None) -> list[Curve]:
    means, intervals = shown.mean, np.clip(shown.interval(), 0.0, 1.0)
    norms = np.nan_to_num(surface.norms.mean(axis=-1), nan=0.0, posinf=0.0)
    required = {accuracy: surface.required(1 - accuracy) for accuracy in accuracies}
    curves = []
    for q, sigma in enumerate(surface.qualities):
        points = tuple(
            Point(n, float(means[q, i]), (float(intervals[q, i, 0]), float(intervals[q, i, 1])), float(norms[q, i]))
            for i, n in enumerate(surface.samples)
        )
        needed = tuple(Needed.of(accuracy, found[sigma]) for accuracy, found in required.items())
        fitted = (law.floors[q], law.sizes[q], law.exponent) if law else (None, None, None)
        curves.append(Curve(method, sigma, points, needed, *fitted))
    return curves


def read_results(path: Path) -> Results:
    """results.json of a finished run.

    Raises:
        InputError: the file is missing or damaged; the field is named.
    """
    return from_json(Results, read_json(path), str(path))
