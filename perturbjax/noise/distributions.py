"""The table of noise distributions: one record each. Values, kernels, the cost model, the command line and the bench read it.

A distribution that reads one word a weight is one line: ``one_word_a_weight(name, help, cost, largest, of_words)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp

from perturbjax.noise import norms, tile, values
from perturbjax.noise.block import Block


@dataclass(frozen=True)
class Distribution:
    """Noise with mean 0 and variance 1 as a function of a leaf's key and a position.

    Attributes:
        name: what ``Noise.distribution`` and ``--noise`` say.
        help: one phrase for people.
        cost: of making the noise of one weight, in the multiply-adds of one token with it (``scoring.strategy``).
        rows_per_word: how many rows of a leaf share a word of the generator, 1 or 32.
        gpu_rows: up to how many rows of x a candidate the kernel for GPUs is faster than noise made in memory, measured on an H100
            (kernels/NOTES.md); 0 for never.
        values: (key_data, block) -> E, float32 of the block's shape.
        add: (base, step, key_data, block) -> base + step * E in the base's type, float32 or wider.
        largest: (count, dims) -> the expected largest Euclidean norm of ``count`` vectors of ``dims`` elements, for the scale "modular".
        tile: (words, step, rows, exact) -> step * E of a kernel's tile, float32 (rows, columns), from its words
            (ceil(rows / rows_per_word), columns). ``exact`` asks for the operations that equal ``values`` bit for bit on a CPU.
    """

    name: str
    help: str
    cost: float
    rows_per_word: int
    gpu_rows: int
    values: Callable[[jax.Array, Block], jax.Array]
    add: Callable[[jax.Array, jax.Array, jax.Array, Block], jax.Array]
    largest: Callable[[int, int], float]
    tile: Callable[[jax.Array, jax.Array, int, bool], jax.Array]

    @property
    def of_unit_vectors(self) -> Distribution:
        """The same with the noise of each vector, along the last dim, divided by its largest absolute element. No kernel makes it: a
        tile is only a part of a vector."""

        def make(key_data: jax.Array, block: Block) -> jax.Array:
            own = self.values(key_data, block)
            if not block.global_shape:
                return jnp.sign(own)
            whole = own if block.dims[-1] is None else self.values(key_data, Block(block.global_shape, (*block.dims[:-1], None)))
            return own / jnp.abs(whole).max(axis=-1, keepdims=True)

        def add(base: jax.Array, step: jax.Array, key_data: jax.Array, block: Block) -> jax.Array:
            return base + (step * make(key_data, block)).astype(base.dtype)

        return replace(self, values=make, add=add)


def one_word_a_weight(
    name: str,
    help: str,
    cost: float,
    largest: Callable[[int, int], float],
    of_words: Callable[[jax.Array], jax.Array],
    *,
    of_block: Callable[[jax.Array, Block], jax.Array] | None = None,
    of_tile: Callable[[jax.Array, bool], jax.Array] | None = None,
) -> Distribution:
    """The record of a distribution whose element n is ``of_words`` of word n: uint32 -> float32, elementwise.

    ``of_block`` and ``of_tile`` replace it where another form of the same values is faster.
    """
    make = of_block or (lambda key_data, block: of_words(values.bits(key_data, block)))
    in_tile = of_tile or (lambda words, exact: of_words(words))

    def add(base: jax.Array, step: jax.Array, key_data: jax.Array, block: Block) -> jax.Array:
        return base + (step * make(key_data, block)).astype(base.dtype)

    def step_of_tile(words: jax.Array, step: jax.Array, rows: int, exact: bool) -> jax.Array:
        return step * in_tile(words, exact)

    return Distribution(name, help, cost, 1, 0, make, add, largest, step_of_tile)


def _add_signs(base: jax.Array, step: jax.Array, key_data: jax.Array, block: Block) -> jax.Array:
    # step * (+1 or -1) is exact, so flipping the sign bit of step gives the same sum as the product and saves a multiplication.
    flipped = jax.lax.bitcast_convert_type(step, jnp.uint32) ^ values.rademacher_sign_bits(key_data, block)
    return base + jax.lax.bitcast_convert_type(flipped, jnp.float32).astype(base.dtype)


_RECORDS = (
    one_word_a_weight(
        "gaussian",
        "as in the paper",
        190.0,
        norms.largest_normal,
        partial(tile.normal, exact=True),
        of_block=values.gaussian,
        of_tile=lambda words, exact: tile.normal(words, exact=exact),
    ),
    Distribution(
        "rademacher",
        "random signs, one bit a weight: faster",
        8.0,
        values.WORD_BITS,
        128,
        values.rademacher,
        _add_signs,
        norms.largest_sign,
        lambda words, step, rows, exact: tile.signed_step(words, step, rows),
    ),
)
DISTRIBUTIONS: dict[str, Distribution] = {record.name: record for record in _RECORDS}
"""Name -> record, in the order in which they are offered; the first is the default."""

if TYPE_CHECKING:
    DistributionName = str
else:
    DistributionName = Literal[tuple(DISTRIBUTIONS)]
