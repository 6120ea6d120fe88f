"""The numbers of results.json: one entry per system, comparisons, and the population in figures."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from perturbjax.noise.population import Population
from perturbjax.randopt.racing import Race
from perturbjax.report.intervals import paired_bootstrap, sign_test, wilson


def derived_seed(seed: int, label: str) -> int:
    """A seed in [0, 2**31) for one purpose, from the run's seed; equal on every platform."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{label}".encode()).digest()[:4], "big") >> 1


def entry(scores: np.ndarray, lenient: np.ndarray, tokens: int, search_tokens: int = 0) -> dict[str, Any]:
    """One system's figures on a split.

    Args:
        scores: (B,) strict scores; ``accuracy`` is their mean and ``interval`` its 95 % Wilson interval.
        lenient: (B,) lenient scores.
        tokens: spent on this split.
        search_tokens: spent beforehand to arrive at the system (search and select splits).
    """
    total = float(np.sum(scores, dtype=np.float64))
    return {
        "n": int(scores.size),
        "accuracy": total / scores.size,
        "interval": list(wilson(total, scores.size)),
        "lenient_accuracy": float(np.mean(lenient, dtype=np.float64)),
        "tokens": int(tokens),
        "search_tokens": int(search_tokens),
    }


def comparison(scores: np.ndarray, other: np.ndarray, seed: int) -> dict[str, Any]:
    """Paired difference to another system on the same examples, with its 95 % bootstrap interval and the exact sign test."""
    gained, lost, p_value = sign_test(scores, other)
    return {
        "difference": float(np.mean(scores, dtype=np.float64) - np.mean(other, dtype=np.float64)),
        "difference_interval": list(paired_bootstrap(scores, other, seed)),
        "gained": gained,
        "lost": lost,
        "p_value": p_value,
    }


def population_summary(population: Population, scores_NxD: np.ndarray, base_scores: np.ndarray, nonfinite: int) -> dict[str, Any]:
    """The population on the search split: its scores against the base's, in all and per sigma.

    A race stops candidates early, so the figures are on the ``examples`` that all candidates were asked (those of the first round): means
    over different numbers of examples cannot be compared, and those who got further are a selection.

    ``share_at_or_above_base`` is the RandOpt paper's density at margin 0, P[s(theta + sigma eps) >= s(theta)], with its Wilson interval.

    Args:
        population: N candidates.
        scores_NxD: search scores, NaN where a race did not ask.
        base_scores: (D,) of the unperturbed model.
        nonfinite: candidates with NaN or inf in their outputs on these examples (they score 0).
    """
    of = population.sigma_of(population.indices)
    asked = ~np.isnan(scores_NxD).any(axis=0)
    scores = scores_NxD[:, asked].mean(axis=1, dtype=np.float64)
    base_score = float(base_scores[asked].mean(dtype=np.float64))
    return {
        "n": len(population),
        "examples": int(asked.sum()),
        "mean_score": float(scores.mean()),
        "best_score": float(scores.max()),
        "base_search_score": base_score,
        **_share(scores, base_score),
        "nonfinite": int(nonfinite),
        "per_sigma": [
            {
                "sigma": float(sigma),
                "n": int(mine.size),
                "mean": float(mine.mean()),
                "best": float(mine.max()),
                **_share(mine, base_score),
            }
            for sigma in population.sigmas
            if (mine := scores[of == np.float32(sigma)]).size  # a population smaller than the list of sigmas leaves some without candidates
        ],
    }


def racing_summary(
    race: Race, scores: np.ndarray, base_scores: np.ndarray, tokens: np.ndarray, base_tokens: int, nonfinite: Sequence[int]
) -> dict[str, Any]:
    """What the race did and saved.

    Args:
        race: rule and rounds.
        scores: (N, D), NaN where it did not ask.
        base_scores: (D,) of the unperturbed model.
        tokens: (N, R) spent, by candidate and round.
        base_tokens: of the unperturbed model on all D examples.
        nonfinite: candidates with NaN or inf in their outputs, by round.

    Returns:
        ``rule``; ``error``, what ``bounds`` promises (null for the others); ``rounds``, each with its ``candidates``, the ``examples`` that
        they have been asked by its end, its ``tokens``, the ``mean_score`` and ``best_score`` of its candidates on those examples, the
        ``kept`` of them that went on with their ``kept_mean_score`` there, the base's score there, ``nonfinite``; ``tokens`` in all;
        ``full_tokens``, what asking every candidate everything takes: N times ``base_tokens``, which is exact where no text is generated
        (other models give replies of other lengths) and the tokens themselves where nobody was stopped; ``share`` of them.
    """
    rounds = []
    for number, end in enumerate(race.ends):
        entrants = race.entrants(scores, number)
        kept = race.entrants(scores, number + 1) if number + 1 < len(race.ends) else entrants
        asked = scores[:, :end].astype(np.float64)
        rounds.append(
            {
                "candidates": len(entrants),
                "examples": end,
                "tokens": int(tokens[:, number].sum()),
                "mean_score": float(asked[entrants].mean()),
                "best_score": float(asked[entrants].mean(axis=1).max()),
                "base_score": float(base_scores[:end].mean(dtype=np.float64)),
                "kept": len(kept),
                "kept_mean_score": float(asked[kept].mean()),
                "nonfinite": int(nonfinite[number]),
            }
        )
    spent = int(tokens.sum())
    full = spent if len(rounds) == 1 else len(scores) * int(base_tokens)
    return {
        "rule": race.rule,
        "error": race.error if race.rule == "bounds" else None,
        "rounds": rounds,
        "tokens": spent,
        "full_tokens": full,
        "share": spent / full if full else 1.0,
    }


def _share(scores: np.ndarray, base_score: float) -> dict[str, Any]:
    # Equal counts of right answers must compare equal whatever the order of summation was.
    at_or_above = int((scores >= base_score - 1e-9).sum())
    return {
        "share_at_or_above_base": at_or_above / scores.size,
        "share_interval": list(wilson(at_or_above, scores.size)),
    }
