"""Two laws of the error of a caulked model in the source's quality m and the target's samples n, fitted and compared on held-out cells.

``floor``: E = eps_m + (c_m / n)^k, a reconstruction of the paper's bound: eps_m is what no caulk of that base can reach below, c_m the
size of the caulk's class, k one exponent for all m. ``product``: E = delta (gamma + m^-alpha) n^-beta (Mikami et al., arXiv 2108.11018).
Both are fitted by least squares of log E, so that a relative error counts the same at every level. A law has hardly fewer parameters than
a small grid has means, so a fit says little by itself: beside both stands a constant for each m, which a law must beat on held-out cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FOLDS = 4
EXPONENTS = (0.01, 10.0)
"""Within which the exponents are held: a curve that is flat, or one step, has none."""


@dataclass(frozen=True)
class FloorLaw:
    """E = eps_m + (c_m / n)^k."""

    floors: tuple[float, ...]
    sizes: tuple[float, ...]
    exponent: float

    def __call__(self, samples: Sequence[float]) -> np.ndarray:
        """(Q, N)."""
        floors, sizes = np.array(self.floors)[:, None], np.array(self.sizes)[:, None]
        return floors + (sizes / np.asarray(samples, float)) ** self.exponent


@dataclass(frozen=True)
class ProductLaw:
    """E = delta (gamma + m^-alpha) n^-beta."""

    delta: float
    gamma: float
    alpha: float
    beta: float

    def __call__(self, qualities: Sequence[float], samples: Sequence[float]) -> np.ndarray:
        """(Q, N)."""
        source = self.gamma + np.asarray(qualities, float)[:, None] ** -self.alpha
        return self.delta * source * np.asarray(samples, float)[None] ** -self.beta


@dataclass(frozen=True)
class Compared:
    """Both laws on one surface.

    Attributes:
        floor: fitted to all cells; product: the same, None where the qualities are no positive numbers, or fewer than three, which do
            not tell delta, gamma and alpha apart.
        floor_held_out: root mean square of the error of log E on cells that a fit has not seen, each once; product_held_out, and
            constant_held_out, of the mean of log E of the other cells of the same m: the same.
    """

    floor: FloorLaw
    product: ProductLaw | None
    floor_held_out: float
    product_held_out: float | None
    constant_held_out: float


def compare_laws(means: np.ndarray, qualities: Sequence[float], samples: Sequence[int]) -> Compared:
    """Fits both laws, and measures each on held-out cells.

    Args:
        means: (Q, N) mean errors, positive and finite; three n at least.
        qualities: m, growing; samples: n, growing.
    """
    every = np.ones(means.shape, bool)
    number = np.add.outer(np.arange(len(qualities)), np.arange(len(samples))) % min(FOLDS, len(samples))
    product = len(qualities) > 2 and all(m > 0 for m in qualities)
    squares: dict[str, list[float]] = {"floor": [], "product": [], "constant": []}
    for fold in range(number.max() + 1):
        held = number == fold
        constant = np.exp(np.mean(np.log(means), axis=1, where=~held))[:, None]
        found = {"floor": fit_floor(means, samples, ~held)(samples), "constant": np.broadcast_to(constant, means.shape)}
        if product:
            found["product"] = fit_product(means, qualities, samples, ~held)(qualities, samples)
        for name, law in found.items():
            squares[name] += list(np.square(np.log(law[held] / means[held])))
    return Compared(
        fit_floor(means, samples, every),
        fit_product(means, qualities, samples, every) if product else None,
        math.sqrt(np.mean(squares["floor"])),
        math.sqrt(np.mean(squares["product"])) if product else None,
        math.sqrt(np.mean(squares["constant"])),
    )


def fit_floor(means: np.ndarray, samples: Sequence[int], use: np.ndarray) -> FloorLaw:
    """The floor law on the cells where ``use`` (Q, N) is true."""
    n, count = np.asarray(samples, float), len(means)

    def law(x: np.ndarray) -> FloorLaw:
        return FloorLaw(tuple(map(float, np.exp(x[:count]))), tuple(map(float, np.exp(x[count:-1]))), math.exp(x[-1]))

    starts = []
    lowest = np.where(use, means, np.inf).min(axis=1)
    for exponent in (0.5, 1.0, 2.0):
        for part in (0.9, 0.3):
            first = [n[use[q]][0] * max(means[q][use[q]][0] - part * lowest[q], 1e-6) ** (1 / exponent) for q in range(count)]
            starts.append(np.concatenate([np.log(part * lowest), np.log(first), [math.log(exponent)]]))
    return law(_least_squares(lambda x: np.log(law(x)(samples)[use] / means[use]), starts, 1))


def fit_product(means: np.ndarray, qualities: Sequence[float], samples: Sequence[int], use: np.ndarray) -> ProductLaw:
    """The product law on the cells where ``use`` (Q, N) is true."""

    def law(x: np.ndarray) -> ProductLaw:
        return ProductLaw(*map(float, np.exp(x)))

    starts = [np.log([float(means.mean()) * samples[0] ** beta, gamma, alpha, beta])
              for alpha in (0.3, 1.0) for beta in (0.3, 1.0) for gamma in (1e-3, 0.1)]  # fmt: skip
    return law(_least_squares(lambda x: np.log(law(x)(qualities, samples)[use] / means[use]), starts, 2))


def _least_squares(residuals, starts: Sequence[np.ndarray], exponents: int) -> np.ndarray:
    """The best of several local fits; parameters are logarithms, held within e^-30 to e^30, the last ones, exponents, within
    ``EXPONENTS``."""
    from scipy.optimize import least_squares

    others = len(starts[0]) - exponents
    low, high = (np.array([end] * others + [math.log(exponent)] * exponents) for end, exponent in zip((-30, 30), EXPONENTS, strict=True))
    fits = [least_squares(residuals, np.clip(start, low + 1, high - 1), bounds=(low, high), max_nfev=300) for start in starts]
    return min(fits, key=lambda fit: fit.cost).x
