"""What a screening was worth, in figures: the candidates that the gradient put first beside those that were drawn."""

from typing import Any

import numpy as np

from perturbjax.randopt.flow import Flow
from perturbjax.randopt.results import Results, ScreenedResults
from perturbjax.randopt.screened import Screening
from perturbjax.randopt.searcher_records import ScreenedGroup, ScreeningSummary


def with_screening(results: Results, flow: Flow, screening: Screening, members: np.ndarray) -> ScreenedResults:
    """The results of a search that screened: what every search has, and how the two parts of its candidates did.

    Args:
        results: what every search has.
        flow: of the search.
        screening: how its candidates were chosen.
        members: (K,) positions of the ensemble, best first.
    """
    record, population, drawn = flow.record, flow.population, np.array(screening.drawn)
    sigmas = population.sigma_of(np.arange(len(population)))
    asked = ~np.isnan(record.scores).any(axis=0)  # the same questions for all, whatever a race did
    scores = record.scores[:, asked].mean(axis=1, dtype=np.float64)

    def group(mine: np.ndarray) -> ScreenedGroup:
        voters = population.index_of(members[mine[members]])
        return ScreenedGroup(int(mine.sum()), tuple(voters.tolist()), float(scores[mine].mean()), float(scores[mine].max()))

    difference, interval = difference_within(scores, ~drawn, sigmas) or (None, None)
    deviations = np.select([sigmas == np.float32(sigma) for sigma in population.sigmas], screening.deviations)
    summary = ScreeningSummary(
        screened=len(population.whole),
        examples=screening.examples,
        promising=group(~drawn),
        drawn=group(drawn),
        difference=difference,
        difference_interval=interval,
        highest=float(np.divide(screening.products, deviations, out=np.zeros(len(drawn)), where=deviations > 0).max()),
        tokens=screening.tokens,
        numbers=screening.numbers,
    )
    fields: dict[str, Any] = vars(results) | {"seconds": results.seconds | {"screening": screening.seconds}}
    return ScreenedResults(**fields, screening=summary)


def difference_within(scores: np.ndarray, first: np.ndarray, sigmas: np.ndarray) -> tuple[float, tuple[float, float]] | None:
    """Mean score of one group of candidates less that of the others, within sigmas, and its 95 % interval.

    Scores depend on sigma, and the groups may have other shares of the sigmas: so the difference is the coefficient of the group in a least
    squares fit with an intercept for each sigma, with Student's interval. It takes the variance within a group and a sigma to be the same
    everywhere.

    Args:
        scores: (N,) of the candidates.
        first: bool (N,), who is in the group.
        sigmas: (N,) of the candidates.

    Returns:
        The difference and its interval; None where too few candidates share a sigma.

    >>> found = difference_within(np.array([0.5, 0.7, 0.2, 0.4]), np.array([True, True, False, False]), np.ones(4))
    >>> round(found[0], 6), [round(limit, 2) for limit in found[1]]
    (0.3, [-0.31, 0.91])
    """
    from scipy.special import stdtrit  # a tenth of a second, and `import perturbjax` does without it

    x, y = first.astype(np.float64), scores.astype(np.float64)
    strata = np.unique(sigmas)
    for sigma in strata:
        mine = sigmas == sigma
        x[mine], y[mine] = x[mine] - x[mine].mean(), y[mine] - y[mine].mean()
    spread, freedom = float(x @ x), len(x) - len(strata) - 1
    if freedom < 1 or spread < 1e-9:
        return None
    difference = float(x @ y) / spread
    half = float(stdtrit(freedom, 0.975)) * float(np.sqrt(((y - difference * x) ** 2).sum() / freedom / spread))
    return difference, (difference - half, difference + half)
