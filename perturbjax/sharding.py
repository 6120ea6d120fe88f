"""Every sharding decision: the mesh axes and what lies along them. It knows no model's names (``models.partition`` does).

"data": candidates of a search (examples of a training batch, cells of a grid). They never talk to each other; base params are replicated
    along it. The one collective on it is the gather of a chunk's results where no process sees all of them.
"model": tensor parallelism: the devices of one candidate, over which its matrices are sharded.

Everything inside a compiled chunk is manual (``jax.shard_map`` over both axes): a Pallas call cannot be partitioned automatically, and
noise needs no communication where every device knows which block of a leaf it holds (``ShardedDim.block``).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from perturbjax.noise.block import Block, Slice
from perturbjax.noise.spec import matrix_mean_square
from perturbjax.tree import leaf_paths, map_with_paths

DATA = "data"
MODEL = "model"

REPLICATED = PartitionSpec()
OVER_DATA = PartitionSpec(DATA)


def make_mesh(devices: Sequence[Any] | None = None, model: int = 1) -> Mesh:
    """A (data, model) mesh of all devices (or the given ones), with ``model`` neighbors along "model".

    In the order in which JAX lists them, host by host: neighbors in that list are neighbors on a TPU's torus. A model axis of 4 on v5e is
    the 2 x 2 square of one host, one of 8 a block of 2 x 4 (``jax.experimental.mesh_utils`` would put 4 in a row over two hosts).

    Raises:
        ValueError: the devices do not divide by ``model``.
    """
    devices = jax.devices() if devices is None else devices
    if model < 1 or len(devices) % model:
        raise ValueError(f"model {model}: must divide the {len(devices)} devices")
    return Mesh(np.asarray(devices).reshape(-1, model), (DATA, MODEL))


def in_context(mesh: Mesh) -> contextlib.AbstractContextManager[Any]:
    """Sets ``mesh`` where the caller has set another one, or where the function to be run speaks of its axes (a mesh without "data")."""
    needed = DATA not in mesh.axis_names or not jax.sharding.get_abstract_mesh().empty
    return jax.set_mesh(mesh) if needed else contextlib.nullcontext()


def spans_processes(mesh: Mesh) -> bool:
    """Whether some of the mesh belongs to another process, so that none sees the whole of a sharded array."""
    return len({device.process_index for device in mesh.devices.flat}) > 1


def is_abstract(tree: Any) -> bool:
    """Whether a pytree holds shapes and no values."""
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree))


def put(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    """Puts a pytree, of which every process has the whole, on the mesh. Shapes (``ShapeDtypeStruct``) stay shapes: a program can be
    compiled for a mesh of devices that are not there."""
    sharding = NamedSharding(mesh, spec)
    if is_abstract(tree):
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)
    if not spans_processes(mesh):
        return jax.device_put(tree, sharding)

    def one(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        host = np.asarray(leaf)  # device_put would compare it between the processes, leaf by leaf
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(one, tree)


def put_replicated(tree: Any, mesh: Mesh) -> Any:
    """Puts a pytree on every device of the mesh, once."""
    return put(tree, mesh, REPLICATED)


def put_over_data(tree: Any, mesh: Mesh) -> Any:
    """Shards the leading axis of every leaf over "data", or puts it on every device of a mesh without that axis."""
    return put(tree, mesh, OVER_DATA if DATA in mesh.axis_names else REPLICATED)


def reshard_replicated(tree: Any) -> Any:
    """Results whose type says that they are sharded over explicit mesh axes, replicated; others as they are."""
    return jax.tree.map(lambda leaf: jax.reshard(leaf, REPLICATED) if any(jax.typeof(leaf).sharding.spec) else leaf, tree)


@dataclass(frozen=True)
class ShardedDim:
    """One dim of a leaf, sharded over "model": device i holds positions ``offsets[i]`` to ``offsets[i] + size``.

    A plain ``PartitionSpec`` cannot say this: the ranges may overlap (a key head that several devices need), and the last ones may reach
    beyond the end of the dim (they are padded with zeros, and whatever noise falls on these is never used). So the array on the mesh holds
    all devices' ranges one after the other.
    """

    dim: int
    size: int
    offsets: tuple[int, ...]

    @property
    def spec(self) -> PartitionSpec:
        return PartitionSpec(*[None] * self.dim, MODEL)

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the array that holds all devices' ranges one after the other."""
        return (*shape[: self.dim], self.size * len(self.offsets), *shape[self.dim + 1 :])

    def read(self, leaf: Any, index: tuple[slice, ...]) -> np.ndarray:
        """What lies at ``index``, one device's, of the stored array; reads no more of ``leaf`` than that."""
        start = self.offsets[(index[self.dim].start or 0) // self.size]
        end = min(start + self.size, leaf.shape[self.dim])
        part = np.asarray(leaf[(*index[: self.dim], slice(start, max(start, end)), *index[self.dim + 1 :])])
        missing = self.size - part.shape[self.dim]
        if missing:
            part = np.pad(part, [(0, missing if dim == self.dim else 0) for dim in range(part.ndim)])
        return part

    def store(self, leaf: jax.Array) -> jax.Array:
        """The stored array of a whole leaf; traced."""
        missing = max(self.offsets) + self.size - leaf.shape[self.dim]
        if missing > 0:
            leaf = jnp.pad(leaf, [(0, missing if dim == self.dim else 0) for dim in range(leaf.ndim)])
        if self.offsets == tuple(device * self.size for device in range(len(self.offsets))):
            return leaf
        return jnp.concatenate([jax.lax.slice_in_dim(leaf, start, start + self.size, axis=self.dim) for start in self.offsets], self.dim)

    def block(self, shape: tuple[int, ...]) -> Block:
        """Which block of a leaf of ``shape`` this device holds; inside ``shard_map``."""
        start = jnp.asarray(self.offsets, jnp.int32)[jax.lax.axis_index(MODEL)]
        return Block(shape).take(self.dim, Slice(start, self.size))

    def positions(self, length: int) -> np.ndarray:
        """Where in the stored dim each position of a dim of ``length`` is to be found."""
        found = np.zeros(length, np.int32)
        for device, start in enumerate(self.offsets):
            end = min(start + self.size, length)
            found[start:end] = device * self.size + np.arange(end - start)
        return found


@dataclass(frozen=True)
class ShardedParams:
    """Parameters on a mesh, put there once and never written.

    Attributes:
        arrays: the tree, every leaf replicated or sharded over "model".
        shapes: path -> shape of the whole leaf, which is what its noise is a function of.
        dims: path -> the sharded dim; the other leaves are replicated.
    """

    arrays: Any
    shapes: dict[str, tuple[int, ...]]
    dims: dict[str, ShardedDim]

    def specs(self) -> Any:
        """The tree of partition specs."""
        return map_with_paths(lambda path, _: self.dims[path].spec if path in self.dims else REPLICATED, self.arrays)

    def blocks(self) -> dict[str, Block]:
        """Which block of each sharded leaf this device holds; inside ``shard_map``."""
        return {path: dim.block(self.shapes[path]) for path, dim in self.dims.items()}

    def whole(self) -> Any:
        """The tree of whole leaves, as shapes and types."""
        return map_with_paths(lambda path, leaf: jax.ShapeDtypeStruct(self.shapes[path], leaf.dtype), self.arrays)

    def mean_square(self, path: str, mesh: Mesh) -> jax.Array:
        """``spec.mean_square`` of one leaf, with one whole matrix of it at a time on a device: the same number on every mesh."""
        leaf, dim, shape = leaf_paths(self.arrays)[path], self.dims.get(path), self.shapes[path]
        leaf = put_replicated(leaf, mesh) if dim is None else leaf
        leading = max(0, len(shape) - 2)

        def one(matrix: jax.Array) -> jax.Array:
            if dim is not None:
                stored = jax.lax.all_gather(matrix, MODEL, axis=dim.dim - leading, tiled=True)
                matrix = jnp.take(stored, dim.positions(shape[dim.dim]), axis=dim.dim - leading)
            return matrix_mean_square(matrix)

        def local(part: jax.Array) -> jax.Array:
            return jax.lax.map(one, part.reshape(-1, *part.shape[leading:])).mean()

        spec = REPLICATED if dim is None else dim.spec
        return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=REPLICATED, check_vma=False))(leaf)

    @property
    def device_bytes(self) -> int:
        """Bytes of the parameters on one device."""
        paths = leaf_paths(self.arrays)
        devices = {path: len(dim.offsets) for path, dim in self.dims.items()}
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize // devices.get(path, 1) for path, leaf in paths.items())


def shard_params(params: Any, mesh: Mesh, dims: Mapping[str, ShardedDim] | None = None) -> ShardedParams:
    """Puts parameters on the mesh, sharded over "model" as ``dims`` say. Of a sharded leaf each process reads only its own devices' blocks,
    and no device holds more than its block at any time. Leaves that lie on all of the mesh already, as those of a training do, stay there.

    Args:
        params: a tree of arrays, or of anything with a shape and a dtype that gives numpy arrays when it is sliced, or of shapes alone.
        mesh: of (data, model).
        dims: path -> the sharded dim; leaves that are not named are replicated, and paths that are not there are ignored.
    """
    shapes = {path: tuple(jnp.shape(leaf)) for path, leaf in leaf_paths(params).items()}
    dims = {path: dim for path, dim in (dims or {}).items() if path in shapes}

    def one(path: str, leaf: Any) -> Any:
        if (dim := dims.get(path)) is None:
            stored = hasattr(leaf, "__array__") and not isinstance(leaf, jax.Array)
            return put_replicated(np.asarray(leaf) if stored else leaf, mesh)
        shape, sharding = dim.stored_shape(leaf.shape), NamedSharding(mesh, dim.spec)
        if is_abstract(leaf):
            return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)
        if _lies_on(leaf, mesh):
            return jax.jit(dim.store, out_shardings=sharding)(leaf)
        return jax.make_array_from_callback(shape, sharding, _once_each(lambda index: dim.read(leaf, index)), dtype=leaf.dtype)

    return ShardedParams(map_with_paths(one, params), shapes, dims)


def keep_params(params: Any, mesh: Mesh) -> ShardedParams:
    """Parameters sharded by their owner over the devices of ``mesh``, each left where it is; others are put on every device."""

    def one(leaf: Any) -> Any:
        return leaf if _lies_on(leaf, mesh) else put_replicated(leaf, mesh)

    return ShardedParams(jax.tree.map(one, params), {path: tuple(jnp.shape(leaf)) for path, leaf in leaf_paths(params).items()}, {})


def _lies_on(leaf: Any, mesh: Mesh) -> bool:
    """Whether it is an array on all devices of the mesh."""
    return isinstance(leaf, jax.Array) and leaf.sharding.device_set == set(mesh.devices.flat)


def _once_each(read: Callable[[Any], np.ndarray]) -> Callable[[Any], np.ndarray]:
    """``read``, asked once for what several devices of this process hold."""
    parts: dict[str, np.ndarray] = {}

    def cached(index: Any) -> np.ndarray:
        if repr(index) not in parts:
            parts[repr(index)] = read(index)
        return parts[repr(index)]

    return cached
