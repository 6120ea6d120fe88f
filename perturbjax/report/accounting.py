"""Per-example scores to typed figures: one entry per system, and paired comparisons."""

import math
from statistics import NormalDist

import numpy as np

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


RESAMPLES = 10_000
"""Bootstrap resamples of every difference: the Monte-Carlo error of a 95 % limit is then about 2 % of the interval's width."""


def wilson(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a proportion.

    Chosen over the bootstrap for single accuracies because it keeps its coverage at small n and near 0 and 1, where resampling identical
    scores gives an interval of width zero (0 right of 50 does not mean that the accuracy is surely 0). For scores between 0 and 1,
    ``successes`` is their sum; their variance is at most p(1-p), so the interval is then on the safe side.

    Args:
        successes: sum of the scores, 0 <= successes <= n.
        n: number of examples, at least 1.
        confidence: coverage, in (0, 1).

    Returns:
        (low, high), within [0, 1].

    References:
        E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
        L. D. Brown, T. T. Cai, A. DasGupta, "Interval estimation for a binomial proportion", Statistical Science 16 (2001), eq. 4.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"wilson: {successes} successes of {n}: 0 <= successes <= n and n >= 1 are required")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    # At p = 0 and 1 one limit is exactly p; rounding would leave it a hair off.
    return (0.0 if successes == 0 else max(0.0, middle - half), 1.0 if successes == n else min(1.0, middle + half))


def student_half(values: np.ndarray) -> np.ndarray:
    """Half the width of Student's 95 % interval of the mean of (..., n) independent repetitions, at least 2: (...).

    For a handful of repetitions, such as seeds, where percentiles of a bootstrap are too narrow.

    >>> round(float(student_half(np.array([1.0, 2.0, 3.0]))), 3)  # 4.303 / sqrt(3)
    2.484
    """
    from scipy.special import stdtrit  # a tenth of a second, and importing a chapter does without it

    n = values.shape[-1]
    return float(stdtrit(n - 1, 0.975)) * values.std(axis=-1, ddof=1) / math.sqrt(n)


def paired_bootstrap(
    scores: np.ndarray, other: np.ndarray, seed: int, resamples: int = RESAMPLES, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of mean(scores) - mean(other), examples resampled in pairs.

    Pairing matters: two systems that answer the same questions share most of their luck. Resampling n differences with replacement draws
    only how often each *distinct* difference occurs, so the resample is one multinomial draw: the same distribution as resampling the
    rows, at a cost that does not grow with n.

    Args:
        scores: (B,) per-example scores of one system.
        other: (B,) of the other, on the same examples in the same order.
        seed: of the resampling; equal inputs give equal intervals.
        resamples: number of bootstrap resamples.
        confidence: coverage, in (0, 1).

    Returns:
        (low, high). With few discordant examples it is too narrow (all-equal scores give (0, 0)): read it beside ``sign_test``.

    References:
        B. Efron, R. J. Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3 (percentile interval).
    """
    difference = _differences(scores, other)
    values, counts = np.unique(difference, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(difference.size, counts / difference.size, size=resamples)
    low, high = np.quantile(draws @ values / difference.size, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def sign_test(scores: np.ndarray, other: np.ndarray) -> tuple[int, int, float]:
    """Examples on which ``scores`` is higher, on which it is lower, and the exact two-sided p-value that both are equally likely.

    For right/wrong scores this is McNemar's exact test. It guards the bootstrap where few examples differ: 4 gained and 0 lost of 256
    give a bootstrap interval above 0, yet chance alone does that (or its mirror image) once in eight times.

    References:
        Q. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages", Psychometrika 12 (1947).
    """
    difference = _differences(scores, other)
    gained, lost = int((difference > 0).sum()), int((difference < 0).sum())
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1))
    return gained, lost, min(1.0, 2 * tail / 2**n)


def _differences(scores: np.ndarray, other: np.ndarray) -> np.ndarray:
    scores, other = np.asarray(scores, np.float64), np.asarray(other, np.float64)
    if scores.shape != other.shape or scores.ndim != 1 or not scores.size:
        raise ValueError(f"paired scores must be two equal, non-empty vectors, got shapes {scores.shape} and {other.shape}")
    return scores - other
