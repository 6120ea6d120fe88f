"""What a perturbed product is: the static half that every lowering reads, and where a block of a weight lies in its leaf."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from perturbjax.noise.block import Block, Slice
from perturbjax.noise.distributions import DISTRIBUTIONS, Distribution
from perturbjax.noise.low_rank import low_rank_factors
from perturbjax.noise.values import counters


@dataclass(frozen=True)
class Problem:
    """Everything static about one perturbed product.

    Attributes:
        distribution: a name in ``noise.DISTRIBUTIONS``; None adds nothing: the plain product, which costs are compared with.
        leaf: (B, R, C), the matrix view of the whole leaf.
        rank: of low-rank noise; None for dense noise.
        transposed: w is (N, K) and the product x w^T.
        aligned: the block's first row is known to be a multiple of 32, so its words are the leaf's words.
        precision: of the dot, as for ``jax.lax.dot``.
        dtype: of the result; sums are in float32 before.
    """

    distribution: str | None
    leaf: tuple[int, int, int]
    rank: int | None
    transposed: bool
    aligned: bool
    precision: Any
    dtype: Any

    @property
    def record(self) -> Distribution:
        """The distribution's record; there must be one."""
        assert self.distribution is not None
        return DISTRIBUTIONS[self.distribution]

    @property
    def wide(self) -> bool:
        """Whether flat indices of the noise's words need the high counter word."""
        batches, rows, columns = self.words_shape
        return batches * rows * columns > 2**32

    @property
    def words_shape(self) -> tuple[int, int, int]:
        """Shape of the leaf's words."""
        batches, rows, columns = self.leaf
        return (batches, -(-rows // self.rows_per_word), columns)

    @property
    def rows_per_word(self) -> int:
        """How many rows of the leaf share a word."""
        return 1 if self.distribution is None else self.record.rows_per_word

    def dot(self, x: jax.Array, w: jax.Array) -> jax.Array:
        """x w, or x w^T, with float32 sums."""
        contracted = ((1,), (1 if self.transposed else 0,))
        return jax.lax.dot_general(x, w, (contracted, ((), ())), precision=self.precision, preferred_element_type=jnp.float32)

    def block(self, offsets: jax.Array, shape: Sequence[int]) -> Block:
        """The block of (rows, columns) whose first element is at ``offsets`` (leading index, row, column) of the leaf."""
        return Block(self.leaf, (Slice(offsets[0], 1), Slice(offsets[1], shape[0]), Slice(offsets[2], shape[1])))

    def factors(self, keys: jax.Array, offsets: jax.Array, shape: Sequence[int]) -> tuple[jax.Array, jax.Array]:
        """Low-rank factors of each candidate's block: (C, rows, rank) and (C, columns, rank), float32."""
        assert self.rank is not None and self.distribution is not None
        rank, distribution, block = self.rank, self.distribution, self.block(offsets, shape)
        a, b = jax.vmap(lambda key: low_rank_factors(key, block, rank, distribution))(keys)
        return a[:, 0], b[:, 0]

    def word_starts(self, offsets: jax.Array, tile_rows: int, tiles: int) -> jax.Array:
        """Flat index of the first word of each row of tiles of the block: uint32 (2, tiles), high words first."""
        row = offsets[1] + jnp.arange(tiles, dtype=jnp.uint32) * jnp.uint32(tile_rows)
        row = row // jnp.uint32(self.rows_per_word)
        hi, lo = counters(Block(self.words_shape, (Slice(offsets[0], 1), row, Slice(offsets[2], 1))))
        return jnp.stack([jnp.broadcast_to(jnp.asarray(hi, jnp.uint32), lo.shape), lo]).reshape(2, tiles)
