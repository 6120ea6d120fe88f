"""The typed results that all chapters share. A chapter's own ``Results`` is a dataclass made of these; ``records`` writes and reads it.

An entry says how one system did on one split, a comparison how it did beside another on the same examples. In JSON both lie flat in one
object, because a compared entry inherits the fields of both.
"""

from dataclasses import dataclass
from typing import Literal

Interval = tuple[float, float]
"""(low, high), 95 %."""
Verdict = Literal["helped", "no clear effect", "hurt"]

SIGNIFICANT = 0.05


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One system's figures on a split.

    Attributes:
        n: examples.
        accuracy: mean strict score; ``interval`` is its Wilson interval.
        lenient_accuracy: mean score where answers in any recognizable format count.
        tokens: spent on this split.
        search_tokens: spent beforehand to arrive at the system.
    """

    n: int
    accuracy: float
    interval: Interval
    lenient_accuracy: float
    tokens: int
    search_tokens: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The paired difference between two systems on the same examples.

    Attributes:
        difference: of the mean scores; ``difference_interval`` is its paired bootstrap interval.
        gained: examples on which the first scores higher; ``lost``: lower.
        p_value: of the exact two-sided sign test.
    """

    difference: float
    difference_interval: Interval
    gained: int
    lost: int
    p_value: float

    @property
    def verdict(self) -> Verdict:
        """Clear means that the 95 % bootstrap interval excludes 0 *and* the exact sign test agrees (p < 0.05): with few differing examples
        the bootstrap alone claims too much."""
        low, high = self.difference_interval
        if self.p_value < SIGNIFICANT and low > 0:
            return "helped"
        if self.p_value < SIGNIFICANT and high < 0:
            return "hurt"
        return "no clear effect"


@dataclass(frozen=True, kw_only=True)
class ComparedEntry(Comparison, Entry):
    """One system's figures, and its difference to the base."""


@dataclass(frozen=True)
class Source:
    """What a model or a task is called, and where it comes from, in one line."""

    name: str
    source: str


@dataclass(frozen=True)
class Devices:
    """What a run ran on: JAX's backend, the kinds of device, and how many devices and processes there were."""

    backend: str
    kinds: tuple[str, ...]
    count: int
    processes: int


@dataclass(frozen=True)
class Headline:
    """What a reader takes away.

    Attributes:
        verdict: the chapter's method against the base.
        title: one line.
        sentences: effect, controls, cost; each stands alone.
    """

    verdict: Verdict
    title: str
    sentences: tuple[str, ...]
