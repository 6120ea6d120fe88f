"""One compiled program that evaluates a chunk of candidates, each perturbed inside it.

The program's shapes are the most candidates of a chunk and the data's; how many of the candidates are valid is an argument. So neither the
population's size nor a last, partly filled chunk compiles anything anew, and padding costs nothing: the loop stops before it.
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
from perturbjax.noise import Candidate, Noise, coverage, perturb, scales
from perturbjax.scoring.strategy import check_strategy

_log = logging.getLogger(__name__)


class ChunkProgram:
    """``fn(params, candidate, data)`` for up to ``max_candidates`` at a time, with ``params`` perturbed by each candidate's noise.

    Args:
        fn: the function of one candidate; returns a pytree of arrays. Its ``params`` are already perturbed.
        params: the base; put on the mesh once and never written. ``ShardedParams`` are there already, and may be sharded over "model"; then
            ``fn`` gets one device's blocks and sums over the axis itself. Any other tree is put on every device.
        noise: what perturbs; None leaves the base as it is (the plain model, for reference timings and sampling).
        mesh: candidates are sharded over its "data" axis. A mesh without that axis is ``fn``'s own: the whole of it works on one candidate
            after the other, parameters stay sharded as they are, and ``fn`` may hold sharding constraints and ``shard_map`` over it.
        max_candidates: of one call; rounded up to a multiple of devices times ``in_flight``.
        in_flight: candidates vmapped together on each device.
        strategy: how the noise meets the weights, one of ``STRATEGIES``.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        params: Any | sharding.ShardedParams,
        noise: Noise | None,
        mesh: Mesh,
        max_candidates: int,
        in_flight: int = 1,
        strategy: str = "copy",
    ):
        self._devices = mesh.shape.get(sharding.DATA, 1)
        step = self._devices * in_flight
        self.max_candidates = -(-max_candidates // step) * step
        self.mesh, self.in_flight, self.noise, self.strategy = mesh, in_flight, noise, strategy
        self.traces = 0
        owned = sharding.DATA not in mesh.axis_names
        if not isinstance(params, sharding.ShardedParams):
            params = sharding.keep_params(params, mesh) if owned else sharding.shard_params(params, mesh)
        self._params = params
        if noise is not None:
            check_strategy(strategy, self._params.whole(), noise)
        for rule in coverage(self._params.whole(), noise).unused_rules if noise else ():
            _log.warning("noise rule %r matches no parameter", rule.pattern)
        self._fn = (lambda *args: sharding.reshard_replicated(fn(*args))) if owned else fn
        self.rebase(params)
        over, same = sharding.OVER_DATA, sharding.REPLICATED
        specs = (self._params.specs(), same, over, over, same)
        mapped = self._local if owned else jax.shard_map(self._local, mesh=mesh, in_specs=specs, out_specs=over, check_vma=False)
        # The one collective over "data": every process gets all results, after the last candidate.
        gathered = NamedSharding(mesh, same) if sharding.spans_processes(mesh) else None
        platform = mesh.devices.flat[0].platform
        self._program = jax.jit(mapped, out_shardings=gathered, compiler_options=_compat.compiler_options(platform))

    def rebase(self, params: sharding.ShardedParams) -> None:
        """From now on candidates lie around ``params``, of the same shapes, types and shardings: nothing is compiled anew."""
        self._params = params
        # Scales are those of whole leaves, so they cannot depend on the mesh.
        with sharding.in_context(self.mesh):
            self._scales = sharding.put_replicated(self._scales_of_leaves(), self.mesh)

    def _scales_of_leaves(self) -> dict[str, Any]:
        if self.noise is None:
            return {}
        noise, whole = self.noise, self._params.whole()
        if sharding.is_abstract(self._params.arrays):
            return jax.eval_shape(lambda: scales(whole, noise, lambda *_: jnp.float32(1)))
        return scales(whole, noise, lambda path, _: self._params.mean_square(path, self.mesh))

    def _one(self, params: Any, leaf_scales: dict[str, jax.Array], candidate: Candidate, data: Any, shapes: Any, true: jax.Array) -> Any:
        fn, theta, blocks = self._fn, params, self._params.blocks()
        if self.noise is not None and self.strategy == "copy":
            with jax.named_scope("noise"):
                theta = perturb(params, candidate, self.noise, leaf_scales, blocks)
        elif self.noise is not None:
            fn = lazily(fn)
            theta = lazy(params, candidate, self.noise, leaf_scales, factored=self.strategy == "low_rank", blocks=blocks)
        # An optimization barrier: a cond whose predicate is always true but not constant keeps the function in a computation of its own,
        # apart from the noise made so far. Without it XLA:CPU fuses noise into its consumers and repeats it there, or into a library call
        # for a following matmul, which then makes a dozen passes over arrays of the weights' size.
        empty = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.cond(true, fn, lambda *_: empty, theta, candidate, data)

    def _local(self, params: Any, leaf_scales: dict[str, jax.Array], num_valid: jax.Array, candidates: Candidate, data: Any) -> Any:
        """One device's part: ``num_valid[0]`` of its candidates are valid, the others padding."""
        self.traces += 1
        width = self.in_flight
        true = num_valid[0] > 0
        blocks = jax.tree.map(lambda leaf: leaf.reshape(-1, width, *leaf.shape[1:]), candidates)
        # Shapes of one candidate's results are those of the base's, which is traced in a fraction of the time.
        shapes = jax.eval_shape(self._fn, params, jax.tree.map(lambda leaf: leaf[0], candidates), data)

        def block(index: jax.Array) -> Any:
            several = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), blocks)
            if width == 1:
                one = self._one(params, leaf_scales, jax.tree.map(lambda leaf: leaf[0], several), data, shapes, true)
                return jax.tree.map(lambda leaf: leaf[None], one)

            def one(candidate: Candidate) -> Any:
                return self._one(params, leaf_scales, candidate, data, shapes, true)

            return jax.vmap(one)(several)

        results = jax.tree.map(lambda s: jnp.zeros((*blocks.index.shape, *s.shape), s.dtype), shapes)

        def step(index, results):
            return jax.tree.map(lambda all_, new: jax.lax.dynamic_update_index_in_dim(all_, new, index, 0), results, block(index))

        results = jax.lax.fori_loop(0, -(-num_valid[0] // width), step, results)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), results)

    def __call__(self, candidates: Candidate, data: Any) -> Any:
        """Evaluates any number of candidates (leading axis n), chunk by chunk; numpy results with leading axis n, in order."""
        return self.start(candidates, data)()

    def start(self, candidates: Candidate, data: Any) -> Callable[[], Any]:
        """As a call, but the first chunk is only dispatched, and what is returned waits for its results and evaluates the other chunks."""
        total = candidates.index.shape[0]
        pieces = [slice(i, i + self.max_candidates) for i in range(0, total, self.max_candidates)]
        chunks = [Candidate(*(leaf[piece] for leaf in candidates)) for piece in pieces]
        first = self._dispatch(chunks[0], data)

        def results() -> Any:
            parts = [first(), *(self._dispatch(chunk, data)() for chunk in chunks[1:])]
            return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

        return results

    def _dispatch(self, candidates: Candidate, data: Any) -> Callable[[], Any]:
        """Puts a chunk on the devices; what is returned waits for its results."""
        num_valid, padded, slots = self._assign(candidates)
        if sharding.spans_processes(self.mesh):
            data = sharding.put_replicated(data, self.mesh)
        with sharding.in_context(self.mesh):
            results = self._program(self._params.arrays, self._scales, num_valid, padded, data)
        return lambda: jax.tree.map(lambda leaf: np.asarray(leaf)[slots], results)

    def _assign(self, candidates: Candidate) -> tuple[jax.Array, Candidate, np.ndarray]:
        """How many candidates each device gets, the padded candidates, and the slot that each candidate is in."""
        devices = self._devices
        of_device = np.arange(self.max_candidates).reshape(devices, -1)
        assigned = np.array_split(np.arange(candidates.index.shape[0]), devices)
        slots = np.concatenate([of_device[d, : len(part)] for d, part in enumerate(assigned)])

        def pad(leaf):
            out = np.zeros((self.max_candidates, *leaf.shape[1:]), leaf.dtype)
            out[slots] = np.asarray(leaf)
            return out

        padded = sharding.put_over_data(jax.tree.map(pad, candidates), self.mesh)
        num_valid = sharding.put_over_data(np.array([len(part) for part in assigned], np.int32), self.mesh)
        return num_valid, padded, slots

    def lower(self, data: Any) -> Any:
        """The lowered program, for ``compile().memory_analysis()`` and the like. What this compiles, a call need not compile again.
        With parameters and data that are only shapes, for devices that are not there."""
        if sharding.is_abstract(self._params.arrays):
            several = jax.eval_shape(lambda: Candidate.base(self.max_candidates))
            num_valid, padded = sharding.put_over_data((jax.ShapeDtypeStruct((self._devices,), jnp.int32), several), self.mesh)
            shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), data)
            data = sharding.put_replicated(shapes, self.mesh)
        else:
            num_valid, padded, _ = self._assign(Candidate.base(self.max_candidates))
        with sharding.in_context(self.mesh):
            return self._program.lower(self._params.arrays, self._scales, num_valid, padded, data)
