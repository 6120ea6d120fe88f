"""Stop voting when the rest of the members cannot, or can hardly, change the answer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from perturbjax.errors import InputError
from perturbjax.noise import Population
from perturbjax.randopt.voting import MAJORITY, Voting
from perturbjax.tree import derived_seed


def check_early_exit(delta: float, voting: Voting) -> None:
    """Raise ``InputError`` for a ``delta`` that is no probability, or votes that do not all weigh the same."""
    if not 0 <= delta < 1:
        raise InputError(f"`early_exit` {delta:g}: a probability from 0 (stop when nothing can change) to below 1 is required")
    if voting.rule != MAJORITY:
        raise InputError(f"`early_exit` {delta:g}: counts votes, and these members vote {voting.rule}; leave it out, or vote by majority")


def random_order(population: Population, members: int) -> np.ndarray:
    """(K,) ranks of the members in the order in which they are asked: random, as the guarantee requires, and the same every time."""
    return np.random.default_rng(derived_seed(population.seed, "early exit")).permutation(members)


def decided(keys: Sequence[str | None], members: int, delta: float) -> bool:
    """Whether a majority vote of ``members`` can be called after the votes ``keys``, cast in random order (None abstains).

    Either the leader's lead is larger than the number of votes to come; then the answer is that of the full vote. Or ``delta`` > 0, and
    for the leader a against every other answer b an e-process has reached w / delta: E = product over their votes of 2 q if it is for a
    and 2 (1 - q) if for b, where q = (n_a + 1/2) / (n_a + n_b + 1) from *earlier* votes alone, and 1/2 (no bet) while n_a <= n_b.

    **Guarantee.** For each question the answer differs from the full vote's with probability at most ``delta``, over the random order. If b
    wins the full vote, a has no more votes than b in all; so once a leads b, the votes to come are more likely b's than a's, each factor
    has mean at most 1 given the past, and E passes c with probability at most 1 / c (Ville). Several answers a can be the wrong leader: the
    i-th answer that appears is given w = i (i + 1), whose inverses sum to 1. So nothing is assumed about the members: not that they are
    independent, nor that there are infinitely many of them. The published rule has two such processes, against the runner-up and against
    the rest; the order, the weights and the finite number of members are ours.

    >>> decided(["a"] * 5, 8, 0.0), decided(["a"] * 4, 8, 0.0)
    (True, False)
    >>> decided(["a"] * 8, 50, 0.05), decided(["a"] * 8, 50, 0.01)
    (True, False)
    """
    counts: dict[str, int] = {}
    for key in keys:
        if key is not None:
            counts[key] = counts.get(key, 0) + 1
    if not counts:
        return len(keys) == members
    leader = max(counts, key=lambda key: counts[key])
    rivals = [key for key in counts if key != leader]
    if counts[leader] - max((counts[key] for key in rivals), default=0) > members - len(keys):
        return True
    if delta == 0:
        return len(keys) == members
    place = 1 + list(counts).index(leader)
    needed = math.log(place * (place + 1) / delta)
    # Against an answer that nobody has given, every vote for the leader is a win.
    return all(_log_evidence(keys, leader, rival) >= needed for rival in (*rivals, None)) or len(keys) == members


def _log_evidence(keys: Sequence[str | None], leader: str, rival: str | None) -> float:
    total, leading, rivaling = 0.0, 0, 0
    for key in keys:
        if key is None or key not in (leader, rival):
            continue
        if leading > rivaling:
            q = (leading + 0.5) / (leading + rivaling + 1)
            total += math.log(2 * q if key == leader else 2 * (1 - q))
        leading, rivaling = leading + (key == leader), rivaling + (key == rival)
    return total
