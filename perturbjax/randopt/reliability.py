"""Reliability: the share of the variance between candidates' scores that would repeat on other examples.

Scores of n candidates on d examples are x_ij = mean + candidate_i + example_j + residual_ij. With the mean squares of a two-way analysis of
variance without replication, the variance between candidates is v = (MS_candidates - MS_residual) / d and that of the residual
e = MS_residual. The mean score over D examples then has the reliability v / (v + e / D): its expected correlation with the mean over D
*other* examples. For D = d it is Cronbach's alpha; other D follow by Spearman and Brown. Examples may be of any difficulty, which is the
same for all candidates and drops out.

The 95 % interval is Feldt's: F = MS_candidates / MS_residual over the true ratio has the F distribution with n - 1 and (n - 1)(d - 1)
degrees of freedom. It is exact for normal scores; tests/randopt/test_reliability.py measures its coverage on right-or-wrong ones.

What it cannot see: where sigmas differ, so do their means, and that difference repeats too. A search that only finds out that its largest
sigma breaks the model has a high reliability.

References:
    L. S. Feldt, "The approximate sampling distribution of Kuder-Richardson reliability coefficient twenty", Psychometrika 30 (1965).
    P. E. Shrout, J. L. Fleiss, "Intraclass correlations: uses in assessing rater reliability", Psychological Bulletin 86 (1979), ICC(3, k).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from perturbjax.report.schema import Interval
from perturbjax.report.words import count

ENOUGH = 0.3
"""Below it a search cannot rank its candidates (FIELD: 0.12 was measured on a post-trained 8B model, 0.94 on Countdown with a 0.5B)."""


@dataclass(frozen=True)
class Reliability:
    """Of the mean score over ``examples``, estimated from ``candidates`` x ``asked`` scores.

    Attributes:
        value: the reliability, from 0 to 1; 0 where the candidates differ by no more than chance.
        interval: 95 %.
        between: v, the variance between candidates; residual: e, of one score.
        candidates, asked: n and d.
        examples: D.
    """

    value: float
    interval: Interval
    between: float
    residual: float
    candidates: int
    asked: int
    examples: int

    @property
    def enough(self) -> bool:
        return self.value >= ENOUGH

    @property
    def needed(self) -> int | None:
        """Examples with which the reliability would be ``ENOUGH``; None where the candidates differ by no more than chance."""
        if self.between <= 0:
            return None
        return math.ceil(self.residual / self.between * ENOUGH / (1 - ENOUGH))

    @property
    def words(self) -> str:
        """``0.41 [0.12, 0.66] on 64 search questions, from 32 candidates x 16 questions``."""
        low, high = self.interval
        of = f"{count(self.candidates)} candidates x {count(self.asked)} questions"
        return f"{self.value:.2f} [{low:.2f}, {high:.2f}] on {count(self.examples)} search questions, from {of}"


def reliability(scores: np.ndarray, examples: int) -> Reliability | None:
    """That of the mean over ``examples``, from scores (n, d) without NaN; None where n or d is less than 2.

    Where all scores of every example agree, no candidate differs from another and the reliability is 0.
    """
    scores = np.asarray(scores, np.float64)
    n, d = scores.shape
    if n < 2 or d < 2:
        return None
    means = scores.mean(axis=1)
    residuals = scores - means[:, None] - scores.mean(axis=0) + scores.mean()
    # What is left of equal scores is rounding.
    candidates, residual = (0.0 if square < 1e-12 else square for square in (d * means.var(ddof=1), _mean_square(residuals)))

    def of(ratio: float) -> float:
        """The reliability over ``examples`` of a ratio of the expected mean squares, 1 + d v / e."""
        signal = max(0.0, (ratio - 1) / d)
        return signal / (signal + 1 / examples)

    figures = {"candidates": n, "asked": d, "examples": examples}
    if residual == 0:
        value = 1.0 if candidates > 0 else 0.0
        return Reliability(value, (value, value), candidates / d, 0.0, **figures)
    from scipy.special import fdtri  # a tenth of a second, and `import perturbjax` does without it

    ratio, freedom = candidates / residual, (n - 1, (n - 1) * (d - 1))
    low, high = (float(of(ratio / fdtri(*freedom, quantile))) for quantile in (0.975, 0.025))
    return Reliability(of(ratio), (low, high), max(0.0, (candidates - residual) / d), residual, **figures)


def _mean_square(residuals: np.ndarray) -> float:
    n, d = residuals.shape
    return float(np.square(residuals).sum() / ((n - 1) * (d - 1)))


def advice(found: Reliability) -> str:
    """One line for a search that cannot rank: what was found and what would help."""
    more = (
        "candidates differ by no more than chance"
        if found.needed is None
        else f"about {count(found.needed)} search questions would give {ENOUGH:g}"
    )
    return (
        f"this search cannot rank its candidates: reliability {found.words}, at least {ENOUGH:g} is required; "
        f"{more}. What would help: more search questions, a larger sigma, or another task"
    )
