"""An evolution strategy around the base: a fresh population around the center, and the center moved along all of it by centred ranks.

Round r scores a population of a seed of its own on the search questions and moves the center along sum_i w_i sigma_i sign_i scale E_i, w_i
the centred ranks (``searchers.evolution``, Salimans et al., arXiv 1703.03864), among candidates of one sigma where the run has several. A
length of 1 is that of ``evolution.rate_of_length``: about as long as a candidate. With several lengths each round takes the one with the
highest score on the search questions; select chooses the round. Of a run's members nothing is used: the vote stands beside.

It is here and no searcher of ``randopt`` because it ends in one model, not in members that can vote.

The control goes as many rounds along the same populations by ranks of nobody's scores, drawn at random, with the same choice of lengths and
rounds. So what the scores are worth is their difference; what it saves, the scoring, is in its tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from perturbjax.consolidate.config import Config
from perturbjax.consolidate.measuring import Arm, Asker
from perturbjax.consolidate.merging import Part
from perturbjax.consolidate.rounds import Rounds, shown
from perturbjax.noise import Population
from perturbjax.report.words import count
from perturbjax.runs.identity import Identity
from perturbjax.runs.state import RunState
from perturbjax.searchers.evolution import centred_ranks
from perturbjax.tree import derived_seed

EVOLVED, RANDOM_RANKS = "evolved", "random ranks"


def evolve_arms(
    asker: Asker, config: Config, lengths: Sequence[float], identity: Identity, on_state: Callable[[RunState], None]
) -> tuple[tuple[Arm, ...], tuple[str, ...]]:
    """Steps by ranks of scores, and by random ranks; and notes. Arguments as of ``Rounds``."""
    rounds = Rounds(asker, config, lengths, identity, on_state)
    numbers = range(1, config.settings["rounds"] + 1)
    centers, walk = [rounds.start()], [rounds.start()]
    for number in numbers:
        here = rounds.searched(EVOLVED, number, centers[-1].moves)
        part = ranked(rounds.population(number), np.array([each.score for each in here.found]))
        centers.append(rounds.moved(f"{EVOLVED}, round {number}", centers[-1], (part,), here.tokens))
    asker.progress.note(RANDOM_RANKS)
    for number in numbers:
        population = rounds.population(number)
        drawn = np.random.default_rng(derived_seed(population.seed, RANDOM_RANKS)).random(len(population))
        walk.append(rounds.moved(f"{RANDOM_RANKS}, round {number}", walk[-1], (ranked(population, drawn),), 0))
    names = ((EVOLVED, centers, False), (RANDOM_RANKS, walk, True))
    arms = tuple(Arm(name, tuple(map(rounds.option, numbers, found[1:])), control) for name, found, control in names)
    lengths_of = ", ".join(f"{move.length:.3g}" for move in centers[-1].moves)
    return arms, (
        f"rounds: {len(numbers)}, of {count(len(rounds.population(1)))} candidates; lengths of the moves {lengths_of}",
        f"right on search at first and after each round, in %: {EVOLVED} {shown(centers)}; {RANDOM_RANKS} {shown(walk)}",
    )


def ranked(population: Population, scores: np.ndarray) -> Part:
    """All candidates with the ranks of their scores among those of one sigma, scaled so that a move of length 1 is about as long as one.

    Args:
        population: N candidates, at least two of each sigma.
        scores: (N,).
    """
    sigmas = np.asarray(population[:].sigma)
    weights = np.empty(len(population))
    for sigma in np.unique(sigmas):
        weights[sigmas == sigma] = centred_ranks(scores[sigmas == sigma])
    # n ranks without ties have the squares n / 12 in all, and independent noise adds up in squares.
    return Part(population, tuple(range(len(population))), tuple((weights * math.sqrt(12 / len(population))).tolist()))
