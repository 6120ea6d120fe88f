"""How large noise is in the norms of Modular-Norm RandOpt (arXiv 2609.25745): what a draw's norm is expected to be, from its shape.

The paper divides each draw by its own norm. Here the norms of embeddings and matrices are replaced by their expectations, so that the noise
of an element stays a function of key, path and position, and a tile of it needs no other element. How far single draws are from it is
measured in NOTES.md.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

POWER_STEPS = 8
"""Power iterations, from a vector of ones, by which the paper estimates a spectral norm: 4 % low for square matrices."""


@lru_cache
def largest_normal(count: int, dims: int) -> float:
    """Expected largest Euclidean norm of ``count`` vectors of ``dims`` standard normal elements."""
    from scipy.special import chdtrc  # a tenth of a second, and `import perturbjax` does without it

    # Norms of (nearly) all rows are within 12 of sqrt(dims). E max = the integral of P(max > x) over x >= 0.
    edges = np.linspace(max(0.0, math.sqrt(dims) - 12), math.sqrt(dims) + 12, 4001)
    above = -np.expm1(count * np.log1p(-np.minimum(chdtrc(dims, edges**2), 1 - 1e-16)))
    return float(edges[0] + np.trapezoid(above, edges))


def largest_sign(count: int, dims: int) -> float:
    """The same of random signs: all such vectors have one norm."""
    return math.sqrt(dims)


@lru_cache
def spectral(rows: int, columns: int) -> float:
    """Spectral norm of a matrix of independent elements with mean 0 and variance 1, as ``POWER_STEPS`` power iterations estimate it.

    The estimate is sqrt(m[2 k + 1] / m[2 k]) after k steps, m[j] being the mean eigenvalue of (W^T W)^j: a moment of the law of Marchenko
    and Pastur, whatever the distribution of the elements.
    """
    return math.sqrt(_moment(2 * POWER_STEPS + 1, rows, columns) / _moment(2 * POWER_STEPS, rows, columns))


def _moment(j: int, rows: int, columns: int) -> int:
    """Expected trace of (W^T W)^j to leading order in the size: a sum over Narayana numbers."""
    return sum(math.comb(j, i) * math.comb(j, i - 1) // j * rows**i * columns ** (j + 1 - i) for i in range(1, j + 1))
