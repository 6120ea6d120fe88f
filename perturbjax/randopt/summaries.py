"""Votes, population and race in figures, from the score matrices."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from perturbjax.noise import Population, Subset
from perturbjax.randopt.entries import VoteEntry
from perturbjax.randopt.flow import SearchRecord, VoteCurve
from perturbjax.randopt.preflight import FirstLook
from perturbjax.randopt.reliability import reliability
from perturbjax.randopt.results import (
    HalvedResults,
    PopulationSummary,
    RacingSummary,
    ReliabilitySummary,
    Results,
    Round,
    SigmaSummary,
    Ties,
)
from perturbjax.randopt.searcher_records import HalvingRung
from perturbjax.randopt.sigma_halving import SigmaHalving
from perturbjax.report import compared_entry, entry
from perturbjax.report.accounting import wilson


def vote_entry(curve: VoteCurve, k: int, base_scores: np.ndarray, seed: int, search_tokens: int = 0) -> VoteEntry:
    """The vote of the first ``k``, compared to the base's (B,) scores; ``seed`` is that of the bootstrap."""
    scores = curve.scores[k - 1]
    figures = entry(scores, curve.lenient[k - 1], curve.tokens[k - 1], search_tokens)
    return VoteEntry(**vars(compared_entry(figures, scores, base_scores, seed)), K=k)


def population_summary(population: Population | Subset, record: SearchRecord) -> PopulationSummary:
    """The population on the search split: its scores against the base's, in all and per sigma.

    A race stops candidates early, so the figures are on the examples that all candidates were asked (those of the first round): means over
    different numbers of examples cannot be compared, and those who got further are a selection.
    """
    sigmas = population.sigma_of(np.arange(len(population)))
    asked = ~np.isnan(record.scores).any(axis=0)
    scores = record.scores[:, asked].mean(axis=1, dtype=np.float64)
    base_score = float(record.base_scores[asked].mean(dtype=np.float64))
    per_sigma = []
    for sigma in population.sigmas:
        mine = scores[sigmas == np.float32(sigma)]
        if mine.size:  # a population smaller than the list of sigmas leaves some without candidates
            summary = SigmaSummary(**_density(mine, base_score), sigma=float(sigma), mean=float(mine.mean()), best=float(mine.max()))
            per_sigma.append(summary)
    return PopulationSummary(
        **_density(scores, base_score),
        examples=int(asked.sum()),
        mean_score=float(scores.mean()),
        best_score=float(scores.max()),
        base_search_score=base_score,
        nonfinite=int(record.nonfinite[0]),
        per_sigma=tuple(per_sigma),
    )


def racing_summary(record: SearchRecord) -> RacingSummary:
    """What the race did and saved.

    ``full_tokens`` is N times ``base_tokens``, which is exact where no text is generated (other models give replies of other lengths), and
    the tokens themselves where nobody was stopped.
    """
    rounds, race, scores = [], record.race, record.scores
    for number, end in enumerate(race.ends):
        survivors = race.survivors(scores, number)
        promoted = race.survivors(scores, number + 1) if number + 1 < len(race.ends) else survivors
        asked = scores[:, :end].astype(np.float64)
        rounds.append(
            Round(
                candidates=len(survivors),
                examples=end,
                tokens=int(record.tokens[:, number].sum()),
                mean_score=float(asked[survivors].mean()),
                best_score=float(asked[survivors].mean(axis=1).max()),
                base_score=float(record.base_scores[:end].mean(dtype=np.float64)),
                kept=len(promoted),
                kept_mean_score=float(asked[promoted].mean()),
                nonfinite=int(record.nonfinite[number]),
            )
        )
    spent = record.total_tokens
    full = spent if race.parts == 1 or race.rungs else len(scores) * int(record.base_tokens)
    error = race.error if race.rule == "bounds" else None
    screen = race.screen if race.screens else None
    return RacingSummary(race.rule, error, tuple(rounds), spent, full, spent / full if full else 1.0, record.skipped, screen)


def with_halving(results: Results, halving: SigmaHalving, sigmas: Sequence[float], scores: np.ndarray) -> HalvedResults:
    """The results of a search that halved its sigmas: what every search has, and the rungs, of (N, D) scores."""
    rungs, had = [], 0
    for rung in halving.played(scores):
        assert rung.worth is not None, "the search has ended"
        had += rung.share
        rungs.append(HalvingRung(tuple(sigmas[number] for number in rung.alive), had, tuple(rung.worth.tolist())))
    fields: dict[str, Any] = vars(results)
    return HalvedResults(**fields, halving=tuple(rungs))


def reliability_summary(record: SearchRecord) -> ReliabilitySummary | None:
    """The reliability at the first look and of the whole population, both of the mean over all search examples; None where there are too
    few scores for one."""
    scores = record.scores
    looked = FirstLook(record.race).found(scores)
    population = reliability(scores[:, ~np.isnan(scores).any(axis=0)], scores.shape[1])
    return ReliabilitySummary(looked, population) if looked and population else None


def tie_summary(scores: np.ndarray, members: np.ndarray, pool: np.ndarray) -> Ties:
    """How many candidates have the score of the last member, and how many of those made it in.

    Scores on D right/wrong examples take only D + 1 values, so ties at rank K are common; which of the equals are taken is then an
    accident of their index, and ``tied_candidates`` far above ``tied_inside_k`` says that the selection was partly arbitrary.

    Args:
        scores: (N,) mean search scores.
        members: (K,) the chosen candidates, best first.
        pool: indices of all the candidates they were chosen from, finalists of the race: the others have no score to tie with.
    """
    last = scores[members[-1]]
    return Ties(float(last), int((scores[pool] == last).sum()), int((scores[members] == last).sum()))


def _density(scores: np.ndarray, base_score: float) -> dict[str, Any]:
    """The fields of a ``Density``."""
    # Equal counts of right answers must compare equal whatever the order of summation was.
    at_or_above = int((scores >= base_score - 1e-9).sum())
    interval = wilson(at_or_above, scores.size)
    return {"n": int(scores.size), "share_at_or_above_base": at_or_above / scores.size, "share_interval": interval}
