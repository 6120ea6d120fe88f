"""Who may still end among the K best: subset selection on paired differences, without replacement.

After d of D examples, candidate j *leads* candidate i by the sum of their score differences on the d examples. If the D examples come in
random order, the d are a sample without replacement, and under the hypothesis that i does not end below j the lead has mean at most 0 and
variance q (D - d) / (D - 1), where q is the sum of the squared differences: exact but for q, of which the d examples give their part.
Pairing matters: candidates are close relatives of one base and differ on few examples, so q is small.

A candidate is out when at least K others lead it by more than ``c`` standard deviations. That is Gupta's (1965) subset selection, turned
from the best one to the best K: a candidate i that belongs to the best K of the full evaluation has at least N - K others that do not end
above it, and is wrongly out only if chance puts K of the others c standard deviations ahead. This is likeliest when all are equally good
(the least favorable configuration). There, in the normal approximation, the number of others ahead of i by h = c sqrt(2) standard
deviations of one score is binomial given i's own luck, and h follows from one integral.

What the error probability means: over the random order of the examples, any one candidate of the best K is lost *in this round* with
probability at most ``error``; a race with several rounds divides its error among them (Bonferroni). No correction over candidates is
made, because the statement is about each: the expected fraction of the best K that is lost is at most the error. The normal approximation
is checked by simulation, least favorable configuration included, in tests/randopt/test_racing.py.

What is certain needs no approximation: scores lie between 0 and 1, so a lead greater than D - d, or equal to it with the lower index, can
no longer be lost.

References:
    S. S. Gupta, "On some multiple decision (selection and ranking) rules", Technometrics 7 (1965).
    R. J. Serfling, "Probability inequalities for the sum in sampling without replacement", Annals of Statistics 2 (1974).
    O. Maron, A. W. Moore, "Hoeffding races", NIPS 6 (1994): the idea of racing with bounds.
"""

import functools
import math

import numpy as np

_BLOCK = 512  # candidates compared with all others at a time: 20 MB an array for N = 5000


def may_reach_top(seen: np.ndarray, examples: int, top_k: int, error: float, candidates: int) -> np.ndarray:
    """Which candidates cannot be ruled out of the best K.

    Args:
        seen: (n, d) scores between 0 and 1 of the candidates still racing, on the examples they have all answered.
        examples: D >= d, how many it will be.
        top_k: K.
        error: probability of ruling out any one candidate that belongs to the best K.
        candidates: N >= n, how many started.

    Returns:
        bool (n,), true for at least K.
    """
    seen = np.asarray(seen, np.float64)
    count, done = seen.shape
    left = examples - done
    if count <= top_k or not left:
        return np.ones(count, bool)
    critical = critical_lead(candidates, top_k, error)
    totals, squares, index = seen.sum(axis=1), (seen**2).sum(axis=1), np.arange(count)
    ahead = np.empty(count, np.int64)
    for start in range(0, count, _BLOCK):
        own = slice(start, start + _BLOCK)
        lead = totals[None, :] - totals[own, None]  # (i, j): of j over i
        # Differences of equal rows must be 0 exactly, and nothing may be less.
        difference = np.maximum(squares[None, :] + squares[own, None] - 2 * (seen[own] @ seen.T), 0)
        deviation = np.sqrt(difference * (left / max(1, examples - 1)))
        certain = (lead > left) | ((lead == left) & (index[None, :] < index[own, None]))
        ahead[own] = (certain | ((lead > 0) & (lead > critical * deviation))).sum(axis=1)
    return ahead < top_k


@functools.lru_cache
def critical_lead(candidates: int, top_k: int, error: float) -> float:
    """c: how many standard deviations of a paired difference K others must lead by.

    N equally good candidates with independent standard normal luck: the probability that at least K of the others exceed one of them by
    h = c sqrt(2) is ``error``.

    >>> round(critical_lead(2, 1, 0.05), 3)  # two candidates: the one-sided normal quantile
    1.645
    """
    from scipy.special import bdtrc, ndtr  # a tenth of a second, and only this rule needs it

    luck = np.linspace(-9, 9, 721)
    weight = np.exp(-(luck**2) / 2)
    weight /= weight.sum()

    def lost(h: float) -> float:
        return float(weight @ bdtrc(top_k - 1, candidates - 1, ndtr(-(luck + h))))

    low, high = -40.0, 40.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if lost(middle) > error else (low, middle)
    return high / math.sqrt(2)
