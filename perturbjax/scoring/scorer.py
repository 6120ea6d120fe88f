"""``Scorer``: scores of candidates of any JAX function, compiled once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Shaped

from perturbjax import _compat, sharding
from perturbjax.cluster import on_main
from perturbjax.interpret import lazily, lazy
from perturbjax.noise import Candidate, Noise, Population, coverage
from perturbjax.noise.spec import moving
from perturbjax.scoring.program import ChunkProgram
from perturbjax.scoring.strategy import Strategy, Work, cheapest, has_factors
from perturbjax.tree import Params


class Scorer:
    """Scores candidates with ``fn(params, batch)``, whose ``params`` are perturbed inside the compiled program.

    The program is compiled at the first call; later calls with batches of the same shapes reuse it, however many candidates they bring.

    Args:
        fn: ``fn(params, batch)`` -> a score () or per-example scores (B,), higher is better (the literature also says fitness or reward).
        params: the base, a pytree of arrays; put on the mesh once, never written.
        noise: what perturbs; ``Noise()`` by default.
        mesh: all devices along "data" by default; candidates are sharded over it. A function that holds shardings, or parameters that are
            sharded already, need their own mesh here, without an axis "data": all of it then works on each candidate.
        chunk: candidates of one compiled call; more are scored chunk by chunk.
        in_flight: candidates evaluated together on each device, under vmap.
        strategy: how noise meets the weights: "lazy", "copy" or "low_rank" (``scoring.strategy``), or "auto" for low_rank with low-rank
            noise of float32 parameters, and else lazy or copy by which makes less noise.

    Raises:
        TypeError: a parameter that is no array.
        ValueError: ``noise`` is no ``Noise``.
        InputError: an unknown strategy; "low_rank" with noise of full rank or parameters that are not float32; noise that moves nothing.

    >>> import jax.numpy as jnp
    >>> import perturbjax as pj
    >>> params, x = {"w": jnp.ones((3, 2))}, jnp.ones((5, 3))
    >>> scorer = pj.Scorer(lambda params, x: -jnp.square(x @ params["w"] - 2).sum(-1), params)
    >>> population = pj.Population(seed=0, size=6, sigmas=(0.1,))
    >>> scorer(population[:], x).shape, scorer(population[2:5], x).shape
    ((6, 5), (3, 5))
    """

    def __init__(
        self,
        fn: Callable[[Params, Any], jax.Array],
        params: Params,
        noise: Noise | None = None,
        mesh: Mesh | None = None,
        *,
        chunk: int = 64,
        in_flight: int = 1,
        strategy: Literal["auto", Strategy] = "auto",
    ):
        self._fn, self._noise, self._mesh = fn, Noise() if noise is None else noise, mesh or sharding.make_mesh()
        moving(params, self._noise)  # says what is wrong with them before anything is on a device
        put = sharding.shard_params if sharding.DATA in self._mesh.axis_names else sharding.keep_params
        self._params = put(params, self._mesh)
        self._chunk, self._in_flight = chunk, in_flight
        self._program: ChunkProgram | None = None if strategy == "auto" else self._compile(strategy)

    def __call__(self, candidates: Candidate, batch: Any) -> Shaped[np.ndarray, " n *B"]:
        """Scores of batched candidates.

        Args:
            candidates: n of them, e.g. ``population[:]`` or ``population[2:5]``.
            batch: whatever ``fn`` takes; replicated.

        Returns:
            float array (n,) or (n, B).

        Raises:
            ValueError: anything but batched candidates.
        """
        if not isinstance(candidates, Candidate) or candidates.index.ndim != 1:
            raise ValueError(f"candidates {type(candidates).__name__}: batched candidates are required, such as population[:]")
        if self._program is None:
            self._program = self._compile(self._cheapest(batch))
        return self._program(candidates, sharding.put_replicated(batch, self._mesh))

    @property
    def traces(self) -> int:
        """How often ``fn`` was traced for a program so far."""
        return 0 if self._program is None else self._program.traces

    @property
    def strategy(self) -> str:
        """How noise meets the weights: "auto" until the first batch has decided it."""
        return "auto" if self._program is None else self._program.strategy

    def _compile(self, strategy: Strategy) -> ChunkProgram:
        fn = self._fn
        return ChunkProgram(
            lambda theta, _, data: fn(theta, data), self._params, self._noise, self._mesh, self._chunk, self._in_flight, strategy
        )

    def _cheapest(self, batch: Any) -> Strategy:
        """The cost model's choice for a function of which nothing is known but its trace."""
        if has_factors(self._params.whole(), self._noise):
            return "low_rank"
        params = self._params.arrays
        with sharding.in_context(self._mesh):
            theta = jax.eval_shape(lambda params: lazy(params, jax.tree.map(lambda leaf: leaf[0], Candidate.base(1)), self._noise), params)
            made = lazily(self._fn).usage(theta, batch).noise_made
        moved = coverage(self._params.whole(), self._noise).moved
        work = Work(tokens=0, passes=made / max(1, moved), copies=1, copy_bytes=self._in_flight * self._params.device_bytes, factors=False)
        # One choice for all processes, whose free memory may differ.
        return on_main(lambda: cheapest(work, self._noise, _compat.free_bytes(self._mesh.local_devices[0])))


def score_population(
    fn: Callable[[Params, Any], jax.Array],
    params: Params,
    population: Population,
    noise: Noise | None,
    batch: Any,
    mesh: Mesh | None = None,
    **options: Any,
) -> np.ndarray:
    """Scores of a whole population, (N,) or (N, B): ``Scorer(fn, params, noise, mesh, **options)(population[:], batch)``.

    It compiles at every call; keep a ``Scorer`` to score several batches or parts of a population.

    >>> import jax.numpy as jnp
    >>> import perturbjax as pj
    >>> params, x = {"w": jnp.ones((3, 2))}, jnp.ones((5, 3))
    >>> fn = lambda params, x: -jnp.square(x @ params["w"] - 2).sum(-1)
    >>> score_population(fn, params, pj.Population(seed=0, size=6, sigmas=(0.1,)), pj.Noise(), x).shape
    (6, 5)
    """
    if not isinstance(population, Population):
        raise ValueError(f"population {type(population).__name__}: a Population is required; candidates of one go to Scorer(...)")
    options.setdefault("chunk", min(64, len(population)))
    return Scorer(fn, params, noise, mesh, **options)(population[:], batch)
