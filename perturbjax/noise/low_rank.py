"""Low-rank noise: E = A B^T / sqrt(r) for leaves with two or more dims (EGGROLL, arXiv 2511.16652)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from perturbjax.noise.block import Block
from perturbjax.noise.distributions import DISTRIBUTIONS
from perturbjax.noise.values import KeyData, fold_in


def low_rank_factors(
    key_data: KeyData, block: Block, rank: int, distribution: str
) -> tuple[Float32[Array, " *L R r"], Float32[Array, " *L C r"]]:
    """A (..., R, rank) and B (..., C, rank), float32, with E = A B^T / sqrt(rank) for a leaf, or a block of it, of shape (..., R, C)."""
    draw = DISTRIBUTIONS[distribution].values
    *leading, rows, columns = block.global_shape
    *outer, row, column = block.dims
    a = draw(fold_in(key_data, 1), Block((*leading, rows, rank), (*outer, row, None)))
    b = draw(fold_in(key_data, 2), Block((*leading, columns, rank), (*outer, column, None)))
    return a, b


def low_rank(key_data: KeyData, block: Block, rank: int, distribution: str) -> Float32[Array, " *L R C"]:
    """Rank-``rank`` noise of a leaf with two or more dims, or a block of it (EGGROLL, eq. for E): float32, mean 0, variance 1."""
    return low_rank_product(*low_rank_factors(key_data, block, rank, distribution))


def low_rank_product(a: Float32[Array, " *L R r"], b: Float32[Array, " *L C r"]) -> Float32[Array, " *L R C"]:
    """A B^T / sqrt(r) of factors (..., R, r) and (..., C, r): (..., R, C)."""
    if a.shape[-1] == 1:
        return a * b.reshape(*b.shape[:-2], 1, b.shape[-2])  # an outer product fuses with what consumes it; a dot would be stored first
    product = jnp.einsum("...ik,...jk->...ij", a, b, precision=jax.lax.Precision.HIGHEST)
    return product / jnp.float32(math.sqrt(a.shape[-1]))
