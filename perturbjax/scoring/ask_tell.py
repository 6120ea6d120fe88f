"""Ask and tell: the search for those who bring their own evaluation loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Int64

from perturbjax.noise import Candidate, Population
from perturbjax.scoring.select import top_k


class AskTell:
    """Hands out the candidates of a population and keeps their scores; how they are scored is up to the caller.

    Args:
        population: N candidates.
        state: what ``state()`` returned earlier, to go on from there.

    Raises:
        ValueError: ``state`` belongs to another population.

    >>> import json
    >>> import jax, jax.numpy as jnp
    >>> import perturbjax as pj
    >>> params, noise = {"w": jnp.zeros(3)}, pj.Noise()
    >>> population = pj.Population(seed=0, size=100, sigmas=(0.1, 1.0))
    >>> score = jax.jit(jax.vmap(lambda candidate: -jnp.sum((pj.perturb(params, candidate, noise)["w"] - 1.0) ** 2)))
    >>> search = pj.AskTell(population)
    >>> indices, candidates = search.ask(20)
    >>> search.tell(indices, score(candidates))
    >>> search = pj.AskTell(population, json.loads(json.dumps(search.state())))
    >>> while len((asked := search.ask(20))[0]):
    ...     search.tell(asked[0], score(asked[1]))
    >>> members = pj.Ensemble(population, search.best(5), noise, params)
    >>> [float(sigma) for sigma in members.candidates.sigma]
    [1.0, 1.0, 1.0, 1.0, 1.0]
    """

    def __init__(self, population: Population, state: Mapping[str, Any] | None = None):
        self.population = population
        self._scores = np.full(len(population), np.nan)
        self._asked = np.zeros(len(population), bool)
        if state is not None:
            if state["population"] != self._identity():
                raise ValueError(f"state of population {state['population']}: this one is {self._identity()}")
            self._asked[state["indices"]] = True
            self._scores[state["indices"]] = state["scores"]

    def _identity(self) -> dict[str, Any]:
        return asdict(self.population) | {"sigmas": list(self.population.sigmas)}

    def ask(self, n: int) -> tuple[Int64[np.ndarray, " m"], Candidate]:
        """The next candidates that nobody has asked for, in the population's order.

        Args:
            n: how many; fewer are returned when fewer are left, none at the end.

        Returns:
            Their positions in the population, int64 (m,), and the candidates, batched along a leading axis (m,), m <= n.
        """
        if n < 1:
            raise ValueError(f"n = {n}: ask for at least one candidate")
        positions = np.flatnonzero(~self._asked)[:n]
        self._asked[positions] = True
        return positions, self.population[positions]

    def tell(self, indices: Sequence[int] | np.ndarray, scores: Any) -> None:
        """Keeps the scores of candidates that were asked for, in any order and any grouping.

        Args:
            indices: (m,) positions in the population, as ``ask`` gave them.
            scores: (m,), higher is better, or (m, B) scores per example, of which the mean over B counts.

        Raises:
            ValueError: scores of another shape or not finite, a candidate that nobody asked for, or one that has its score already.
        """
        positions = np.asarray(indices, np.int64)
        values = np.asarray(scores).astype(np.float64)
        if positions.ndim != 1 or values.shape[:1] != positions.shape or values.ndim > 2:
            raise ValueError(f"scores of shape {values.shape} for indices of shape {positions.shape}: (m,) or (m, B) for m candidates")
        values = values.mean(axis=1) if values.ndim == 2 else values
        if not np.isfinite(values).all():
            bad = positions[~np.isfinite(values)]
            raise ValueError(f"scores of candidates {bad.tolist()} are not finite: give a candidate that diverges a low score")
        inside = (positions >= 0) & (positions < len(self.population))
        if not inside.all() or not self._asked[positions].all() or len(np.unique(positions)) < len(positions):
            raise ValueError("indices: tell each candidate once, and only what ask has handed out")
        known = positions[~np.isnan(self._scores[positions])]
        if known.size:
            raise ValueError(f"indices: candidates {known.tolist()} have their scores already")
        self._scores[positions] = values

    def best(self, k: int) -> Int64[np.ndarray, " k"]:
        """Positions of the ``k`` best of the candidates scored so far, best first, ties to the lower one: int64 (k,)."""
        scored = np.flatnonzero(~np.isnan(self._scores))
        return scored[top_k(self._scores[scored], k)]

    def state(self) -> dict[str, Any]:
        """What is known so far, ready for JSON. Candidates that were asked for and not told are asked for again after a resume."""
        scored = np.flatnonzero(~np.isnan(self._scores))
        return {"population": self._identity(), "indices": scored.tolist(), "scores": self._scores[scored].tolist()}
