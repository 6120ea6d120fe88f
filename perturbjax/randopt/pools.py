"""Pools of candidates, by their search scores: those that reached the end of a race, all and of each sigma."""

import numpy as np

from perturbjax.noise import Population, Subset
from perturbjax.scoring import top_k

ALL = "all"
"""The pool of every candidate, whatever its sigma."""


def finalists(scores: np.ndarray) -> np.ndarray:
    """Indices of the candidates that were scored on every example: (N, D) with NaN where not scored, or (N,), -> ascending."""
    missing = np.isnan(scores)
    return np.flatnonzero(~(missing.any(axis=1) if missing.ndim == 2 else missing))


def pools(population: Population | Subset, scores: np.ndarray, k: int) -> dict[str | float, np.ndarray]:
    """The ``k`` best finalists among all, and among those of each sigma, by search score; best first, ties to the lower index.

    Args:
        population: N candidates.
        scores: (N, D) search scores, NaN where a race did not ask, or (N,) their means.
        k: members per pool.

    Returns:
        ``"all"`` first, then each sigma in the population's order, each with (k,) candidate indices. A sigma with fewer than k finalists
        cannot field k members and is left out.
    """
    members: dict[str | float, np.ndarray] = {}
    for sigma in (ALL, *map(float, population.sigmas)):
        mine = pool_of(population, scores, sigma)
        if sigma == ALL or len(mine) >= k:
            members[sigma] = mine[top_k(scores[mine], k)]
    return members


def pool_of(population: Population | Subset, scores: np.ndarray, sigma: str | float) -> np.ndarray:
    """Indices of the finalists of one sigma, or of ``ALL``, ascending."""
    ranked = finalists(scores)
    return ranked if sigma == ALL else ranked[population.sigma_of(ranked) == np.float32(sigma)]
