"""Racing: all candidates answer a first slice of the search examples, those that are out of the running stop, the others go on.

Which candidates go on is a pure function of the scores so far, taken when a round is complete: rounds are barriers over the whole
population, so the outcome depends neither on chunks nor on when a run was killed. Only finalists, which have answered every example, can be
members of an ensemble; a candidate that was stopped has no rank, because its mean is over fewer examples than theirs.

- ``off``: one round, every candidate answers every example.
- ``halving``: after each round a fixed fraction of the candidates goes on, ranked by their mean so far. Successive halving (Karnin, Koren,
  Somekh 2013; Jamieson, Talwalkar 2016) with a fixed number of rounds, ended early: 2 K finalists, from which the full score picks K.
  Its cost is known beforehand; what it loses is not bounded.
- ``dead``: nobody stops, but the first candidates screen the examples: those that all of them get right are not asked of the others, and
  count as right. What all get wrong is asked, for there is something to win. What it loses is a later candidate's mistake on a skipped
  example; its cost depends on how much the candidates agree.
- ``bounds``: a candidate stops when it is very likely that K others end above it (``randopt.bounds``). What it loses is bounded; its cost
  depends on how far apart the candidates are.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from perturbjax.randopt.bounds import may_reach_top
from perturbjax.scoring import top_k

RacingRule = Literal["off", "halving", "bounds", "dead"]


class Part(NamedTuple):
    """What is asked in one go.

    Attributes:
        candidates: (n,) int64, ascending.
        columns: (d,) int64, the examples that each of them is asked.
        round: of the race, from 0.
    """

    candidates: np.ndarray
    columns: np.ndarray
    round: int


@dataclass(frozen=True)
class Race:
    """When to look, and who goes on. The defaults are those of ``perturbjax randopt``.

    Attributes:
        rule: which of ``RacingRule``.
        candidates: N.
        examples: D, in the order in which they are asked; it must not depend on the scores.
        top_k: K.
        rounds: most rounds. Each costs every candidate in it its noise once more, however few examples it has.
        smallest: fewest examples of the first round.
        finalists: of ``halving``, in multiples of K.
        screen: of ``dead``: how many candidates, from the first on, are asked everything.
        rungs: of ``off``: how many candidates are asked in one go, one rung after the other (``sigma_halving``); empty: all of them.
        error: of ``bounds``: the probability with which any one candidate of the full evaluation's best K may be lost.
    """

    rule: RacingRule
    candidates: int
    examples: int
    top_k: int
    rounds: int = 4
    smallest: int = 16
    finalists: float = 2.0
    error: float = 0.1
    screen: int = 32
    rungs: tuple[int, ...] = ()

    @property
    def ends(self) -> tuple[int, ...]:
        """How many examples have been asked after each round: doubling, ending with D. One round where nobody could stop."""
        if self.rule in ("off", "dead") or self._fewest >= self.candidates:
            return (self.examples,)
        rounds = 1
        while rounds < self.rounds and self.examples >= self.smallest * 2**rounds:
            rounds += 1
        return tuple(-(-self.examples // 2 ** (rounds - number)) for number in range(1, rounds + 1))

    def columns(self, number: int) -> slice:
        """The examples of round ``number`` (from 0)."""
        ends = (0, *self.ends)
        return slice(ends[number], ends[number + 1])

    @property
    def parts(self) -> int:
        """In how many parts the search asks: one a round or rung, and in ``dead`` one more for those who are not asked everything."""
        return len(self.rungs) or len(self.ends) + self.screens

    @property
    def screens(self) -> bool:
        """Whether ``dead`` may leave out examples."""
        return self.rule == "dead" and self.candidates > self.screen

    def part(self, scores: np.ndarray, number: int) -> Part:
        """Part ``number`` (from 0), given the scores of the parts before it. Raises as ``survivors``."""
        if self.rungs:
            start = sum(self.rungs[:number])
            return Part(np.arange(start, start + self.rungs[number]), np.arange(self.examples), 0)
        if not self.screens:
            columns = self.columns(number)
            return Part(self.survivors(scores, number), np.arange(columns.start, columns.stop), number)
        if number == 0:
            return Part(np.arange(self.screen), np.arange(self.examples), 0)
        return Part(np.arange(self.screen, self.candidates), np.flatnonzero(~self.skipped(scores)), 0)

    def skipped(self, scores: np.ndarray) -> np.ndarray:
        """bool (D,), the examples that are asked of the first ``screen`` candidates alone. None before these have answered everything, and
        where it would be all of them."""
        first = scores[: self.screen]
        if not self.screens or np.isnan(first).any():
            return np.zeros(self.examples, bool)
        right = (first == 1).all(axis=0)
        return right & ~right.all()

    def filled(self, scores: np.ndarray) -> np.ndarray:
        """The scores (N, D) by which candidates are ranked: skipped examples count as right of those who have answered all others."""
        skipped = self.skipped(scores)
        if not skipped.any():
            return scores
        complete = ~np.isnan(scores[:, ~skipped]).any(axis=1)
        return np.where(complete[:, None] & skipped & np.isnan(scores), np.float32(1), scores)

    def survivors(self, scores: np.ndarray, number: int) -> np.ndarray:
        """Who takes part in round ``number`` (a rung of successive halving).

        Args:
            scores: (N, D) float32, NaN where not scored.
            number: of the round, from 0; its predecessors must be complete.

        Returns:
            int64 candidate indices, ascending; never fewer than K.

        Raises:
            ValueError: an earlier round is not complete.
        """
        alive = np.arange(self.candidates)
        for before in range(number):
            alive = self._promoted(scores, alive, before)
        return alive

    @property
    def _fewest(self) -> int:
        """How many go on at the least."""
        return max(self.top_k, round(self.finalists * self.top_k)) if self.rule == "halving" else self.top_k

    def _promoted(self, scores: np.ndarray, alive: np.ndarray, number: int) -> np.ndarray:
        end = self.ends[number]
        seen = np.asarray(scores[alive, :end], np.float64)
        missing = alive[np.isnan(seen).any(axis=1)]
        if missing.size:
            raise ValueError(f"round {number}: candidate {missing[0]} has not answered all of its first {end} examples")
        if self.rule == "halving":
            promoted = np.sort(top_k(seen, min(len(alive), self._quota(number + 1))))
        else:
            error = self.error / (len(self.ends) - 1)
            promoted = np.flatnonzero(may_reach_top(seen, self.examples, self.top_k, error, self.candidates))
        return alive[promoted]

    def _quota(self, number: int) -> int:
        """Survivors of round ``number`` under ``halving``: from N down to the finalists, by the same factor each time."""
        factor = (self._fewest / self.candidates) ** (number / (len(self.ends) - 1))
        # A whole number may come out a hair above itself.
        return max(self._fewest, int(np.ceil(self.candidates * factor - 1e-6)))
