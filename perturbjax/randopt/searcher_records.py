"""What results.json says of a search whose candidates a searcher chose."""

from dataclasses import dataclass

from perturbjax.report.schema import Interval


@dataclass(frozen=True)
class ScreenedGroup:
    """A part of the candidates that were chosen from a screened population.

    Attributes:
        candidates: how many; ``members``: those among the members of the ensemble, as indices, best first.
        mean_score, best_score: on the examples of ``PopulationSummary``.
    """

    candidates: int
    members: tuple[int, ...]
    mean_score: float
    best_score: float


@dataclass(frozen=True)
class ScreeningSummary:
    """What the screening chose, what that was worth on the search split, and what it cost.

    Attributes:
        screened: candidates with an inner product; ``examples``: of which the gradient was made.
        promising: those that the gradient put first; ``drawn``: those that were drawn from the others, the control.
        difference: mean score of the promising less that of the drawn, within sigmas; ``difference_interval``: its 95 % interval. None
            where there are too few candidates.
        highest: the highest product, in standard deviations of those of its sigma.
        tokens: of plain inference that take as many operations; ``numbers``: of noise that were drawn beside.
    """

    screened: int
    examples: int
    promising: ScreenedGroup
    drawn: ScreenedGroup
    difference: float | None
    difference_interval: Interval | None
    highest: float
    tokens: int
    numbers: int


@dataclass(frozen=True)
class HalvingRung:
    """One rung of halving over the sigmas.

    Attributes:
        sigmas: that took part; ``candidates``: that each of them had had by its end.
        worth: of each sigma, the mean search score of the best quarter of these candidates.
    """

    sigmas: tuple[float, ...]
    candidates: int
    worth: tuple[float, ...]
