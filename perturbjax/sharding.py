"""Every sharding decision: the mesh axes and what lies along them.

"candidate": candidates are split over it and never talk to each other; base params and data are replicated along it. The one collective
    on it is the gather of a chunk's results where no process sees all of them.
"model": the devices of one candidate, among which its matrices are dealt as in Megatron-LM (arXiv 1909.08053): q, k, v, gate and up by
    column, o and down by row, with one sum over the axis after o and one after down; embedding and head by vocabulary, the cache by heads;
    norms are on every device.

Everything inside a compiled chunk is manual (``jax.shard_map`` over both axes): a Pallas call cannot be partitioned automatically, and
noise needs no communication where every device knows which block of a leaf it holds (``Cut``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from perturbjax.noise.dense import Place, leaf_paths, matrix_mean_square
from perturbjax.noise.values import Window

if TYPE_CHECKING:
    from perturbjax.models.config import DecoderConfig

CANDIDATE = "candidate"
MODEL = "model"

REPLICATED = PartitionSpec()
OVER_CANDIDATES = PartitionSpec(CANDIDATE)


def make_mesh(devices: Sequence[Any] | None = None, model: int = 1) -> Mesh:
    """A (candidate, model) mesh of all devices (or the given ones), ``model`` neighbours of them to a candidate.

    In the order in which JAX lists them, host by host: neighbours in that list are neighbours on a TPU's torus. A model axis of 4 on v5e is
    the 2 x 2 square of one host, one of 8 a block of 2 x 4 (``jax.experimental.mesh_utils`` would lay 4 in a row over two hosts).

    Raises:
        ValueError: the devices do not divide by ``model``.
    """
    devices = jax.devices() if devices is None else devices
    if model < 1 or len(devices) % model:
        raise ValueError(f"model {model}: must divide the {len(devices)} devices")
    return Mesh(np.asarray(devices).reshape(-1, model), (CANDIDATE, MODEL))


def over_processes() -> NamedSharding:
    """Splits the leading axis over the processes, in order, one device of each: what each keeps on its host, as one array."""
    devices = {device.process_index: device for device in reversed(jax.devices())}
    mesh = Mesh(np.asarray([devices[index] for index in range(jax.process_count())]), ("process",))
    return NamedSharding(mesh, PartitionSpec("process"))


def spans_processes(mesh: Mesh) -> bool:
    """Whether some of the mesh belongs to another process, so that none sees the whole of a split array."""
    return len({device.process_index for device in mesh.devices.flat}) > 1


def is_abstract(tree: Any) -> bool:
    """Whether a pytree holds shapes and no values."""
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree))


def put(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    """Lays a pytree, of which every process has the whole, on the mesh. Shapes (``ShapeDtypeStruct``) stay shapes: a program can be
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


def put_over_candidates(tree: Any, mesh: Mesh) -> Any:
    """Splits the leading axis of every leaf over "candidate"."""
    return put(tree, mesh, OVER_CANDIDATES)


@dataclass(frozen=True)
class Cut:
    """One dim of a leaf, dealt to the devices of the "model" axis: device i holds coordinates ``starts[i]`` to ``starts[i] + size``.

    The ranges may overlap (a key head that several devices need) and the last ones may reach behind the end of the dim (zeros lie there,
    and whatever noise falls on them is never used).
    """

    dim: int
    size: int
    starts: tuple[int, ...]

    @property
    def spec(self) -> PartitionSpec:
        return PartitionSpec(*[None] * self.dim, MODEL)

    def dealt(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the array that holds all devices' ranges one after the other."""
        return (*shape[: self.dim], self.size * len(self.starts), *shape[self.dim + 1 :])

    def block(self, leaf: Any, index: tuple[slice, ...]) -> np.ndarray:
        """What lies at ``index``, one device's, of the dealt array; reads no more of ``leaf`` than that."""
        start = self.starts[(index[self.dim].start or 0) // self.size]
        end = min(start + self.size, leaf.shape[self.dim])
        block = np.asarray(leaf[(*index[: self.dim], slice(start, max(start, end)), *index[self.dim + 1 :])])
        missing = self.size - block.shape[self.dim]
        if missing:
            block = np.pad(block, [(0, missing if dim == self.dim else 0) for dim in range(block.ndim)])
        return block

    def place(self, shape: tuple[int, ...]) -> Place:
        """Which block of a leaf of ``shape`` this device holds; inside ``shard_map``."""
        start = jnp.asarray(self.starts, jnp.int32)[jax.lax.axis_index(MODEL)]
        return Place(shape, tuple(Window(start, self.size) if dim == self.dim else None for dim in range(len(shape))))

    def undealt(self, length: int) -> np.ndarray:
        """Where in the dealt dim each coordinate of a dim of ``length`` is to be found."""
        found = np.zeros(length, np.int32)
        for device, start in enumerate(self.starts):
            end = min(start + self.size, length)
            found[start:end] = device * self.size + np.arange(end - start)
        return found


@dataclass(frozen=True)
class Split:
    """How a decoder is dealt to ``size`` devices; static, so that the compiled functions know it.

    Attributes:
        size: of the "model" axis, at least 2.
        attention: each device has whole query heads, and the key heads that they look at: its own ones, or one that it shares with its
            neighbours where there are fewer key heads than devices. Where heads cannot be dealt that way (SmolLM2-135M has 9), False:
            every device does all of attention, and nothing is summed.
        mlp: each device has a part of the ffn; False where that does not divide.
    """

    size: int
    attention: bool
    mlp: bool

    def local(self, config: DecoderConfig) -> DecoderConfig:
        """The shape of what one device runs."""
        changes: dict[str, int] = {"vocab_size": -(-config.vocab_size // self.size)}
        if self.attention:
            heads, group = config.num_heads // self.size, config.num_heads // config.num_kv_heads
            changes |= {"num_heads": heads, "num_kv_heads": max(1, heads // group)}
        if self.mlp:
            changes["intermediate_size"] = config.intermediate_size // self.size
        return dataclasses.replace(config, **changes)

    def cuts(self, config: DecoderConfig) -> dict[str, Cut]:
        """Path -> how that parameter is dealt; those that are not named are on every device."""
        local, devices = self.local(config), range(self.size)

        def even(dim: int, size: int) -> Cut:
            return Cut(dim, size, tuple(device * size for device in devices))

        cuts = {"embed/embedding": even(0, local.vocab_size)}
        if not config.tied_head:
            cuts["head/kernel"] = even(1, local.vocab_size)
        if self.attention:
            size, group = config.head_dim, config.num_heads // config.num_kv_heads
            heads = even(2, local.num_heads * size)
            keys = Cut(2, local.num_kv_heads * size, tuple(device * local.num_heads // group * size for device in devices))
            for name, cut in (("q", heads), ("k", keys), ("v", keys)):
                cuts[f"layers/attention/{name}/kernel"] = cut
                if config.qkv_bias:
                    cuts[f"layers/attention/{name}/bias"] = dataclasses.replace(cut, dim=1)
            cuts["layers/attention/o/kernel"] = even(1, local.num_heads * size)
        if self.mlp:
            cuts |= {f"layers/mlp/{name}/kernel": even(dim, local.intermediate_size) for name, dim in (("gate", 2), ("up", 2), ("down", 1))}
        return cuts


def split_model(config: DecoderConfig, size: int) -> Split | None:
    """The layout of a decoder on a "model" axis of ``size``; None where one device has all of it."""
    if size == 1:
        return None
    heads, rest = divmod(config.num_heads, size)
    group = config.num_heads // config.num_kv_heads
    whole_groups = rest == 0 and (heads % group == 0 or group % heads == 0)
    return Split(size, whole_groups, config.intermediate_size % size == 0)


@dataclass(frozen=True)
class Spread:
    """Parameters on a mesh, put there once and never written.

    Attributes:
        arrays: the tree, every leaf whole or dealt over "model" by its cut.
        shapes: path -> shape of the whole leaf, which is what its noise is a function of.
        cuts: path -> cut; the other leaves are replicated.
    """

    arrays: Any
    shapes: dict[str, tuple[int, ...]]
    cuts: dict[str, Cut]

    def specs(self) -> Any:
        """The tree of partition specs."""
        return _by_path(lambda path, _: self.cuts[path].spec if path in self.cuts else REPLICATED, self.arrays)

    def places(self) -> dict[str, Place]:
        """Which block of each dealt leaf this device holds; inside ``shard_map``."""
        return {path: cut.place(self.shapes[path]) for path, cut in self.cuts.items()}

    def whole(self) -> Any:
        """The tree of whole leaves, as shapes and types."""
        return _by_path(lambda path, leaf: jax.ShapeDtypeStruct(self.shapes[path], leaf.dtype), self.arrays)

    def mean_square(self, path: str, mesh: Mesh) -> jax.Array:
        """``perturb.mean_square`` of one leaf, with one whole matrix of it at a time on a device: the same number on every mesh."""
        leaf, cut, shape = leaf_paths(self.arrays)[path], self.cuts.get(path), self.shapes[path]
        leading = max(0, len(shape) - 2)

        def one(matrix: jax.Array) -> jax.Array:
            if cut is not None:
                dealt = jax.lax.all_gather(matrix, MODEL, axis=cut.dim - leading, tiled=True)
                matrix = jnp.take(dealt, cut.undealt(shape[cut.dim]), axis=cut.dim - leading)
            return matrix_mean_square(matrix)

        def local(block: jax.Array) -> jax.Array:
            return jax.lax.map(one, block.reshape(-1, *block.shape[leading:])).mean()

        spec = REPLICATED if cut is None else cut.spec
        return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=REPLICATED, check_vma=False))(leaf)

    @property
    def device_bytes(self) -> int:
        """Bytes of the parameters on one device."""
        paths = leaf_paths(self.arrays)
        devices = {path: len(cut.starts) for path, cut in self.cuts.items()}
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize // devices.get(path, 1) for path, leaf in paths.items())


def spread(params: Any, mesh: Mesh, cuts: Mapping[str, Cut] | None = None) -> Spread:
    """Puts parameters on the mesh, dealt over "model" as ``cuts`` say. Of a dealt leaf each process reads only its own devices' blocks,
    and no device holds more than its block at any time.

    Args:
        params: a tree of arrays, or of anything with a shape and a dtype that gives numpy arrays when it is sliced, or of shapes alone.
    """
    cuts = dict(cuts or {})

    def one(path: str, leaf: Any) -> Any:
        if (cut := cuts.get(path)) is None:
            stored = hasattr(leaf, "__array__") and not isinstance(leaf, jax.Array)
            return put_replicated(np.asarray(leaf) if stored else leaf, mesh)
        shape, sharding = cut.dealt(leaf.shape), NamedSharding(mesh, cut.spec)
        if is_abstract(leaf):
            return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)
        return jax.make_array_from_callback(shape, sharding, _once_each(lambda index: cut.block(leaf, index)), dtype=leaf.dtype)

    shapes = {path: tuple(jnp.shape(leaf)) for path, leaf in leaf_paths(params).items()}
    return Spread(_by_path(one, params), shapes, cuts)


def _once_each(read: Callable[[Any], np.ndarray]) -> Callable[[Any], np.ndarray]:
    """``read``, asked once for what several devices of this process hold."""
    blocks: dict[str, np.ndarray] = {}

    def cached(index: Any) -> np.ndarray:
        if repr(index) not in blocks:
            blocks[repr(index)] = read(index)
        return blocks[repr(index)]

    return cached


def _by_path(fn: Callable[[str, Any], Any], tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, leaf: fn(jax.tree_util.keystr(path, simple=True, separator="/"), leaf), tree)
