"""``perturbed_dot_general``: a dot in which one or both operands are lazy parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.lax import Precision

from perturbjax.interpret.array import LazyArray
from perturbjax.interpret.views import View
from perturbjax.kernels.platforms import lowerings, pays
from perturbjax.noise.block import Slice

Dims = tuple[int, ...]
_HIGHEST = (Precision.HIGHEST, Precision.HIGHEST)
NARROW = 128
"""A matrix with a shorter side is materialized: it has less than a register's width on TPU, and its layout in memory is not the one that
kernels read, so it would be copied anyway."""


def perturbed_dot_general(
    lhs: Any,
    rhs: Any,
    dimension_numbers: tuple[tuple[Dims, Dims], tuple[Dims, Dims]],
    *,
    preferred_element_type: Any = None,
    **params: Any,
) -> jax.Array:
    """``lax.dot_general`` of arrays or LazyArrays: the noise of a lazy operand is made here and nowhere else.

    On TPU and GPU a product with one lazy matrix is ``perturbjax.kernels``' ``perturbed_matmul``: noise and perturbed weight exist tile by
    tile, never in memory. On other platforms, where a kernel would be slower, and in any other product, the operand is materialized first.

    Where a lazy matrix asks for it (``lazy(..., factored=True)``), x (W + s A B^T) is computed as x W + s (x A) B^T, sums in float32: W
    stays as it is, and candidates under vmap share the product with it (EGGROLL, arXiv 2511.16652). Only where the perturbed weight is
    not rounded on its way into the product: a float32 leaf, no cast, and a product that reads all of float32 (CPU, or precision highest).
    Elsewhere the two forms are different models, and what was scored must be what votes and what is exported.

    Args:
        lhs, rhs: operands; at least one lazy.
        dimension_numbers: as for ``lax.dot_general``.
        preferred_element_type, params: as for ``lax.dot_general``.
    """

    def whole() -> jax.Array:
        operands = [value.materialize() if isinstance(value, LazyArray) else value for value in (lhs, rhs)]
        return jax.lax.dot_general(operands[0], operands[1], dimension_numbers, preferred_element_type=preferred_element_type, **params)

    for lazy, other, side in ((rhs, lhs, 1), (lhs, rhs, 0)):
        if not isinstance(lazy, LazyArray) or isinstance(other, LazyArray) or dimension_numbers[1] != ((), ()):
            continue
        if (dim := _contracted(lazy, dimension_numbers[0][side])) is None:
            continue
        other_dim = dimension_numbers[0][1 - side][0]

        def factored(lazy: LazyArray = lazy, other: jax.Array = other, side: int = side, dim: int = dim) -> jax.Array:
            dtype = preferred_element_type or jnp.result_type(other.dtype, lazy.dtype)
            operands = (lhs, lazy.unperturbed()) if side else (lazy.unperturbed(), rhs)
            product = jax.lax.dot_general(*operands, dimension_numbers, preferred_element_type=jnp.float32, **params)
            x_dim = dimension_numbers[0][1 - side][0]
            return (product + _correction(other, x_dim, *_factors(lazy, dim), last=bool(side))).astype(dtype)

        branches: dict[str, Callable[[], jax.Array]] = {}
        if lazy.leaf.factored and lazy.factors is not None and not any(_rounds(view, lazy.base.dtype) for view in lazy.views):
            if params.get("precision") == _HIGHEST:
                return factored()
            branches["cpu"] = factored
        kernel = _Kernel(lazy, dim, other, other_dim, bool(side), preferred_element_type, params)
        if kernel.fits:
            branches |= {name: partial(kernel, lowering) for name, lowering in lowerings().items() if kernel.pays(lowering)}
        if branches:
            return jax.lax.platform_dependent(default=whole, **branches)
    return whole()


def _contracted(lazy: LazyArray, contracted: Dims) -> int | None:
    """0 or 1: which dim of a lazy matrix, as it lies in its leaf, a dot contracts; None for anything but one dim of one matrix."""
    dims, rows = lazy.source_dims(), lazy.base.ndim - 2
    if len(contracted) != 1 or sorted(dims or ()) != [rows, rows + 1] or math.prod(lazy.base.shape[:-2]) != 1:
        return None
    assert dims is not None
    return dims[contracted[0]] - rows


@dataclass(frozen=True)
class _Kernel:
    """A product with a lazy matrix as ``perturbed_matmul`` computes it.

    Attributes:
        lazy, dim: the matrix, and which of its two dims is contracted.
        other, other_dim: the other operand; its other dims are the rows of x.
        last: whether the matrix's free dim is the last of the result, else it is the first.
        dtype: ``preferred_element_type``.
        params: the rest of what ``lax.dot_general`` takes.
    """

    lazy: LazyArray
    dim: int
    other: jax.Array
    other_dim: int
    last: bool
    dtype: Any
    params: dict[str, Any]

    @property
    def fits(self) -> bool:
        """Whether the kernel computes what the dot does."""
        lazy, dtypes = self.lazy, (jnp.bfloat16, jnp.float32)
        typed = self.other.dtype == lazy.base.dtype and lazy.base.dtype in dtypes and (self.dtype is None or self.dtype in dtypes)
        as_is = not any(_rounds(view, lazy.base.dtype) for view in lazy.views)
        block = all(isinstance(part, Slice | None) for part in lazy.block.dims)
        wide = min(lazy.base.shape[-2:]) >= NARROW and self.other.size > 0
        precise = self.params.get("precision") in (None, (Precision.DEFAULT, Precision.DEFAULT), _HIGHEST)
        # Operation by operation, outside of jit, it would be compiled anew in every call.
        traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((lazy, self.other)))
        independent = not lazy.leaf.noise.unit  # a tile cannot know the largest element of its vectors
        return independent and typed and as_is and block and wide and precise and traced and self.params.get("out_sharding") is None

    def pays(self, lowering: str) -> bool:
        """Whether the kernel is faster than the dot."""
        noise, rows = self.lazy.leaf.noise, self.other.size // self.other.shape[self.other_dim]
        return pays(lowering, noise.distribution, noise.rank, rows)

    def __call__(self, lowering: str) -> jax.Array:
        # Pallas takes a third of a second to import, and only programs for TPU and GPU need it.
        from perturbjax.kernels.matmul import perturbed_matmul

        lazy, x = self.lazy, jnp.moveaxis(self.other, self.other_dim, -1)
        stack, index = lazy.stack or (lazy.base, 0)
        factors = None
        if lazy.factors is not None:
            a, b = lazy.factors
            factors = (a.reshape(a.shape[-2:]), b.reshape(b.shape[-2:]))
        y = perturbed_matmul(
            x.reshape(-1, x.shape[-1]),
            stack.reshape(-1, *stack.shape[-2:]),
            lazy.key_data,
            lazy.step,
            shape=lazy.block.global_shape,
            distribution=lazy.leaf.noise.distribution,
            rank=lazy.leaf.noise.rank,
            factors=factors,
            index=index,
            offsets=_offsets(lazy),
            transposed=self.dim == 1,
            precision=self.params.get("precision"),
            preferred_element_type=self.dtype,
            lowering=lowering,
        )
        y = y.reshape(*x.shape[:-1], -1)
        return y if self.last else jnp.moveaxis(y, -1, 0)


def _rounds(view: View, dtype: Any) -> bool:
    """Whether a view of values of ``dtype`` changes any."""
    if view.primitive.name == "convert_element_type":
        return view.params["new_dtype"] != dtype
    return view.primitive.name == "reduce_precision"


def _offsets(lazy: LazyArray) -> tuple[int | jax.Array, int | jax.Array, int | jax.Array]:
    """Where in its leaf a matrix begins: the flat index of the leading dims, the row, the column."""
    *leading, row, column = (part.start if isinstance(part, Slice) else 0 for part in lazy.block.dims)
    flat: int | jax.Array = 0
    for start, n in zip(leading, lazy.block.global_shape, strict=False):
        flat = flat * n + (start if isinstance(start, int) else start.astype(jnp.uint32))
    return flat, row, column


def _factors(lazy: LazyArray, dim: int) -> tuple[jax.Array, jax.Array]:
    """Low-rank noise of a lazy matrix: first (contracted size, r) with the step in it, second (free size, r), float32."""
    assert lazy.factors is not None
    a, b = (factor.reshape(factor.shape[-2:]) for factor in lazy.factors)
    first, second = (b, a) if dim else (a, b)
    return first * (lazy.step / jnp.float32(math.sqrt(first.shape[1]))), second


def _correction(x: jax.Array, dim: int, first: jax.Array, second: jax.Array, *, last: bool) -> jax.Array:
    """(x . first) . second^T in float32, the new dim last or first."""
    x = x.astype(jnp.float32)
    if first.shape[1] == 1:
        # A dot over one element would be stored; a product fuses with the sum and with what consumes that.
        inner = jax.lax.dot_general(x, first[:, 0], (((dim,), (0,)), ((), ())))
        free = second[:, 0].reshape(*[1] * inner.ndim, -1) if last else second[:, 0].reshape(-1, *[1] * inner.ndim)
        return (inner[..., None] if last else inner[None]) * free
    inner = jax.lax.dot_general(x, first, (((dim,), (0,)), ((), ())))
    operands, dims = ((inner, second), (inner.ndim - 1, 1)) if last else ((second, inner), (1, inner.ndim - 1))
    return jax.lax.dot_general(*operands, (((dims[0],), (dims[1],)), ((), ())))
