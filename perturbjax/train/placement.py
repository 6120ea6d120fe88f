"""Where the arrays of a training lie on the (data, model) mesh. The compiler inserts the collectives: nothing here is manual."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from perturbjax import sharding
from perturbjax.errors import InputError
from perturbjax.sharding import DATA, REPLICATED, ShardedDim
from perturbjax.train.step import TrainState
from perturbjax.tree import map_with_paths

BATCH = PartitionSpec(None, DATA)
"""Of batch arrays with leading (A, B): every device has its part of each of the A parts."""


def param_specs(params: Any, dims: Mapping[str, ShardedDim]) -> Any:
    """The tree of partition specs: along "model" where the devices' ranges follow each other without a gap, else replicated."""

    def one(path: str, leaf: Any) -> PartitionSpec:
        dim = dims.get(path)
        even = dim is not None and dim.offsets == tuple(i * dim.size for i in range(len(dim.offsets)))
        return dim.spec if dim is not None and even and dim.size * len(dim.offsets) == leaf.shape[dim.dim] else REPLICATED

    return map_with_paths(one, params)


def put_params(params: Any, mesh: Mesh, dims: Mapping[str, ShardedDim], dtype: Any = None) -> Any:
    """Parameters on the mesh, in ``dtype`` where one is given. Every process has the whole of ``params``."""
    return put_specs(params, mesh, param_specs(params, dims), dtype)


def put_specs(tree: Any, mesh: Mesh, specs: Any, dtype: Any = None) -> Any:
    """As ``put_params``, along the partition specs of a tree of them. The arrays are new ones, which may be donated."""

    def one(leaf: Any, spec: PartitionSpec) -> Any:
        return sharding.put(np.asarray(leaf) if dtype is None else np.asarray(leaf, dtype), mesh, spec)

    return jax.tree.map(one, tree, specs)


def state_shardings(state: TrainState, optimizer: optax.GradientTransformation, mesh: Mesh, dims: Mapping[str, ShardedDim]) -> TrainState:
    """The shardings of a state: moments lie where their parameters lie."""
    specs = TrainState(param_specs(state.params, dims), moment_specs(state, optimizer, dims))
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, PartitionSpec))


def moment_specs(state: TrainState, optimizer: optax.GradientTransformation, dims: Mapping[str, ShardedDim]) -> Any:
    """The tree of partition specs of an optimizer's state: those of the parameters for what has their shapes."""
    specs = param_specs(state.params, dims)
    return optax.tree.map_params(optimizer, lambda _, spec: spec, state.optimizer, specs, transform_non_params=lambda _: REPLICATED)


def to_host(params: Any, mesh: Mesh) -> Any:
    """Parameters on a mesh as whole numpy arrays, on every process; all processes call it together."""
    return jax.device_get(jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, REPLICATED))(params))


def check_batch(batch_rows: int, accumulate: int, mesh: Mesh) -> None:
    """Raises ``InputError`` unless the devices along "data" get equal parts of a batch."""
    devices = mesh.shape[DATA]
    if batch_rows // accumulate % devices:
        parts = f"{devices} devices of mesh axis {DATA!r}, `accumulate` {accumulate}"
        raise InputError(f"`batch_rows` {batch_rows}: a multiple of {devices * accumulate} is required ({parts})")


def put_batch(batch: Any, accumulate: int, mesh: Mesh, beside: Callable[[np.ndarray], dict[str, np.ndarray]] | None = None) -> Any:
    """A pytree of arrays with leading B as (A, B / A), sharded over "data".

    Args:
        beside: bool (B,), which rows lie on devices of this process -> further arrays, whose other rows are not looked at; of a dict.
    """
    if beside is not None:
        held = np.zeros((accumulate, len(next(iter(batch.values()))) // accumulate), bool)
        for index in NamedSharding(mesh, BATCH).addressable_devices_indices_map(held.shape).values():
            held[index] = True
        batch = batch | beside(held.ravel())
    return sharding.put(jax.tree.map(lambda array: array.reshape(accumulate, -1, *array.shape[1:]), batch), mesh, BATCH)
