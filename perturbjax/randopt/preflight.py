"""The look at the first few hundred scores of a search: can it rank its candidates at all?"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from perturbjax.errors import InputError
from perturbjax.randopt.racing import Race
from perturbjax.randopt.reliability import ENOUGH, Reliability, advice, reliability
from perturbjax.randopt.table import ScoreTable

PAIRS = 512
"""Scores that the first look waits for."""
FEWEST = 32
"""Candidates of the first look, at least."""


@dataclass(frozen=True)
class FirstLook:
    """The look at the first few hundred scores of a search: those of the first candidates on the examples of the first round.

    Which they are follows from the race alone, so what is found depends neither on chunks, nor on devices, nor on when a run was killed.
    """

    race: Race

    @property
    def candidates(self) -> int:
        """How many candidates, from the first on: enough for ``PAIRS`` scores and at least ``FEWEST``, but no more than there are.

        >>> FirstLook(Race("halving", candidates=5000, examples=200, top_k=50)).candidates  # a first round of 25 examples
        32
        """
        return min(self.race.candidates, max(FEWEST, -(-PAIRS // self.race.ends[0])))

    def found(self, scores: np.ndarray) -> Reliability | None:
        """From (N, D) scores, NaN where not scored. None while the first ones are not complete, and where there are too few for it."""
        seen = self.race.filled(scores)[: self.candidates, : self.race.ends[0]]
        return None if np.isnan(seen).any() else reliability(seen, self.race.examples)


class Preflight:
    """Takes the first look as soon as it can be taken, says what it found, and stops the search where that is wanted.

    Args:
        race: of the search.
        required: a search that cannot rank is stopped.
        say: told the outcome, in one line.
    """

    def __init__(self, race: Race, required: bool, say: Callable[[str], None]):
        self._look, self._required, self._say = FirstLook(race), required, say
        self._taken = False

    def __call__(self, table: ScoreTable) -> None:
        """Raises ``InputError`` where the reliability is required and is not there."""
        if self._taken or (found := self._look.found(table.scores)) is None:
            return
        self._taken = True
        if found.enough:
            # With no skill at all three searches in ten come out above it by chance: the interval says more than the value.
            sure = found.interval[0] >= ENOUGH
            self._say(f"reliability {found.words}" + ("" if sure else "; so few scores do not show yet that this search can rank"))
        elif self._required:
            raise InputError(f"`require_reliability`: {advice(found)}; to go on all the same, resume without it")
        else:
            self._say(f"perturbjax: warning: {advice(found)}")
