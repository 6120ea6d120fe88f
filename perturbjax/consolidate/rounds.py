"""What goes round after round: a population scored around a center, and the center moved along it, by the best of some lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from perturbjax.consolidate.config import Config
from perturbjax.consolidate.measuring import Asker, Option
from perturbjax.consolidate.merging import Move, Part, moved_by
from perturbjax.errors import InputError
from perturbjax.noise import Population
from perturbjax.randopt.config import Search
from perturbjax.randopt.ensemble import Ensemble
from perturbjax.randopt.loop import search
from perturbjax.randopt.racing import Race
from perturbjax.randopt.table import open_state
from perturbjax.runs.files import MetricsLog
from perturbjax.runs.identity import Identity
from perturbjax.runs.state import RunState
from perturbjax.tree import Params, derived_seed, digest


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


@dataclass(frozen=True)
class Searched:
    """A searched population and what it took."""

    found: tuple[Found, ...]
    tokens: int


def population_of(config: Config, ensemble: Ensemble, search: Search, number: int) -> Population:
    """The candidates of a round, of the same sigmas as the run's and as many as it scored.

    Raises:
        InputError: `population` cannot be that of a search.
    """
    size, sigmas = config.population or search.population, ensemble.population.sigmas
    least, what = len(ensemble), f"the {len(ensemble)} members of the ensemble"
    if config.by == "evolve":
        least, what = 2 * len(sigmas), f"{2 * len(sigmas)} candidates, two of each sigma,"
    if size < least:
        raise InputError(f"`population` {size}: at least {what} are required")
    try:
        return replace(ensemble.population, seed=derived_seed(search.seed, f"round {number}"), size=size)
    except ValueError as error:
        raise InputError(f"`population` {str(error).removeprefix('size ')}") from error


class Rounds:
    """The steps of every way that searches again.

    Args:
        asker: of the run.
        config: the settings.
        lengths: of moves, ascending.
        identity: of the consolidation.
        on_state: called with the open state of each search.
    """

    def __init__(self, asker: Asker, config: Config, lengths: Sequence[float], identity: Identity, on_state: Callable[[RunState], None]):
        self.asker, self.config, self.lengths = asker, config, tuple(lengths)
        self._identity, self._on_state = identity, on_state
        self._kept: dict[tuple[Move, ...], Params] = {}

    def start(self, tokens: int | None = None) -> Center:
        """The base, where so many tokens were spent before; those of its own answers when left out."""
        base = self.asker.base("search")
        return Center((), base.accuracy, base.tokens if tokens is None else tokens)

    def population(self, number: int) -> Population:
        return population_of(self.config, self.asker.ensemble, self.asker.parts.config.search, number)

    def model(self, moves: tuple[Move, ...]) -> Params:
        """The base after some moves. It is kept, and so is the model before the last move: the next that is asked for mostly goes on from
        one of them, and a move makes the noise of all its candidates."""
        made = self._kept | {(): self.asker.model.params}
        for known in (moves[:-1], moves):
            done = max((each for each in made if known[: len(each)] == each), key=len)
            if done != known:
                made[known] = moved_by(made[done], self.asker.parts.noise, known[len(done) :])
        self._kept = {known: made[known] for known in (moves[:-1], moves) if known}
        return made[moves]

    def option(self, number: int, center: Center) -> Option:
        """What select and test ask of a round."""
        return Option(f"round {number}", lambda: self.model(center.moves), center.tokens)

    def searched(self, way: str, number: int, moves: tuple[Move, ...]) -> Searched:
        """The population of a round, scored around a center; every chunk is committed."""
        population = self.population(number)
        name = f"{way}, round {number}"

        def score() -> Scored:
            folder = self.asker.folder.parent / "searches" / f"{way.replace(' ', '-')}-{number}"
            folder.mkdir(parents=True, exist_ok=True)
            examples = len(self.asker.parts.splits.search)
            race = Race("off", len(population), examples, min(len(population), len(self.asker.ensemble)))
            identity = {**self._identity, "round": name, "moves": digest([repr(move) for move in moves])}
            self.asker.engine.rebase(self.model(moves))
            self.asker.progress.note(name)
            with open_state(folder / "state", race, identity) as state:
                self._on_state(state)
                for warning in state.warnings:
                    self.asker.progress.note(f"perturbjax: warning: {warning}")
                metrics = MetricsLog(folder / "metrics.jsonl")
                table = search(self.asker.engine, population, race, lambda _: self.asker.search, state, metrics, self.asker.progress)
            means = table.scores.mean(axis=1, dtype=np.float64)
            return Scored(tuple(map(float, means)), int(table.tokens.sum()))

        scored = self.asker.kept(f"search {name}", Scored, score, lambda found: len(found.scores) == len(population))
        return Searched(tuple(Found(population, i, each) for i, each in enumerate(scored.scores)), scored.tokens)

    def moved(self, name: str, center: Center, parts: tuple[Part, ...], tokens: int) -> Center:
        """The center moved along candidates, by the length that is best on the search questions, ties to the shorter.

        Args:
            name: of the round.
            center: where the candidates were scored.
            parts: candidates and weights.
            tokens: spent on them.
        """
        tried = [(*center.moves, Move(parts, length)) for length in self.lengths]
        labels = [f"{name}, length {length:.3g}" for length in self.lengths]
        found = self.asker.several("search", [(label, lambda m=moves: self.model(m)) for label, moves in zip(labels, tried, strict=True)])
        at = int(np.argmax([each.accuracy for each in found]))
        return Center(tried[at], found[at].accuracy, center.tokens + tokens + sum(each.tokens for each in found))


def shown(centers: Sequence[Center]) -> str:
    """Their accuracies on the search questions, in %."""
    return ", ".join(f"{100 * center.score:.1f}" for center in centers)
