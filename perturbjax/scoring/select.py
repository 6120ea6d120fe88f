"""Selection: which candidates the scores put first."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int64


def top_k(scores: Any, k: int) -> Int64[np.ndarray, " k"]:
    """Indices of the ``k`` best candidates, best first; ties go to the lower index.

    Args:
        scores: (N,) scores, or (N, B) scores per example, of which the mean over B counts (in float64). Any array numpy can read.
        k: how many, 1 <= k <= N.

    Returns:
        int64 (k,) indices.

    Raises:
        ValueError: for another rank, for k outside 1..N, and for NaN: a candidate that was not scored has no rank.

    >>> top_k([0.5, 0.9, 0.9, 0.1], 3)
    array([1, 2, 0])
    """
    values = np.asarray(scores)
    if values.ndim not in (1, 2):
        raise ValueError(f"scores of shape {values.shape}: (N,) or (N, B) is required")
    values = values.astype(np.float64)
    if values.ndim == 2:
        values = values.mean(axis=1)
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= len(values):
        raise ValueError(f"k = {k!r}: an integer from 1 to the {len(values)} candidates is required")
    missing = np.flatnonzero(np.isnan(values))
    if missing.size:
        which = f"{missing.size} of {len(values)} are NaN (first: candidate {missing[0]})"
        raise ValueError(f"scores: {which}; score them or leave them out first")
    return np.argsort(-values, kind="stable")[:k]
