"""The training of a cell, and the compiled program that trains many cells of one method at once.

n is an argument and no shape: batches are drawn by number among the first n rows of the seed's order. So one program serves all n, all
seeds and all bases of equal shapes. Cells are vmapped together; what they share (the base, the rows) has no cell axis, so the products of
the base with its weights are those of one model with a larger batch. Cells are sharded over "data" and never talk to each other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from perturbjax import _compat, sharding
from perturbjax.caulking.sizes import BySize, Loss, highest_together
from perturbjax.errors import InputError, positive_integer
from perturbjax.models.adapters import Adapter, distance, full
from perturbjax.tree import Params

MOST_DRAWS = 2**26
"""Rows that a cell draws at most: their numbers are in memory, all at once."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Method:
    """A way to learn the target.

    Attributes:
        caulk: what is trained in place of all parameters; None: all parameters, from scratch.
        head: what is trained beside it and is no part of the caulk, e.g. a new output; its size is not in ``norm``.
        learning_rate: highest of AdamW.
        attach: run the adapter beside its matrix (``Adapter.attach``, the decoder), not merged into it (``Adapter.apply``, any function).
    """

    caulk: Adapter | None
    head: Adapter | None = None
    learning_rate: float = 1e-2
    attach: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < float("inf"):
            raise InputError(f"`learning_rate` {self.learning_rate}: a number above 0 is required")

    @property
    def scratch(self) -> bool:
        return self.caulk is None

    @property
    def adapter(self) -> Adapter:
        return full() if self.caulk is None else self.caulk

    def init(self, base: Params, key: jax.Array) -> dict[str, Any]:
        """What is trained, at its start."""
        start = {"caulk": self.adapter.init(base, key)}
        return start if self.head is None else start | {"head": self.head.init(base, key)}

    def apply(self, base: Params, trained: dict[str, Any]) -> Params:
        """The parameters of the adapted model."""
        if self.head is not None:
            base = self.head.apply(base, trained["head"])
        return (self.adapter.attach if self.attach else self.adapter.apply)(base, trained["caulk"])


@dataclass(frozen=True)
class Fitting:
    """How long a cell is trained, and on how many rows a step: the same for all cells, so that n is the number of rows alone."""

    steps: int = 400
    """Optimizer steps of AdamW, whatever n is."""
    batch: int = 32
    """Rows of a step, drawn with replacement among the n."""
    warmup: float = 0.05
    """Fraction of the steps in which the learning rate rises from zero; it falls to zero along half a cosine."""
    weight_decay: float = 0.0
    """AdamW's decay of matrices."""
    clip: float = 1.0
    """Highest global norm of a gradient."""

    def validate(self) -> None:
        positive_integer("steps", self.steps)
        positive_integer("batch", self.batch)
        if (draws := self.steps * self.batch) > MOST_DRAWS:
            given = f"`steps` {self.steps}, `batch` {self.batch}"
            raise InputError(f"{given}: {draws} rows are drawn for a cell; at most {MOST_DRAWS} are required")
        if not 0 <= self.warmup <= 1:
            raise InputError(f"`warmup` {self.warmup}: a fraction of the steps, from 0 to 1, is required")
        if not 0 <= self.weight_decay < float("inf"):
            raise InputError(f"`weight_decay` {self.weight_decay}: 0 or a number above it is required")
        if not 0 < self.clip < float("inf"):
            raise InputError(f"`clip` {self.clip}: a number above 0 is required")


def evenly_in_flight(in_flight: int, cells: int, mesh: Mesh) -> int:
    """Cells vmapped together on each device, at most ``in_flight``, so that the chunks of so many cells are as equal as they can be: what a
    chunk lacks is computed all the same.

    >>> from perturbjax.sharding import make_mesh
    >>> evenly_in_flight(16, 20, make_mesh())
    10
    """
    devices = mesh.shape[sharding.DATA]
    chunks = -(-cells // (in_flight * devices))
    return -(-cells // (chunks * devices))


class CellArrays(NamedTuple):
    """Cells as arrays with one leading axis.

    Attributes:
        seed: uint32.
        position: of the seed among the grid's, int32.
        samples: n, int32.
    """

    seed: Any
    position: Any
    samples: Any


class Shared(NamedTuple):
    """What the cells of a call share; of a grid with targets of their own for each seed, ``base``, ``data`` and ``test`` lead with S.

    Attributes:
        base: parameters.
        data: arrays with leading N rows.
        test: what ``error`` takes.
        order: (S, N) int32, the order of the rows for each seed.
    """

    base: Any
    data: Any
    test: Any
    order: Any


class GridProgram:
    """Trains cells of one method, compiled once.

    Args:
        loss: of adapted parameters and a batch, differentiable; ``BySize`` where the batch's size depends on it.
        error: of adapted parameters and the test rows.
        method: how the model is adapted.
        fitting: steps and batch.
        mesh: cells are sharded over its "data" axis.
        in_flight: cells vmapped together on each device. A cell's figures depend on it, and on the mesh, by rounding alone.
        per_seed: ``Shared.base``, ``data`` and ``test`` have a leading axis of seeds.
        init: key -> parameters, for a method from scratch.
        keep: return what was trained too.
        freeze: what the cells of one base read in place of the base and the rows, made once (``train_cells``); None: these themselves.
    """

    def __init__(
        self,
        loss: Loss | BySize,
        error: Loss,
        method: Method,
        fitting: Fitting,
        mesh: Mesh,
        in_flight: int,
        per_seed: bool = False,
        init: Callable[[jax.Array], Params] | None = None,
        keep: bool = False,
        freeze: Callable[[Shared], Shared] | None = None,
    ):
        from perturbjax.train import Training
        from perturbjax.train.optimizer import make_optimizer

        training = Training(
            steps=fitting.steps,
            learning_rate=method.learning_rate,
            warmup=fitting.warmup,
            weight_decay=fitting.weight_decay,
            clip=fitting.clip,
        )
        self._sized = loss if isinstance(loss, BySize) else BySize((loss,), lambda batch: jnp.int32(0))
        self._error, self._method, self._fitting, self.freeze = error, method, fitting, freeze
        self._optimizer = make_optimizer(training, fitting.steps)
        self._per_seed, self._init, self._keep, self.mesh = per_seed, init, keep, mesh
        self.traces, self.chunk = 0, in_flight * mesh.shape[sharding.DATA]
        over, same = sharding.OVER_DATA, sharding.REPLICATED
        mapped = jax.shard_map(self._local, mesh=mesh, in_specs=(same, over), out_specs=over, check_vma=False)
        gathered = NamedSharding(mesh, same) if sharding.spans_processes(mesh) else None
        self._program = jax.jit(mapped, out_shardings=gathered)

    def _local(self, shared: Shared, cells: CellArrays) -> Any:
        self.traces += 1
        if len(cells.seed) == 1:  # not vmapped: a product of experts cannot be
            return jax.tree.map(lambda leaf: leaf[None], self.train(shared, jax.tree.map(lambda leaf: leaf[0], cells)))
        return jax.vmap(self.train, (None, 0))(shared, cells)

    def train(self, shared: Shared, cell: CellArrays) -> dict[str, Any]:
        """One cell; a pure function, to be traced."""
        base, data, test, order = shared
        if self._per_seed:
            base, data, test = jax.tree.map(lambda leaf: leaf[cell.position], (base, data, test))
        rows, method, fitting = order[cell.position], self._method, self._fitting
        start_key, batch_key = jax.random.split(jax.random.key(cell.seed, impl="threefry2x32"))
        if method.scratch:
            assert self._init is not None
            base = self._init(start_key)
        start = method.init(base, start_key)

        # All batches at once: draws of a few numbers a step would be a good part of a small network's time.
        batches = jax.random.randint(batch_key, (fitting.steps, fitting.batch), 0, cell.samples)

        def step(state: tuple[Any, Any], drawn: jax.Array) -> tuple[tuple[Any, Any], jax.Array]:
            trained, moments = state
            batch = jax.tree.map(lambda array: array[rows[drawn]], data)
            with jax.named_scope("gradients"):
                value, gradients = self._gradients(base, trained, batch)
            with jax.named_scope("optimizer"):
                updates, moments = self._optimizer.update(gradients, moments, trained)
                trained = jax.tree.map(jnp.add, trained, updates)
            return (trained, moments), value.astype(jnp.float32)

        (trained, _), losses = jax.lax.scan(step, (start, self._optimizer.init(start)), batches)
        with jax.named_scope("error"):
            error = jnp.asarray(self._error(method.apply(base, trained), test), jnp.float32)
        if error.shape:
            raise ValueError(f"error: returns shape {error.shape} where a scalar is required; take the mean over the test rows")
        moved = distance(start, trained)
        figures = {
            # An argmax of NaN is an answer too: an error by it would be finite.
            "error": jnp.where(jnp.isfinite(moved), error, jnp.nan),
            "loss": losses[-max(1, fitting.steps // 10) :].mean(),
            "norm": method.adapter.norm(base, trained["caulk"]),
            "distance": moved,
        }
        return figures | ({"trained": trained} if self._keep else {})

    def _gradients(self, base: Params, trained: Any, batch: Any) -> tuple[jax.Array, Any]:
        """The loss and its gradients. They are taken inside the branches: a switch that is differentiated keeps what all of them keep."""

        def of(loss: Loss) -> Callable[[Any, Any], tuple[jax.Array, Any]]:
            return lambda trained, batch: jax.value_and_grad(lambda each: loss(self._method.apply(base, each), batch))(trained)

        branches = [of(loss) for loss in self._sized.losses]
        if len(branches) == 1:
            return branches[0](trained, batch)
        return jax.lax.switch(highest_together(self._sized.needed(batch)), branches, trained, batch)

    def __call__(self, shared: Shared, cells: CellArrays) -> Any:
        """Trains cells, ``chunk`` of them at a time, from now on half as many together where memory is short; numpy results with their
        leading axis. ``shared`` is on the mesh already (``put``).

        Raises:
            MemoryError: it is short with one cell on each device.
        """
        parts, start, devices = list[Any](), 0, self.mesh.shape[sharding.DATA]
        while start < len(cells.seed):
            part = CellArrays(*(leaf[start : start + self.chunk] for leaf in cells))
            try:
                parts.append(self._run(shared, part))
                start += len(part.seed)
                continue
            except jax.errors.JaxRuntimeError as error:
                # All devices hold the same, so all processes are short of memory alike and go on alike.
                if not _compat.is_out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0]
            together = self.chunk // devices
            if together == 1:
                raise MemoryError(f"one cell does not fit on a device ({reason}); train on fewer rows a step, or with remat")
            _log.warning("out of memory with %d cells in flight, going on with %d (%s)", together, together // 2, reason)
            self.chunk = together // 2 * devices
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    def _run(self, shared: Shared, cells: CellArrays) -> Any:
        count = len(cells.seed)
        # The last chunk is filled up with its own first cell, so that there is one shape.
        padded = jax.tree.map(lambda leaf: np.concatenate([leaf, np.repeat(leaf[:1], self.chunk - count)]), cells)
        results = self._program(shared, sharding.put_over_data(padded, self.mesh))
        return jax.tree.map(lambda leaf: np.asarray(leaf)[:count], results)

    def lower(self, shared: Shared) -> Any:
        """The lowered program, for ``compile().memory_analysis()`` and the like."""
        none = np.zeros(self.chunk)
        cells = CellArrays(none.astype(np.uint32), none.astype(np.int32), none.astype(np.int32) + 1)
        return self._program.lower(shared, sharding.put_over_data(cells, self.mesh))
