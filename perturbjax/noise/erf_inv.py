"""``lax.erf_inv`` bit for bit as XLA:CPU computes it, written in plain operations that vectorize and fuse.

Gaussian noise is an inverse error function of threefry words. Inside a fusion XLA:CPU's own ``erf_inv`` goes through a ``log1p`` with
guards for zero, infinite and negative arguments, which cannot occur here and cost half of the loop. This file repeats the same float32
operations in the same order without the guards, so the results are equal to the last bit for every one of the 2**23 uniform values that
``jax.random.normal`` can draw: ``tests/noise/test_bits.py`` checks all of them, and would notice if a later jaxlib computed otherwise.
On other platforms ``lax.erf_inv`` itself is used.

Sources: erf_inv is the single-precision approximation of M. Giles, "Approximating the erfinv function" (GPU Computing Gems, 2011);
log and log1p are the approximations of the Cephes library (S. Moshier).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_GILES = (  # for the central part, and for the tail
    (2.81022636e-08, -0.000200214257),
    (3.43273939e-07, 0.000100950558),
    (-3.5233877e-06, 0.00134934322),
    (-4.39150654e-06, -0.00367342844),
    (0.00021858087, 0.00573950773),
    (-0.00125372503, -0.0076224613),
    (-0.00417768164, 0.00943887047),
    (0.246640727, 1.00167406),
    (1.50140941, 2.83297682),
)
_LOG1P_NUMERATOR = (4.5270000862445199635215e-5, 4.9854102823193375972212e-1, 6.5787325942061044846969e0, 2.9911919328553073277375e1,
                    6.0949667980987787057556e1, 5.7112963590585538103336e1, 2.0039553499201281259648e1)  # fmt: skip
_LOG1P_DENOMINATOR = (1.0, 1.5062909083469192043167e1, 8.3047565967967209469434e1, 2.2176239823732856465394e2, 3.0909872225312059774938e2,
                      2.1642788614495947685003e2, 6.0118660497603843919306e1)  # fmt: skip
_LOG_COEFFICIENTS = (
    (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1),
    (-1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1),
    (2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
)
_SQRT_HALF_BITS = np.int32(0x3F3504F3)
_LN2_LOW, _LN2_HIGH = -2.12194440e-4, 0.693359375
_LOG1P_SWITCH = np.array(0x3ED413CD, np.uint32).view(np.float32)  # sqrt(2) - 1: below it log1p uses its rational form


def erf_inv(x: jax.Array) -> jax.Array:
    """Inverse error function of float32 ``x`` in the open interval (-1, 1); other arguments are not defined."""
    return jax.lax.platform_dependent(x, cpu=_erf_inv_cpu, default=jax.lax.erf_inv)


def _erf_inv_cpu(x: jax.Array) -> jax.Array:
    log = _log1p(x * -x)
    central = log > -5.0
    t = jnp.where(central, -2.5 - log, jnp.sqrt(-log) - 3.0)
    return x * polynomial([jnp.where(central, np.float32(a), np.float32(b)) for a, b in _GILES], t)


def polynomial(coefficients: Sequence[float | jax.Array], x: jax.Array) -> jax.Array:
    """The polynomial of ``x`` in float32 by Horner's rule; the coefficient of the highest power first."""
    total: Any = coefficients[0]
    for coefficient in coefficients[1:]:
        total = total * x + coefficient
    return total


def _log1p(x: jax.Array) -> jax.Array:
    """log(1 + x) for -1 < x <= 0."""
    numerator, denominator = polynomial(_LOG1P_NUMERATOR, x), polynomial(_LOG1P_DENOMINATOR, x)
    square = x * x
    # The cubic term lies in (-0.03, 0]; the maximum only keeps LLVM from contracting its product into the sum, as it does not in XLA's
    # log1p.
    cubic = jnp.maximum(x * square * (numerator / denominator), np.float32(-1))
    near_zero = x + (square * -0.5 + cubic)
    return jnp.where(x > -_LOG1P_SWITCH, near_zero, _log(x + 1.0))


def _log(x: jax.Array) -> jax.Array:
    """log(x) for positive normal x = mantissa * 2**exponent with the mantissa in [sqrt(1/2), sqrt(2))."""
    raw = jax.lax.bitcast_convert_type(x, jnp.int32)
    exponent = (raw - _SQRT_HALF_BITS) >> np.int32(23)
    m = jax.lax.bitcast_convert_type(raw - (exponent << np.int32(23)), jnp.float32) - 1.0
    exponent = exponent.astype(jnp.float32)
    square = m * m
    cube = square * m
    tail = polynomial([polynomial(coefficients, m) for coefficients in _LOG_COEFFICIENTS], cube) * cube
    tail = tail + exponent * np.float32(_LN2_LOW)
    return ((m - square * 0.5) + tail) + exponent * np.float32(_LN2_HIGH)
