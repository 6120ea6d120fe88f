"""What a perturbed product is: the static half that every lowering reads, and where a block of a weight lies in its leaf."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from perturbjax.noise import values as noise
from perturbjax.noise.values import Coordinates, Window

WORD_BITS = 32


@dataclass(frozen=True)
class Problem:
    """Everything static about one perturbed product.

    Attributes:
        distribution: one of ``noise.DISTRIBUTIONS``; None adds nothing: the plain product, which costs are compared with.
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
    def wide(self) -> bool:
        """Whether flat indices of the noise's words need the high counter word."""
        batches, rows, columns = self.words_shape
        return batches * rows * columns > 2**32

    @property
    def words_shape(self) -> tuple[int, int, int]:
        """Shape of the leaf's words: one a weight, or one for 32 rows."""
        batches, rows, columns = self.leaf
        return (batches, -(-rows // WORD_BITS), columns) if self.distribution == "rademacher" else self.leaf

    def dot(self, x: jax.Array, w: jax.Array) -> jax.Array:
        """x w, or x w^T, with float32 sums."""
        contracted = ((1,), (1 if self.transposed else 0,))
        return jax.lax.dot_general(x, w, (contracted, ((), ())), precision=self.precision, preferred_element_type=jnp.float32)

    def coordinates(self, offsets: jax.Array, block: Sequence[int]) -> Coordinates:
        """The block of (rows, columns) whose first element is at ``offsets`` (leading index, row, column) of the leaf."""
        return (Window(offsets[0], 1), Window(offsets[1], block[0]), Window(offsets[2], block[1]))

    def factors(self, keys: jax.Array, offsets: jax.Array, block: Sequence[int]) -> tuple[jax.Array, jax.Array]:
        """Low-rank factors of each candidate's block: (C, rows, rank) and (C, columns, rank), float32."""
        assert self.rank is not None and self.distribution is not None
        rank, distribution, where = self.rank, self.distribution, self.coordinates(offsets, block)
        a, b = jax.vmap(lambda key: noise.low_rank_factors(key, self.leaf, rank, distribution, where))(keys)
        return a[:, 0], b[:, 0]

    def word_starts(self, offsets: jax.Array, tile_rows: int, tiles: int) -> jax.Array:
        """Flat index of the first word of each row of tiles of the block: uint32 (2, tiles), high words first."""
        row = offsets[1] + jnp.arange(tiles, dtype=jnp.uint32) * jnp.uint32(tile_rows)
        if self.distribution == "rademacher":
            row = row // jnp.uint32(WORD_BITS)
        hi, lo = noise.counters(self.words_shape, (Window(offsets[0], 1), row, Window(offsets[2], 1)))
        return jnp.stack([jnp.broadcast_to(jnp.asarray(hi, jnp.uint32), lo.shape), lo]).reshape(2, tiles)
