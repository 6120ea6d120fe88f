"""``perturbed_dot_general``: a dot in which one or both operands are lazy parameters."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from perturbjax.lazy.array import LazyArray

Dims = tuple[int, ...]


def perturbed_dot_general(
    lhs: Any,
    rhs: Any,
    dimension_numbers: tuple[tuple[Dims, Dims], tuple[Dims, Dims]],
    *,
    preferred_element_type: Any = None,
    **params: Any,
) -> jax.Array:
    """``lax.dot_general`` of arrays or LazyArrays: the noise of a lazy operand is made here and nowhere else.

    Where a lazy matrix asks for it (``lazy(..., factored=True)``), x (W + s A B^T) is computed as x W + s (x A) B^T, sums in float32: W
    stays as it is, and candidates under vmap share the product with it (EGGROLL, arXiv 2511.16652).

    Args:
        lhs, rhs: operands; at least one lazy.
        dimension_numbers: as for ``lax.dot_general``.
        preferred_element_type, params: as for ``lax.dot_general``.
    """
    for lazy, other, side in ((rhs, lhs, 1), (lhs, rhs, 0)):
        if isinstance(lazy, LazyArray) and not isinstance(other, LazyArray) and dimension_numbers[1] == ((), ()):
            if (factors := _factors(lazy, dimension_numbers[0][side])) is None:
                continue
            dtype = preferred_element_type or jnp.result_type(other.dtype, lazy.dtype)
            operands = (lhs, lazy.unperturbed()) if side else (lazy.unperturbed(), rhs)
            product = jax.lax.dot_general(*operands, dimension_numbers, preferred_element_type=jnp.float32, **params)
            return (product + _correction(other, dimension_numbers[0][1 - side][0], *factors, last=bool(side))).astype(dtype)
    lhs, rhs = (value.materialise() if isinstance(value, LazyArray) else value for value in (lhs, rhs))
    return jax.lax.dot_general(lhs, rhs, dimension_numbers, preferred_element_type=preferred_element_type, **params)


def _factors(lazy: LazyArray, contracted: Dims) -> tuple[jax.Array, jax.Array] | None:
    """Noise of a lazy matrix as (first, second), first (contracted size, r) with the step in it, second (free size, r), float32.

    None where dots are not to use factors, or these do not lie along the two dims of the view.
    """
    dims, rows = lazy.source_dims(), lazy.base.ndim - 2
    along = len(contracted) == 1 and sorted(dims or ()) == [rows, rows + 1] and math.prod(lazy.base.shape[:-2]) == 1
    if lazy.factors is None or not lazy.leaf.factored or not along:
        return None
    assert dims is not None
    a, b = (factor.reshape(factor.shape[-2:]) for factor in lazy.factors)
    first, second = (a, b) if dims[contracted[0]] == rows else (b, a)
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
