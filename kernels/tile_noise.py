"""The noise of one tile of a weight, made inside a kernel from its counters: the words of the specification, no array of them.

The noise specification reads words by the flat index of an element (gaussian) or of a group of 32 rows (rademacher). A tile needs only the
index of its first word and the leaf's row length; everything here is elementwise on two-dimensional registers, so Mosaic and Triton both
take it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax.noise.values import WORD_BITS, threefry_rounds

from .problem import Problem

_SIGN = np.uint32(0x80000000)


class Start(NamedTuple):
    """Where a tile's words begin: the leaf's key, and the flat index of the first word as two uint32 scalars."""

    key: tuple[jax.Array, jax.Array]
    hi: jax.Array
    lo: jax.Array

    def moved(self, words: int | jax.Array) -> "Start":
        """``words`` (below 2**32) further on."""
        words = jnp.asarray(words).astype(jnp.uint32)
        lo = self.lo + words
        return Start(self.key, self.hi + _less(lo, words).astype(jnp.uint32), lo)


def _less(a: jax.Array, b: jax.Array) -> jax.Array:
    """a < b for uint32, by a signed comparison: Mosaic has no other."""
    a, b = (jax.lax.bitcast_convert_type(x ^ _SIGN, jnp.int32) for x in (a, b))
    return a < b


def words(problem: Problem, start: Start, rows: int, columns: int) -> jax.Array:
    """Words (rows, columns) of the leaf's word array from ``start`` on, as ``noise.values.bits``."""
    k0, k1 = start.key
    row, column = (jax.lax.broadcasted_iota(jnp.int32, (rows, columns), d) for d in (0, 1))
    local = (row * np.int32(problem.leaf[2]) + column).astype(jnp.uint32)
    if problem.wide:
        lo = local + start.lo
        x0, x1 = _less(lo, local).astype(jnp.uint32) + (start.hi + k0), lo + k1
    else:
        # Scalars first: one vector addition for the counter and the key.
        x0, x1 = k0, local + (start.lo + k1)
    x0, x1 = threefry_rounds(start.key, x0, x1)
    return x0 ^ x1


def realigned(low: jax.Array, high: jax.Array, shift: jax.Array) -> jax.Array:
    """Words of row groups that begin ``shift`` (0 to 31) rows later than those of ``low``; ``high`` is one group further."""
    # Shifting by 32 is not defined, so the upper part goes in two steps.
    return (low >> shift) | ((high << np.uint32(1)) << (np.uint32(WORD_BITS - 1) - shift))


def low_rank(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> jax.Array:
    """A B^T / sqrt(r) of a tile from the columns of A, (rows, 1) each, and of B, (1, columns) each, float32; the sum over r in order."""
    total = a[0] * b[0]
    for column_a, column_b in zip(a[1:], b[1:], strict=True):
        total = total + column_a * column_b
    return total if len(a) == 1 else total / np.float32(np.sqrt(len(a)))


def dense(problem: Problem, w: jax.Array, start: Start, shift: jax.Array, step: jax.Array, *, power_of_two: bool, exact: bool) -> jax.Array:
    """step * E of one tile of dense noise, float32, from the words that begin at ``start``.

    Args:
        problem: what is perturbed.
        w: the tile of the weight; only its shape is read.
        start: of the tile's first row of words.
        shift: how many rows the tile begins after the first row of its words, below ``problem.rows_per_word``.
        step: sigma * sign * scale.
        power_of_two: make no array whose sides are no powers of two, as Triton wants it.
        exact: the operations that equal the specification bit for bit on a CPU.
    """
    record, (rows, columns) = problem.record, w.shape
    groups = -(-rows // record.rows_per_word)
    if record.rows_per_word == 1 or problem.aligned:
        made = words(problem, start, groups, columns)
    elif power_of_two:
        further = words(problem, start.moved(problem.leaf[2]), groups, columns)
        made = realigned(words(problem, start, groups, columns), further, shift)
    else:
        one_more = words(problem, start, groups + 1, columns)
        made = realigned(one_more[:-1], one_more[1:], shift)
    return record.tile(made, step, rows, exact)
