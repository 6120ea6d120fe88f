"""From words to ``step * E`` on the registers of a kernel: elementwise on two-dimensional tiles, so Mosaic and Triton both take it."""

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax.noise.erf_inv import erf_inv, polynomial
from perturbjax.noise.values import WORD_BITS, normal_of_words

_SIGN = np.uint32(0x80000000)
_MIDDLE = np.float32(3.7177860736846924)
# sqrt(2) erf_inv(x) / x as a polynomial in t = s - _MIDDLE: our fit, least squares with Lawson's weights for the smallest relative error.
_EVEN = (0.0046300306, -0.0291623008, 0.0549414121, 0.0493302122, -0.19997701, 3.45951128)
_ODD = (-0.00494312728, 0.018875016, -0.00784455799, -0.0736008361, 0.033435985, 1.99102044)


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
    return x * (polynomial(_ODD, t * t) * t + polynomial(_EVEN, t * t))
