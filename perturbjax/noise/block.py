"""``Block``: which part of a leaf an array is.

A scan step's slice, an embedding row, a device's shard and a kernel's tile are blocks. Their noise is that part of the leaf's noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp


@partial(jax.tree_util.register_dataclass, data_fields=("start",), meta_fields=("size",))
@dataclass(frozen=True)
class Slice:
    """``size`` consecutive positions along one dim, from ``start``, which may be traced."""

    start: int | jax.Array
    size: int


@partial(jax.tree_util.register_dataclass, data_fields=("index",), meta_fields=("global_shape",))
@dataclass(frozen=True)
class Block:
    """A block of a leaf of ``global_shape``: ``leaf[np.ix_(*index)]``. A pytree, so that jit, vmap and scan take it as an argument.

    Attributes:
        global_shape: of the whole leaf; its noise is a function of it.
        index: dim by dim, None for all of it, a slice, or the positions themselves (1-D, in any order). None for the whole leaf.
    """

    global_shape: tuple[int, ...]
    index: tuple[Slice | jax.Array | None, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        if self.index is None:
            return self.global_shape
        return tuple(
            n if part is None else part.size if isinstance(part, Slice) else part.shape[0]
            for n, part in zip(self.global_shape, self.index, strict=True)
        )

    @property
    def dims(self) -> tuple[Slice | jax.Array | None, ...]:
        """``index``, one entry a dim."""
        return (None,) * len(self.global_shape) if self.index is None else self.index

    def take(self, dim: int, part: Slice | jax.Array) -> Block:
        """The block of the slice, or of the listed positions, ``part`` of this block's dim ``dim``."""
        dims = self.dims
        return Block(self.global_shape, (*dims[:dim], _compose(dims[dim], part), *dims[dim + 1 :]))


def _compose(outer: Slice | jax.Array | None, inner: Slice | jax.Array) -> Slice | jax.Array:
    """Positions in the leaf of positions ``inner`` of a block that lies at ``outer``."""
    if outer is None:
        return inner
    if isinstance(outer, Slice):
        start = jnp.asarray(outer.start).astype(jnp.int32)
        if isinstance(inner, Slice):
            return Slice(start + jnp.asarray(inner.start).astype(jnp.int32), inner.size)
        return start + inner.astype(jnp.int32)
    if isinstance(inner, Slice):
        return jax.lax.dynamic_slice_in_dim(outer, inner.start, inner.size, 0)
    return outer[inner]
