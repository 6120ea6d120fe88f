"""The gate: one of several models, or the base, decided on questions that made none of them.

CoRP (arXiv 2605.31494) commits a merge only if it is better on held-out questions. The rule here is ours. Several options are compared on
the select questions, so the best of them looks better than it is; what the gate reads is therefore cross-fitted: the option that one half
of the questions chooses is measured on the other half, and the other way round. The gain over the base, over all questions and over
``DIVISIONS`` random halves, must be above 0. One division alone is a draw: where its halves differ in their answers by chance, an option
that leans to one answer wins the one half and loses the other.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

DIVISIONS = 200
"""The mean over so many is known to a fourteenth of what one division varies by."""


@dataclass(frozen=True)
class Choice:
    """What select says.

    Attributes:
        best: the option with the highest accuracy on all questions, ties to the earlier.
        gain: the cross-fitted gain over the base, from -1 to 1.
    """

    best: int
    gain: float

    @property
    def taken(self) -> bool:
        """Whether the gate lets the best option through."""
        return self.gain > 0


def choose(base: Float[np.ndarray, " B"], options: Float[np.ndarray, "n B"]) -> Choice:
    """The best option, and whether choosing among these options is worth anything.

    With one option the gain is its difference to the base. With several it is at most the difference of the best, in every division: each
    half's choice is at least as good there as that of the other half.

    Args:
        base: (B,) scores of the base, B at least 2.
        options: (n, B) scores of the options, the one that changes the base least first.

    >>> base, better, worse = np.array([0.0, 1, 0, 1]), np.array([1.0, 1, 1, 0]), np.zeros(4)
    >>> choose(base, np.stack([worse, better])).best
    1
    >>> choose(base, worse[None]).taken
    False
    """
    base, options = np.asarray(base, np.float64), np.asarray(options, np.float64)
    gains = options - base[None]
    total = sum(gains[best_of(options[:, here]), ~here].sum() for half in divisions(len(base)) for here in (half, ~half))
    return Choice(best_of(options), float(total / (DIVISIONS * len(base))))


def divisions(questions: int) -> Bool[np.ndarray, "n B"]:
    """Which questions are in the first half, of ``DIVISIONS`` random ones: the same at every call."""
    rng = np.random.default_rng(0)
    return np.stack([rng.permutation(questions) < questions // 2 for _ in range(DIVISIONS)])


def best_of(options: Float[np.ndarray, "n B"]) -> int:
    """The option with the highest mean score, the earliest of equals."""
    return int(np.argmax(np.mean(options, axis=1, dtype=np.float64)))
