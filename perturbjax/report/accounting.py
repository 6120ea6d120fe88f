"""Per-example scores to typed figures: one entry per system, and paired comparisons."""

import numpy as np

from perturbjax.report.intervals import paired_bootstrap, sign_test, wilson
from perturbjax.report.schema import ComparedEntry, Comparison, Entry


def entry(scores: np.ndarray, lenient: np.ndarray, tokens: int, search_tokens: int = 0) -> Entry:
    """One system's figures on a split.

    Args:
        scores: (B,) strict scores.
        lenient: (B,) lenient scores.
        tokens: spent on this split.
        search_tokens: spent beforehand to arrive at the system (search and select splits).
    """
    total = float(np.sum(scores, dtype=np.float64))
    return Entry(
        n=int(scores.size),
        accuracy=total / scores.size,
        interval=wilson(total, scores.size),
        lenient_accuracy=float(np.mean(lenient, dtype=np.float64)),
        tokens=int(tokens),
        search_tokens=int(search_tokens),
    )


def comparison(scores: np.ndarray, other: np.ndarray, seed: int) -> Comparison:
    """Paired difference to another system on the same (B,) examples; ``seed`` is that of the bootstrap."""
    gained, lost, p_value = sign_test(scores, other)
    return Comparison(
        difference=float(np.mean(scores, dtype=np.float64) - np.mean(other, dtype=np.float64)),
        difference_interval=paired_bootstrap(scores, other, seed),
        gained=gained,
        lost=lost,
        p_value=p_value,
    )


def compared_entry(entry: Entry, scores: np.ndarray, base_scores: np.ndarray, seed: int) -> ComparedEntry:
    """An entry with the paired difference of its (B,) ``scores`` to the base's."""
    return ComparedEntry(**vars(entry), **vars(comparison(scores, base_scores, seed)))
