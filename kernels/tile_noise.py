"""The noise of one tile of a weight, made inside a kernel from its counters: the same words as ``perturbjax.noise``, no array of them.

The noise specification reads words by the flat index of an element (gaussian) or of a group of 32 rows (rademacher). A tile needs only the
index of its first word and the leaf's row length; everything here is elementwise on two-dimensional registers, so Mosaic and Triton both
take it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax._erf_inv import _GILES_CENTRAL as GILES_CENTRAL
from perturbjax._erf_inv import _GILES_TAIL as GILES_TAIL
from perturbjax._erf_inv import erf_inv as erf_inv_exact

from .problem import WORD_BITS, Problem

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
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
    """Words (rows, columns) of the leaf's word array from ``start`` on: Threefry-2x32, 20 rounds, as ``noise.threefry2x32``."""
    k0, k1 = start.key
    keys = (k0, k1, k0 ^ k1 ^ np.uint32(0x1BD11BDA))
    row, column = (jax.lax.broadcasted_iota(jnp.int32, (rows, columns), d) for d in (0, 1))
    local = (row * np.int32(problem.leaf[2]) + column).astype(jnp.uint32)
    if problem.wide:
        lo = local + start.lo
        x0, x1 = _less(lo, local).astype(jnp.uint32) + (start.hi + k0), lo + k1
    else:
        # Scalars first: one vector addition for the counter and the key.
        x0, x1 = k0, local + (start.lo + k1)
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = (x1 << np.uint32(rotation)) | (x1 >> np.uint32(WORD_BITS - rotation))
            x1 = x0 ^ x1
        x0 = x0 + keys[(group + 1) % 3]
        x1 = x1 + (keys[(group + 2) % 3] + np.uint32(group + 1))
    return x0 ^ x1


def realigned(low: jax.Array, high: jax.Array, shift: jax.Array) -> jax.Array:
    """Words of row groups that begin ``shift`` (0 to 31) rows later than those of ``low``; ``high`` is one group further."""
    # Shifting by 32 is not defined, so the upper part goes in two steps.
    return (low >> shift) | ((high << np.uint32(1)) << (np.uint32(WORD_BITS - 1) - shift))


def signed_step(words: jax.Array, step: jax.Array, rows: int) -> jax.Array:
    """step * E of rademacher noise, (rows, columns) float32, from the words of its groups of 32 rows."""
    groups, columns = words.shape
    bit = jax.lax.broadcasted_iota(jnp.int32, (groups, WORD_BITS, columns), 1).astype(jnp.uint32)
    # A set bit means +1: moved to bit 31 it turns the sign of -step.
    flipped = ((words[:, None, :] << (np.uint32(WORD_BITS - 1) - bit)) & _SIGN) ^ jax.lax.bitcast_convert_type(-step, jnp.uint32)
    return jax.lax.bitcast_convert_type(flipped, jnp.float32).reshape(groups * WORD_BITS, columns)[:rows]


def normal(words: jax.Array, *, exact: bool) -> jax.Array:
    """Standard normal values of words, as ``jax.random.normal`` makes them.

    ``exact``: the inverse error function in the plain operations that equal XLA:CPU's bit for bit (interpreted kernels); else with the
    compiler's own logarithm.
    """
    # The steps of jax.random.normal: 23 random bits, [1, 2), (-1, 1), inverse error function. The factor, 2, stays: XLA would join the
    # two additions without it, and round otherwise.
    unit = jax.lax.bitcast_convert_type((words >> np.uint32(9)) | np.uint32(0x3F800000), jnp.float32) - np.float32(1)
    low = np.nextafter(np.float32(-1), np.float32(0))
    uniform = unit * (np.float32(1) - low) + low
    return np.float32(np.sqrt(2)) * (erf_inv_exact if exact else _erf_inv)(uniform)


def _erf_inv(x: jax.Array) -> jax.Array:
    """``lax.erf_inv`` for -1 < x < 1: the same operations in the same order, less the guards for -1 and 1, which are not drawn."""
    w = -jnp.log1p(x * -x)
    central = w < 5.0
    t = jnp.where(central, w - 2.5, jnp.sqrt(w) - 3.0)
    coefficients = [jnp.where(central, np.float32(a), np.float32(b)) for a, b in zip(GILES_CENTRAL, GILES_TAIL, strict=True)]
    result = coefficients[0]
    for coefficient in coefficients[1:]:
        result = coefficient + result * t
    return result * x


def low_rank(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> jax.Array:
    """A B^T / sqrt(r) of a tile from the columns of A, (rows, 1) each, and of B, (1, columns) each, float32; the sum over r in order."""
    total = a[0] * b[0]
    for column_a, column_b in zip(a[1:], b[1:], strict=True):
        total = total + column_a * column_b
    return total if len(a) == 1 else total / np.float32(np.sqrt(len(a)))
