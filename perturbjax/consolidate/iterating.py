"""Iterated search: members merged, a fresh population around the merge, its best merged, and so on; beside as many searches around the
base.

Round 0 is the run's own search: its members, merged. Round r >= 1 draws a population of a seed of its own, scores all of it on the search
questions, and merges the K best, weighted by their gain over the center (``merging.reward_weights``). The length of each move is the one
with the highest score on the same search questions, so select sees one model a round, and chooses the round.

The control has the same populations around the base, which does not move: after r of them the K best of all candidates so far, the run's
members among them, are merged in the same way. Both score as many candidates and as many lengths on the same questions, and both end after
any of the rounds, as select says. What re-centring is worth is their difference. (The authors' iterated RandOpt, 2026, chose the best round
on test, and had no such control.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from perturbjax.consolidate.config import Config
from perturbjax.consolidate.measuring import Arm, Asker
from perturbjax.consolidate.merging import Part, reward_weights
from perturbjax.consolidate.rounds import Center, Found, Rounds, shown
from perturbjax.report.words import count
from perturbjax.runs.identity import Identity
from perturbjax.runs.state import RunState
from perturbjax.scoring import top_k

ITERATED, AROUND_BASE = "iterated", "around the base"


def iterate_arms(
    asker: Asker, config: Config, lengths: Sequence[float], identity: Identity, on_state: Callable[[RunState], None]
) -> tuple[tuple[Arm, ...], tuple[str, ...]]:
    """Searches round after round, around the merge and around the base; and notes. Arguments as of ``Rounds``."""
    rounds = Rounds(asker, config, lengths, identity, on_state)
    members = members_of(asker)
    first = merged(rounds, "round 0", rounds.start(), members, 0)
    centers, alone, pool = [first], [first], members
    for number in range(1, config.settings["rounds"] + 1):
        here = rounds.searched(ITERATED, number, centers[-1].moves)
        centers.append(merged(rounds, f"{ITERATED}, round {number}", centers[-1], best(here.found, len(members)), here.tokens))
        there = rounds.searched(AROUND_BASE, number, ())
        pool = best((*pool, *there.found), len(members))
        alone.append(merged(rounds, f"{AROUND_BASE}, round {number}", rounds.start(alone[-1].tokens), pool, there.tokens))
    names = ((ITERATED, centers, False), (AROUND_BASE, alone, True))
    arms = tuple(Arm(name, tuple(map(rounds.option, range(len(found)), found)), control) for name, found, control in names)
    lengths_of = ", ".join(f"{move.length:.3g}" for move in centers[-1].moves)
    return arms, (
        f"searches each way: {len(centers) - 1}, of {count(len(rounds.population(0)))} candidates; lengths of the moves {lengths_of}",
        f"right on search after each round, in %: {ITERATED} {shown(centers)}; {AROUND_BASE} {shown(alone)}",
    )


def members_of(asker: Asker) -> tuple[Found, ...]:
    """The run's own, best first."""
    ensemble = asker.ensemble
    assert ensemble.scores is not None  # checked when the run was opened
    return tuple(Found(ensemble.population, int(i), float(s)) for i, s in zip(ensemble.members, ensemble.scores, strict=True))


def best(found: Sequence[Found], number: int) -> tuple[Found, ...]:
    """Those with the highest scores, best first; ties to the earlier."""
    return tuple(found[i] for i in top_k(np.array([each.score for each in found]), number))


def merged(rounds: Rounds, name: str, center: Center, chosen: Sequence[Found], tokens: int) -> Center:
    """The center moved along the chosen, best first, weighted by their gain over it; the rest as of ``Rounds.moved``."""
    weights = reward_weights(np.array([each.score for each in chosen]), center.score)
    populations = dict.fromkeys(each.population for each in chosen)
    parts = tuple(
        Part(
            population,
            tuple(each.index for each in chosen if each.population == population),
            tuple(weight for each, weight in zip(chosen, weights, strict=True) if each.population == population),
        )
        for population in populations
    )
    return rounds.moved(name, center, parts, tokens)
