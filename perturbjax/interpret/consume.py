"""Where lazy parameters are used: parts of them (slices, rows) and the operations that multiply by them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.lax import GatherScatterMode

from perturbjax.interpret.array import LazyArray
from perturbjax.interpret.dot import perturbed_dot_general
from perturbjax.noise.block import Slice

if TYPE_CHECKING:
    from jax.extend.core import JaxprEqn

    from perturbjax.interpret.interpreter import Interpreter

Consumer = Callable[..., "list[Any] | None"]
"""(interpreter, equation, values) -> outputs, or None where the rule does not apply and the value must be materialized."""


def _dot_general(run: Interpreter, eqn: JaxprEqn, values: list[Any]) -> list[Any]:
    for value in values:
        if isinstance(value, LazyArray):
            run.usage.record(value, "dot_general")
    return [perturbed_dot_general(*values, **eqn.params)]


def _conv(run: Interpreter, eqn: JaxprEqn, values: list[Any]) -> list[Any]:
    lhs, rhs = (run.materialize(value, "conv_general_dilated") for value in values)
    return [eqn.primitive.bind(lhs, rhs, **eqn.params)]


def _slice(run: Interpreter, eqn: JaxprEqn, values: list[Any]) -> list[Any] | None:
    (value,) = values
    starts, limits, strides = (eqn.params[name] for name in ("start_indices", "limit_indices", "strides"))
    part = value
    for dim, (start, limit, size) in enumerate(zip(starts, limits, value.shape, strict=True)):
        stride = 1 if strides is None else strides[dim]
        if (start, limit, stride) == (0, size, 1):
            continue
        positions = Slice(start, limit - start) if stride == 1 else jnp.arange(start, limit, stride, dtype=jnp.int32)
        if (part := part.take(dim, positions)) is None:
            return None
    return [part]


def _widened(index: jax.Array) -> jax.Array:
    """Bounds of a dim may lie outside of a narrow type."""
    return index.astype(jnp.int32) if index.dtype.itemsize < 4 else index


def _inside(index: jax.Array, last: int) -> jax.Array:
    """``index`` clamped to 0 .. last, int32. Clamped first: uint32 and int64 hold numbers that int32 does not."""
    return jnp.clip(_widened(index), 0, last).astype(jnp.int32)


def _dynamic_slice(run: Interpreter, eqn: JaxprEqn, values: list[Any]) -> list[Any] | None:
    part, *starts = values
    if not isinstance(part, LazyArray) or any(isinstance(start, LazyArray) for start in starts):
        return None
    for dim, (start, size, whole) in enumerate(zip(starts, eqn.params["slice_sizes"], part.shape, strict=True)):
        if size == whole:
            continue
        if (part := part.take(dim, Slice(_inside(jnp.asarray(start), whole - size), size))) is None:
            return None
    return [part]


def _gather(run: Interpreter, eqn: JaxprEqn, values: list[Any]) -> list[Any] | None:
    """Slices of thickness one along one dim, picked by index (``table[ids]``, ``jnp.take``): noise for the picked slices only."""
    table, indices = values
    dims, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    if not isinstance(table, LazyArray) or isinstance(indices, LazyArray) or not jnp.issubdtype(table.dtype, jnp.inexact):
        return None
    sliced = [d for d, (size, n) in enumerate(zip(sizes, table.shape, strict=True)) if size != n] or list(dims.start_index_map[:1])
    dim = sliced[0] if len(sliced) == 1 else -1
    if dim not in dims.start_index_map or sizes[dim] != 1 or dims.operand_batching_dims or not {*dims.collapsed_slice_dims} <= {dim}:
        return None
    indices = _widened(indices)
    ids = indices[..., dims.start_index_map.index(dim)]
    part = table.take(dim, _inside(ids, table.shape[dim] - 1).reshape(-1))
    if part is None:
        return None
    run.usage.record(part, "gather")
    kept = tuple(size for d, size in enumerate(sizes) if d not in dims.collapsed_slice_dims)
    rows = jnp.moveaxis(part.materialize(), dim, 0).reshape(ids.shape + kept)
    if eqn.params["mode"] == GatherScatterMode.FILL_OR_DROP:
        inside = jnp.ones(ids.shape, bool)
        for i, d in enumerate(dims.start_index_map):
            inside &= (indices[..., i] >= 0) & (indices[..., i] <= table.shape[d] - sizes[d])
        fill = math.nan if eqn.params["fill_value"] is None else eqn.params["fill_value"]
        rows = jnp.where(jax.lax.expand_dims(inside, range(ids.ndim, rows.ndim)), rows, jnp.asarray(fill, rows.dtype))
    # Offset dims hold the slice, in order; the others the shape of the indices.
    batch = [d for d in range(rows.ndim) if d not in dims.offset_dims]
    return [jnp.moveaxis(rows, range(rows.ndim), [*batch, *dims.offset_dims])]


def _vary(run: Interpreter, eqn: JaxprEqn, values: list[Any]) -> list[Any]:
    """Inside ``shard_map``: the block itself varies from now on, so a part of it that is picked by varying indices does too."""
    (value,) = values
    return [replace(value, base=eqn.primitive.bind(value.base, **eqn.params))]


def _split(run: Interpreter, eqn: JaxprEqn, values: list[Any]) -> list[Any] | None:
    (value,) = values
    sizes, axis = eqn.params["sizes"], eqn.params["axis"]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    parts = [value.take(axis, Slice(start, size)) for start, size in zip(starts, sizes, strict=True)]
    return None if any(part is None for part in parts) else parts


CONSUMERS: dict[str, Consumer] = {
    "dot_general": _dot_general,
    "conv_general_dilated": _conv,
    "slice": _slice,
    "split": _split,
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
    "pvary": _vary,
}
