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

from perturbjax.noise.erf_inv import erf_inv
from perturbjax.noise.values import normal_of_words, threefry_rounds

from .problem import WORD_BITS, Problem

_SIGN = np.uint32(0x80000000)
_MIDDLE = np.float32(3.7177860736846924)
# sqrt(2) erf_inv(x) / x as a polynomial in t = s - _MIDDLE: our fit, least squares with Lawson's weights for the smallest relative error.
_EVEN = (3.45951128, -0.19997701, 0.0493302122, 0.0549414121, -0.0291623008, 0.0046300306)
_ODD = (1.99102044, 0.033435985, -0.0736008361, -0.00784455799, 0.018875016, -0.00494312728)


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
    """Words (rows, columns) of the leaf's word array from ``start`` on, as ``noise.bits``."""
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


def signed_step(words: jax.Array, step: jax.Array, rows: int) -> jax.Array:
    """step * E of rademacher noise, (rows, columns) float32, from the words of its groups of 32 rows."""
    groups, columns = words.shape
    bit = jax.lax.broadcasted_iota(jnp.int32, (groups, WORD_BITS, columns), 1).astype(jnp.uint32)
    # A set bit means +1: moved to bit 31 it turns the sign of -step.
    flipped = ((words[:, None, :] << (np.uint32(WORD_BITS - 1) - bit)) & _SIGN) ^ jax.lax.bitcast_convert_type(-step, jnp.uint32)
    return jax.lax.bitcast_convert_type(flipped, jnp.float32).reshape(groups * WORD_BITS, columns)[:rows]


def normal(words: jax.Array, *, exact: bool) -> jax.Array:
    """Standard normal values of words, as ``jax.random.normal`` makes them.

    ``exact``: the inverse error function in the plain operations that equal XLA:CPU's bit for bit (interpreted kernels). Else in fewer: one
    polynomial in s = sqrt(7 - log(1 - x**2)) for all x, where Giles' has a central one, a tail, and a choice of every coefficient between
    them; relative to each of the 2**23 values that there are within 2e-6, as long as x * x is rounded before it is subtracted.
    """
    if exact:
        return normal_of_words(words, erf_inv)
    # The 23 bits as a number in [2, 4), less 2 and nearly 1: the same value as in normal_of_words. XLA would join the two and round
    # otherwise; the compilers of kernels do as they are told.
    bits = jax.lax.bitcast_convert_type((words >> np.uint32(9)) | np.uint32(0x40000000), jnp.float32)
    x = (bits - np.float32(2)) + np.nextafter(np.float32(-1), np.float32(0))
    square = np.float32(7) - jnp.log(np.float32(1) - x * x)
    t = square * jax.lax.rsqrt(square) - _MIDDLE
    # Two halves at a time: schedules come out a little shorter than with one long chain.
    return x * (_horner(_ODD, t * t) * t + _horner(_EVEN, t * t))


def _horner(coefficients: Sequence[float], x: jax.Array) -> jax.Array:
    total = x * np.float32(coefficients[-1]) + np.float32(coefficients[-2])
    for coefficient in coefficients[-3::-1]:
        total = total * x + np.float32(coefficient)
    return total


def low_rank(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> jax.Array:
    """A B^T / sqrt(r) of a tile from the columns of A, (rows, 1) each, and of B, (1, columns) each, float32; the sum over r in order."""
    total = a[0] * b[0]
    for column_a, column_b in zip(a[1:], b[1:], strict=True):
        total = total + column_a * column_b
    return total if len(a) == 1 else total / np.float32(np.sqrt(len(a)))
