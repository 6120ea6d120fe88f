"""The perturbed product in plain jnp: the noise specification, then a dot. The oracle of the kernels and what other platforms run."""

import jax
import jax.numpy as jnp

from perturbjax.noise.distributions import DISTRIBUTIONS
from perturbjax.noise.low_rank import low_rank_product

from .problem import Problem


def matmul(
    problem: Problem,
    x: jax.Array,
    w: jax.Array,
    index: jax.Array,
    offsets: jax.Array,
    keys: jax.Array,
    steps: jax.Array,
    *factors: jax.Array,
) -> jax.Array:
    """y_c = x_c (W + step_c E_c): arguments and result as in ``perturbed_matmul``'s candidate form, with w as a stack, ``offsets`` as
    uint32[3] and both factors of low-rank noise.

    Holds one perturbed weight per candidate that XLA keeps in flight.
    """

    w = jax.lax.dynamic_index_in_dim(w, index, keepdims=False)

    def one(x: jax.Array, key: jax.Array, step: jax.Array, *factors: jax.Array) -> jax.Array:
        return problem.dot(x, perturbed(problem, w, offsets, key, step, *factors)).astype(problem.dtype)

    shared = x.shape[0] == 1
    return jax.vmap(one, in_axes=(None if shared else 0, *[0] * (2 + len(factors))))(x[0] if shared else x, keys, steps, *factors)


def perturbed(problem: Problem, w: jax.Array, offsets: jax.Array, key: jax.Array, step: jax.Array, *factors: jax.Array) -> jax.Array:
    """round(w + step * E), one candidate, rounded once."""
    if problem.distribution is None:
        return w
    if problem.rank is not None:
        e = low_rank_product(*factors)
    else:
        e = DISTRIBUTIONS[problem.distribution].values(key, problem.block(offsets, w.shape))[0]
    return (w.astype(jnp.float32) + step * e).astype(w.dtype)
