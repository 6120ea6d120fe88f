"""The noise of each distribution a second time, from ``jax.random`` alone: what the specification in noise/NOTES.md says of a whole leaf.

A distribution of the table has an entry here; tests that run over the table compare with it.
"""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp


def rademacher(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """+1 or -1 from one bit, where 32 rows share a word."""
    blocks, rows, columns = math.prod(shape[:-2]), (shape[-2] if len(shape) > 1 else 1), (shape[-1] if shape else 1)
    words = jax.random.bits(key, (blocks, -(-rows // 32), columns))
    r = jnp.arange(rows)
    bits = (words[:, r // 32, :] >> (r % 32).astype(jnp.uint32)[None, :, None]) & jnp.uint32(1)
    return (bits.astype(jnp.float32) * 2 - 1).reshape(shape)


DRAWS: Mapping[str, Callable[[jax.Array, tuple[int, ...]], jax.Array]] = {"gaussian": jax.random.normal, "rademacher": rademacher}
"""Distribution -> (key of a leaf, its shape) -> E."""
