"""``--searcher halving``: successive halving over the sigmas, so that most candidates have one that gives good ones.

The arms are the sigmas, and a pull is a candidate that answers all search questions. In the first rung every sigma gets as many candidates;
after each rung the better half of the sigmas is promoted, until one is left, and each rung spends about the same (Karnin, Koren, Somekh
2013; Jamieson and Talwalkar 2016). Sigmas are ranked by the mean score of the best quarter of their candidates, and not by the mean of all:
an ensemble is made of the best, and a large sigma whose candidates are mostly ruined may have them.

Which candidates a rung has is a pure function of the scores of the rungs before it: nothing but scores is committed, and neither chunks nor
meshes nor kills change it. The k-th candidate of a sigma is the k-th of that sigma in the population, whatever became of the others.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from perturbjax.errors import InputError
from perturbjax.noise import Population, Subset

FEWEST = 4
"""Candidates of each sigma in the first rung, at least: the best quarter is then one of them."""
BEST = 4
"""A sigma is worth the mean score of this part of its candidates: the best in so many."""


class Rung(NamedTuple):
    """One rung.

    Attributes:
        alive: (a,) the sigmas that take part, as positions in the list of sigmas.
        share: new candidates of each.
        worth: (a,) mean score of the best quarter of all candidates that each has had; None while not all of them have answered.
    """

    alive: np.ndarray
    share: int
    worth: np.ndarray | None


@dataclass(frozen=True)
class SigmaHalving:
    """When sigmas are compared, and how many candidates each has by then.

    Attributes:
        sigmas: S, how many there are, 2 or more.
        candidates: N, in all rungs together.
        antithetic: candidates come in pairs, which stay together.

    Raises:
        InputError: fewer than 2 sigmas, or too few candidates for them.

    >>> SigmaHalving(3, 48).shares, SigmaHalving(3, 48).rungs
    ((5, 8, 17), (15, 16, 17))
    """

    sigmas: int
    candidates: int
    antithetic: bool = False

    def __post_init__(self) -> None:
        if self.sigmas < 2:
            raise InputError("`sigmas`: at least 2 are required with `searcher` halving, which compares them; give more, or leave it out")
        if self.shares[0] < FEWEST:
            needed = FEWEST * self.sigmas * len(self.alive)
            raise InputError(
                f"`population` {self.candidates}: {needed} are required to halve {self.sigmas} sigmas, {FEWEST} of each in the first of "
                f"{len(self.alive)} rungs; raise it, or give fewer `sigmas`"
            )
        if self.whole > 2**32:
            raise InputError(f"`population` {self.candidates}: halving chooses it from {self.whole}, at most 2**32 are possible")

    @property
    def alive(self) -> tuple[int, ...]:
        """How many sigmas take part in each rung: S, half of them (rounded up), and so on to 1."""
        found = [self.sigmas]
        while found[-1] > 1:
            found.append(-(-found[-1] // 2))
        return tuple(found)

    @property
    def shares(self) -> tuple[int, ...]:
        """New candidates of each sigma in each rung. What cannot be divided equally goes to the next rung."""
        unit = 2 if self.antithetic else 1
        left, found = self.candidates // unit, []
        for number, alive in enumerate(self.alive):
            found.append(left // (len(self.alive) - number) // alive)
            left -= found[-1] * alive
        return tuple(unit * share for share in found)

    @property
    def rungs(self) -> tuple[int, ...]:
        """Candidates of each rung."""
        return tuple(share * alive for share, alive in zip(self.shares, self.alive, strict=True))

    @property
    def whole(self) -> int:
        """Size of the population that has enough candidates of each sigma, whichever is promoted."""
        return self.sigmas * sum(self.shares)

    def played(self, scores: np.ndarray) -> tuple[Rung, ...]:
        """The rungs that can be known: all up to the first that is not complete.

        Args:
            scores: (N, D), NaN where a candidate did not answer.
        """
        means, found, start = scores.mean(axis=1, dtype=np.float64), [], 0
        alive, seen = np.arange(self.sigmas), np.zeros((self.sigmas, 0))
        for number, (share, size) in enumerate(zip(self.shares, self.rungs, strict=True)):
            new = means[start : start + size]
            if np.isnan(new).any():
                return (*found, Rung(alive, share, None))
            seen = np.concatenate([seen, np.stack([new[self._owners(alive, share) == sigma] for sigma in alive])], axis=1)
            worth = -np.sort(-seen, axis=1)[:, : math.ceil(seen.shape[1] / BEST)].mean(axis=1)
            found.append(Rung(alive, share, worth))
            if number + 1 < len(self.alive):
                best = np.sort(np.argsort(-worth, kind="stable")[: self.alive[number + 1]])  # ties to the sigma that was named first
                alive, seen, start = alive[best], seen[best], start + size
        return tuple(found)

    def candidates_of(self, population: Population, scores: np.ndarray) -> Subset:
        """The candidates of the rungs that can be known, rung by rung, which is the order of their indices.

        Args:
            population: of ``whole`` candidates.
            scores: as for ``played``.
        """
        unit, indices, before = 2 if self.antithetic else 1, [], 0
        for rung in self.played(scores):
            # Round robin: the k-th noise of a sigma has number sigma + S k.
            numbers = (rung.alive + self.sigmas * np.arange(before, before + rung.share // unit)[:, None]).ravel()
            indices.append((unit * numbers[:, None] + np.arange(unit)).ravel())
            before += rung.share // unit
        return Subset(population, np.concatenate(indices))

    def _owners(self, alive: np.ndarray, share: int) -> np.ndarray:
        """The sigma of each candidate of a rung, in the order of ``candidates_of``."""
        unit = 2 if self.antithetic else 1
        return np.repeat(np.tile(alive, share // unit), unit)
