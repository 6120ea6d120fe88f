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
from dataclasses import dataclass, replace

import numpy as np

from perturbjax.consolidate.config import Config
from perturbjax.consolidate.measuring import Arm, Asker, Option
from perturbjax.consolidate.merging import Move, Part, moved_by, reward_weights
from perturbjax.errors import InputError
from perturbjax.noise import Population
from perturbjax.randopt.config import Search
from perturbjax.randopt.ensemble import Ensemble
from perturbjax.randopt.loop import search
from perturbjax.randopt.racing import Race
from perturbjax.randopt.table import open_state
from perturbjax.report.words import count
from perturbjax.runs.files import MetricsLog
from perturbjax.runs.identity import Identity
from perturbjax.runs.state import RunState
from perturbjax.scoring import top_k
from perturbjax.tree import Params, derived_seed, digest

ITERATED, AROUND_BASE = "iterated", "around the base"


@dataclass(frozen=True)
class Found:
    """One candidate and its mean score on the search questions."""

    population: Population
    index: int
    score: float


@dataclass(frozen=True)
class Scored:
    """A searched population, as kept: (N,) mean scores, and the tokens that they took."""

    scores: tuple[float, ...]
    tokens: int


@dataclass(frozen=True)
class Center:
    """A model that a round ended with.

    Attributes:
        moves: from the base to it.
        score: its accuracy on the search questions.
        tokens: spent on the search questions up to here.
    """

    moves: tuple[Move, ...]
    score: float
    tokens: int


def population_of(config: Config, ensemble: Ensemble, search: Search, number: int) -> Population:
    """The candidates of a round, of the same sigmas as the run's and as many as it scored.

    Raises:
        InputError: `population` cannot be that of a search.
    """
    size = config.population or search.population
    if size < len(ensemble):
        raise InputError(f"`population` {size}: at least the {len(ensemble)} members of the ensemble are required")
    try:
        return replace(ensemble.population, seed=derived_seed(search.seed, f"round {number}"), size=size)
    except ValueError as error:
        raise InputError(f"`population` {str(error).removeprefix('size ')}") from error


def iterate_arms(
    asker: Asker, config: Config, lengths: Sequence[float], identity: Identity, on_state: Callable[[RunState], None]
) -> tuple[tuple[Arm, ...], tuple[str, ...]]:
    """Searches round after round, around the merge and around the base; and notes.

    Args:
        asker: of the run.
        config: the settings.
        lengths: of moves, ascending.
        identity: of the consolidation.
        on_state: called with the open state of each search.
    """
    rounds = Rounds(asker, config, tuple(lengths), identity, on_state)
    first, members = rounds.first(), rounds.members()
    centers, alone, pool = [first], [first], members
    for number in range(1, config.settings["rounds"] + 1):
        here = rounds.searched(ITERATED, number, centers[-1].moves)
        centers.append(rounds.merged(f"{ITERATED}, round {number}", centers[-1], best(here.found, len(members)), here.tokens))
        there = rounds.searched(AROUND_BASE, number, ())
        pool = best((*pool, *there.found), len(members))
        start = Center((), asker.base("search").accuracy, alone[-1].tokens)
        alone.append(rounds.merged(f"{AROUND_BASE}, round {number}", start, pool, there.tokens))
    names = ((ITERATED, centers, False), (AROUND_BASE, alone, True))
    arms = tuple(Arm(name, tuple(map(rounds.option, range(len(found)), found)), control) for name, found, control in names)
    shown = [", ".join(f"{100 * center.score:.1f}" for center in found) for _, found, _ in names]
    lengths_of = ", ".join(f"{move.length:.3g}" for move in centers[-1].moves)
    size = len(population_of(config, asker.ensemble, asker.parts.config.search, 0))
    return arms, (
        f"searches each way: {len(centers) - 1}, of {count(size)} candidates; lengths of the moves {lengths_of}",
        f"right on search after each round, in %: {ITERATED} {shown[0]}; {AROUND_BASE} {shown[1]}",
    )


@dataclass(frozen=True)
class Searched:
    """A searched population and what it took."""

    found: tuple[Found, ...]
    tokens: int


def best(found: Sequence[Found], number: int) -> tuple[Found, ...]:
    """Those with the highest scores, best first; ties to the earlier."""
    return tuple(found[i] for i in top_k(np.array([each.score for each in found]), number))


@dataclass(frozen=True)
class Rounds:
    """The steps of both ways; attributes as of ``iterate_arms``."""

    asker: Asker
    config: Config
    lengths: tuple[float, ...]
    identity: Identity
    on_state: Callable[[RunState], None]

    @property
    def seed(self) -> int:
        return self.asker.parts.config.search.seed

    def members(self) -> tuple[Found, ...]:
        """The run's own, best first."""
        ensemble = self.asker.ensemble
        assert ensemble.scores is not None  # checked when the run was opened
        return tuple(Found(ensemble.population, int(i), float(s)) for i, s in zip(ensemble.members, ensemble.scores, strict=True))

    def first(self) -> Center:
        """The merge of the run's members."""
        base = self.asker.base("search")
        return self.merged("round 0", Center((), base.accuracy, base.tokens), self.members(), 0)

    def model(self, moves: Sequence[Move]) -> Params:
        return moved_by(self.asker.model.params, self.asker.parts.noise, moves)

    def option(self, number: int, center: Center) -> Option:
        """What select and test ask of a round."""
        return Option(f"round {number}", lambda: self.model(center.moves), center.tokens)

    def searched(self, way: str, number: int, moves: tuple[Move, ...]) -> Searched:
        """The population of a round, scored around a center; every chunk is committed."""
        population = population_of(self.config, self.asker.ensemble, self.asker.parts.config.search, number)
        name = f"{way}, round {number}"

        def score() -> Scored:
            folder = self.asker.folder.parent / "searches" / f"{way.replace(' ', '-')}-{number}"
            folder.mkdir(parents=True, exist_ok=True)
            examples = len(self.asker.parts.splits.search)
            race = Race("off", len(population), examples, len(self.asker.ensemble))
            identity = {**self.identity, "round": name, "moves": digest([repr(move) for move in moves])}
            self.asker.engine.rebase(self.model(moves))
            self.asker.progress.note(name)
            with open_state(folder / "state", race, identity) as state:
                self.on_state(state)
                for warning in state.warnings:
                    self.asker.progress.note(f"perturbjax: warning: {warning}")
                metrics = MetricsLog(folder / "metrics.jsonl")
                table = search(self.asker.engine, population, race, lambda _: self.asker.search, state, metrics, self.asker.progress)
            means = table.scores.mean(axis=1, dtype=np.float64)
            return Scored(tuple(map(float, means)), int(table.tokens.sum()))

        scored = self.asker.kept(f"search {name}", Scored, score, lambda found: len(found.scores) == len(population))
        return Searched(tuple(Found(population, i, each) for i, each in enumerate(scored.scores)), scored.tokens)

    def merged(self, name: str, center: Center, chosen: Sequence[Found], tokens: int) -> Center:
        """The center moved along the chosen, by the length that is best on the search questions, ties to the shorter.

        Args:
            name: of the round.
            center: where the chosen were scored.
            chosen: best first.
            tokens: spent on them.
        """
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
        tried = [(*center.moves, Move(parts, length)) for length in self.lengths]
        labels = [f"{name}, length {length:.3g}" for length in self.lengths]
        found = self.asker.several("search", [(label, lambda m=moves: self.model(m)) for label, moves in zip(labels, tried, strict=True)])
        at = int(np.argmax([each.accuracy for each in found]))
        return Center(tried[at], found[at].accuracy, center.tokens + tokens + sum(each.tokens for each in found))
