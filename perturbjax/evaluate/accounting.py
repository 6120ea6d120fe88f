"""The numbers of results.json: one entry per system, comparisons, and the population in figures."""

import hashlib
from typing import Any

import numpy as np

from perturbjax.evaluate.intervals import paired_bootstrap, sign_test, wilson
from perturbjax.population import Population


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


def population_summary(population: Population, scores: np.ndarray, base_score: float, nonfinite: int) -> dict[str, Any]:
    """The population on the search split: its scores against the base's, in all and per sigma.

    ``share_at_or_above_base`` is the RandOpt paper's density at margin 0, P[s(theta + sigma eps) >= s(theta)], with its Wilson interval.

    Args:
        population: N candidates.
        scores: (N,) mean search scores.
        base_score: mean search score of the unperturbed model.
        nonfinite: candidates with NaN or inf in their outputs (they score 0).
    """
    of = population.sigma_of(population.indices)
    return {
        "n": len(population),
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


def _share(scores: np.ndarray, base_score: float) -> dict[str, Any]:
    # Equal counts of right answers must compare equal whatever the order of summation was.
    at_or_above = int((scores >= base_score - 1e-9).sum())
    return {
        "share_at_or_above_base": at_or_above / scores.size,
        "share_interval": list(wilson(at_or_above, scores.size)),
    }
