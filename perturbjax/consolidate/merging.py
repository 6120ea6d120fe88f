"""Merges: a base moved along the weighted mean of candidates' noise, leaf by leaf from their seeds.

merged = base + length * sum_k w_k sigma_k sign_k scale E_k, with weights that add up to 1. **Uniform**: w_k = 1 / K. **Reward**: w_k in
proportion to max(0, s_k - s), the member's score on the search questions less that of the model that it was found around, so that a member
that gains twice as much counts twice; where no member gains, uniform. CoRP (arXiv 2605.31494) weights by reward too, and by how well
members agree; its formulas were not at hand, so this weighting is ours, and agreement is left out.

A merge is one pass over the keys of its members (``searchers.displaced``): the base, one copy in float32 and one leaf are in memory,
whatever K is. It is rounded once, to the type of the base. ``randopt.ensemble.merge`` averages the members as each was rounded: the same in
float32, but for rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from perturbjax.consolidate.measuring import Arm, Asker, Option
from perturbjax.noise import Candidate, Noise, Population
from perturbjax.searchers import displaced, widened
from perturbjax.tree import Params, derived_seed

UNIFORM, REWARD, RANDOM = "uniform merge", "reward merge", "random merge"


@dataclass(frozen=True)
class Part:
    """Candidates of one population that a move goes along, and the weight of each; of a merge, of all parts together 1."""

    population: Population
    members: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Move:
    """One move of a model: enough to make it again."""

    parts: tuple[Part, ...]
    length: float

    @property
    def candidates(self) -> Candidate:
        """Those of all parts, batched."""
        found = [part.population[list(part.members)] for part in self.parts]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *found)

    @property
    def factors(self) -> np.ndarray:
        """(K,) float64, what each candidate's scale * E is multiplied by."""
        candidates, weights = self.candidates, np.concatenate([part.weights for part in self.parts])
        return self.length * weights * np.asarray(candidates.sigma, np.float64) * np.asarray(candidates.sign, np.float64)


def moved_by(params: Params, noise: Noise, moves: Sequence[Move]) -> Params:
    """The parameters after some moves, one after the other, in float32 where they moved; ``params`` are not written."""
    wide = widened(params, noise)
    for move in moves:
        wide = displaced(wide, noise, move.candidates, move.factors)
    return wide


def uniform_weights(members: int) -> tuple[float, ...]:
    """1 / K for each."""
    return (1 / members,) * members


def reward_weights(scores: np.ndarray, center: float) -> tuple[float, ...]:
    """(K,) in proportion to what each member scores above its center; uniform where none does.

    >>> reward_weights(np.array([1.0, 0.75, 0.25]), 0.5)
    (0.6666666666666666, 0.3333333333333333, 0.0)
    """
    gains = np.maximum(0.0, np.asarray(scores, np.float64) - center)
    total = math.fsum(gains)
    return tuple((gains / total).tolist()) if total else uniform_weights(len(gains))


def merge_arms(asker: Asker, lengths: Sequence[float], seed: int) -> tuple[tuple[Arm, ...], tuple[str, ...]]:
    """The uniform and the reward-weighted merge of the members; as a control, the uniform merge of as many candidates that nobody chose.
    And notes.

    Args:
        asker: of the run.
        lengths: steps that are tried, ascending.
        seed: of the control's draw.
    """
    population, members = asker.ensemble.population, asker.ensemble.members
    scores, count = asker.ensemble.scores, len(members)
    assert scores is not None  # checked when the run was opened
    center = asker.base("search")
    weights = reward_weights(scores, center.accuracy)
    drawn = np.random.default_rng(derived_seed(seed, "random merge")).permutation(len(population))[:count]

    def arm(name: str, chosen: np.ndarray, weights: tuple[float, ...], tokens: int = 0, control: bool = False) -> Arm:
        part = Part(population, tuple(map(int, chosen)), weights)
        return Arm(name, tuple(_option(asker, Move((part,), length), tokens) for length in lengths), control)

    arms = (
        arm(UNIFORM, members, uniform_weights(count)),
        arm(REWARD, members, weights, center.tokens),
        arm(RANDOM, drawn, uniform_weights(count), control=True),
    )
    shown = ", ".join(f"{weight:.2f}" for weight in weights[:10]) + (", ..." if count > 10 else "")
    return arms, (f"reward weights {shown}",)


def _option(asker: Asker, move: Move, tokens: int) -> Option:
    return Option(f"length {move.length:.3g}", lambda: moved_by(asker.model.params, asker.parts.noise, (move,)), tokens)
