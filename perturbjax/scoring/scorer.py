"""One compiled program that evaluates a chunk of candidates, each perturbed inside it.

The program's shapes are the chunk's capacity and the data's; how many of the candidates are real is an argument. So neither the population
size nor a last, partly filled chunk compiles anything anew, and padding candidates cost nothing: the loop stops before them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from perturbjax import _compat, sharding
from perturbjax.interpret import lazily, lazy
from perturbjax.noise.dense import Noise, coverage, perturb, scales
from perturbjax.noise.population import Candidate, Population
from perturbjax.scoring.strategy import STRATEGIES, Work, choose

_log = logging.getLogger(__name__)


class ChunkProgram:
    """``fn(params, candidate, data)`` for up to ``capacity`` candidates at a time, with ``params`` perturbed by each candidate's noise.

    Args:
        fn: the function of one candidate; returns a pytree of arrays. Its ``params`` are already perturbed.
        params: the base; put on the mesh once and never written. A ``Spread`` is there already, and may be dealt over "model"; then ``fn``
            gets one device's blocks and sums over the axis itself. Any other tree is put on every device.
        noise: what perturbs; None leaves the base as it is (the plain model, for reference timings and sampling).
        mesh: candidates are split over its "candidate" axis.
        capacity: candidates of one call; rounded up to a multiple of devices times ``in_flight``.
        in_flight: candidates vmapped together on each device.
        strategy: how the noise meets the weights, one of ``STRATEGIES``.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        params: Any | sharding.Spread,
        noise: Noise | None,
        mesh: Mesh,
        capacity: int,
        in_flight: int = 1,
        strategy: str = "copy",
    ):
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy {strategy!r}: must be one of {', '.join(STRATEGIES)}")
        if strategy == "low_rank" and noise is not None and noise.rank is None:
            raise ValueError("strategy 'low_rank': the noise has full rank; give it a rank, or use lazy or copy")
        devices = mesh.shape[sharding.CANDIDATE]
        step = devices * in_flight
        self.capacity = -(-capacity // step) * step
        self.mesh, self.in_flight, self.noise, self.strategy = mesh, in_flight, noise, strategy
        self.traces = 0
        self._spread = params if isinstance(params, sharding.Spread) else sharding.spread(params, mesh)
        for rule in coverage(self._spread.whole(), noise).unused_rules if noise else ():
            _log.warning("noise rule %r matches no parameter", rule.pattern)
        self._fn = fn
        # Scales are those of whole leaves, so they cannot depend on the mesh.
        self._scales = sharding.put_replicated(self._scales_of_leaves(), mesh)
        over, same = sharding.OVER_CANDIDATES, sharding.REPLICATED
        specs = (self._spread.specs(), same, over, over, same)
        mapped = jax.shard_map(self._local, mesh=mesh, in_specs=specs, out_specs=over, check_vma=False)
        # The one collective over "candidate": every process gets all results, after the last candidate.
        gathered = NamedSharding(mesh, same) if sharding.spans_processes(mesh) else None
        platform = mesh.devices.flat[0].platform
        self._program = jax.jit(mapped, out_shardings=gathered, compiler_options=_compat.compiler_options(platform))

    def _scales_of_leaves(self) -> dict[str, Any]:
        if self.noise is None:
            return {}
        noise, whole = self.noise, self._spread.whole()
        if sharding.is_abstract(self._spread.arrays):
            return jax.eval_shape(lambda: scales(whole, noise, lambda *_: jnp.float32(1)))
        return scales(whole, noise, lambda path, _: self._spread.mean_square(path, self.mesh))

    def _one(self, params: Any, leaf_scales: dict[str, jax.Array], candidate: Candidate, data: Any, real: jax.Array) -> Any:
        fn, theta, places = self._fn, params, self._spread.places()
        if self.noise is not None and self.strategy == "copy":
            with jax.named_scope("noise"):
                theta = perturb(params, candidate, self.noise, leaf_scales, places)
        elif self.noise is not None:
            fn = lazily(fn)
            theta = lazy(params, candidate, self.noise, leaf_scales, factored=self.strategy == "low_rank", places=places)
        # A branch that is always taken, which XLA cannot know, keeps the function in a computation of its own, apart from the noise made so
        # far. Side by side, XLA:CPU pulls noise into its consumers and repeats it there, or into a library call for a following matmul and
        # makes a dozen passes over arrays of the weights' size of it.
        empty = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(fn, theta, candidate, data))
        return jax.lax.cond(real, fn, lambda *_: empty, theta, candidate, data)

    def _local(self, params: Any, leaf_scales: dict[str, jax.Array], count: jax.Array, candidates: Candidate, data: Any) -> Any:
        """One device's part: ``count[0]`` of its candidates are real."""
        self.traces += 1
        width = self.in_flight
        real = count[0] > 0
        blocks = jax.tree.map(lambda leaf: leaf.reshape(-1, width, *leaf.shape[1:]), candidates)

        def block(index: jax.Array) -> Any:
            several = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), blocks)
            if width == 1:
                one = self._one(params, leaf_scales, jax.tree.map(lambda leaf: leaf[0], several), data, real)
                return jax.tree.map(lambda leaf: leaf[None], one)
            return jax.vmap(self._one, (None, None, 0, None, None))(params, leaf_scales, several, data, real)

        shapes = jax.eval_shape(block, jax.ShapeDtypeStruct((), jnp.int32))
        results = jax.tree.map(lambda s: jnp.zeros((blocks.index.shape[0], *s.shape), s.dtype), shapes)

        def step(index, results):
            return jax.tree.map(lambda all_, new: jax.lax.dynamic_update_index_in_dim(all_, new, index, 0), results, block(index))

        results = jax.lax.fori_loop(0, -(-count[0] // width), step, results)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), results)

    def __call__(self, candidates: Candidate, data: Any) -> Any:
        """Evaluates any number of candidates (leading axis n), chunk by chunk; numpy results with leading axis n, in order."""
        total = candidates.index.shape[0]
        pieces = (slice(i, i + self.capacity) for i in range(0, total, self.capacity))
        parts = [self._chunk(Candidate(*(leaf[piece] for leaf in candidates)), data) for piece in pieces]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    def _chunk(self, candidates: Candidate, data: Any) -> Any:
        counts, padded, place = self._deal(candidates)
        if sharding.spans_processes(self.mesh):
            data = sharding.put_replicated(data, self.mesh)
        results = self._program(self._spread.arrays, self._scales, counts, padded, data)
        return jax.tree.map(lambda leaf: np.asarray(leaf)[place], results)

    def _deal(self, candidates: Candidate) -> tuple[jax.Array, Candidate, np.ndarray]:
        """How many candidates each device gets, the candidates in its slots, and which slot each of them is in."""
        devices = self.mesh.shape[sharding.CANDIDATE]
        slots = np.arange(self.capacity).reshape(devices, -1)
        shares = np.array_split(np.arange(candidates.index.shape[0]), devices)
        place = np.concatenate([slots[d, : len(share)] for d, share in enumerate(shares)])

        def spread(leaf):
            out = np.zeros((self.capacity, *leaf.shape[1:]), leaf.dtype)
            out[place] = np.asarray(leaf)
            return out

        padded = sharding.put_over_candidates(jax.tree.map(spread, candidates), self.mesh)
        counts = sharding.put_over_candidates(np.array([len(share) for share in shares], np.int32), self.mesh)
        return counts, padded, place

    def lower(self, data: Any) -> Any:
        """The lowered program, for ``compile().memory_analysis()`` and the like. What this compiles, a call need not compile again.
        With parameters and data that are only shapes, for devices that are not there."""
        if sharding.is_abstract(self._spread.arrays):
            devices, several = self.mesh.shape[sharding.CANDIDATE], jax.eval_shape(lambda: Candidate.base(self.capacity))
            counts, padded = sharding.put_over_candidates((jax.ShapeDtypeStruct((devices,), jnp.int32), several), self.mesh)
            shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), data)
            data = sharding.put_replicated(shapes, self.mesh)
        else:
            counts, padded, _ = self._deal(Candidate.base(self.capacity))
        return self._program.lower(self._spread.arrays, self._scales, counts, padded, data)


def score_population(
    fn: Callable[[Any, Any], jax.Array],
    params: Any,
    population: Population,
    batch: Any,
    noise: Noise | None = None,
    mesh: Mesh | None = None,
    chunk: int = 64,
    in_flight: int = 1,
    strategy: str = "auto",
) -> np.ndarray:
    """Scores every candidate of a population of any JAX function's parameters.

    Args:
        fn: ``fn(params, batch)`` -> a score () or per-example scores (B,), higher is better (the literature also says fitness or reward).
        params: the base, a pytree of arrays; never written.
        population: N candidates.
        batch: whatever ``fn`` takes; replicated.
        noise: ``Noise()`` by default.
        mesh: all devices along "candidate" by default.
        chunk: candidates of one compiled call.
        in_flight: candidates evaluated together on each device, under vmap.
        strategy: how noise meets the weights: "lazy", "copy" or "low_rank" (``scoring.strategy.STRATEGIES``), or "auto" for low_rank
            with low-rank noise, and else lazy or copy by which makes less of it.

    Returns:
        float array (N,) or (N, B).

    Raises:
        ValueError: an unknown strategy, or "low_rank" with noise of full rank.

    >>> import perturbjax as pj
    >>> params, x = {"w": jnp.ones((3, 2))}, jnp.ones((5, 3))
    >>> fn = lambda params, x: -jnp.square(x @ params["w"] - 2).sum(-1)
    >>> score_population(fn, params, pj.Population(seed=0, size=6, sigmas=(0.1,)), x).shape
    (6, 5)
    """
    noise, mesh = noise or Noise(), mesh or sharding.make_mesh()
    if strategy == "auto":
        strategy = _strategy_of(fn, params, population, batch, noise, mesh, in_flight)
    program = ChunkProgram(lambda theta, _, data: fn(theta, data), params, noise, mesh, min(chunk, len(population)), in_flight, strategy)
    return program(population.candidates(), sharding.put_replicated(batch, program.mesh))


def _strategy_of(fn: Callable[..., Any], params: Any, population: Population, batch: Any, noise: Noise, mesh: Mesh, in_flight: int) -> str:
    """The cost model's choice for a function of which nothing is known but its trace."""
    if noise.rank is not None:
        return "low_rank"
    made = lazily(fn).report(lazy(params, population[0], noise), batch).noise_made
    nbytes = sum(jnp.asarray(leaf).nbytes for leaf in jax.tree.leaves(params))
    work = Work(tokens=0, passes=made / max(1, coverage(params, noise).moved), copies=1, copy_bytes=in_flight * nbytes)
    return choose(work, noise, _compat.free_bytes(mesh.devices.flat[0]))
