"""The perturbed product in plain jnp: the noise specification, then a dot. The oracle of the kernels and what other platforms run."""

import jax
import jax.numpy as jnp

from perturbjax import noise

from .problem import Problem


def matmul(problem: Problem, x: jax.Array, w: jax.Array, keys: jax.Array, steps: jax.Array, offsets: jax.Array) -> jax.Array:
    """y_c = x_c (W + step_c E_c): arguments and result as in ``perturbed_matmul``'s candidate form, with ``offsets`` as uint32[3].

    Holds one perturbed weight per candidate that XLA keeps in flight.
    """
    factors = None if problem.rank is None else problem.factors(keys, offsets, w.shape)

    def one(x: jax.Array, key: jax.Array, step: jax.Array, factors: tuple[jax.Array, jax.Array] | None) -> jax.Array:
        return problem.dot(x, perturbed(problem, w, key, step, offsets, factors)).astype(problem.dtype)

    return jax.vmap(one, in_axes=(None if x.shape[0] == 1 else 0, 0, 0, 0))(x[0] if x.shape[0] == 1 else x, keys, steps, factors)


def perturbed(
    problem: Problem, w: jax.Array, key: jax.Array, step: jax.Array, offsets: jax.Array, factors: tuple[jax.Array, jax.Array] | None
) -> jax.Array:
    """round(w + step * E), one candidate, rounded once."""
    if problem.distribution is None:
        return w
    if factors is not None:
        e = noise.low_rank_product(*factors)
    else:
        e = noise.dense(key, problem.leaf, problem.distribution, problem.coordinates(offsets, w.shape))[0]
    return (w.astype(jnp.float32) + step * e).astype(w.dtype)
