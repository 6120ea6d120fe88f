"""One step along a gradient, as long as asked, in the coordinates of the noise."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from perturbjax.tree import Params, leaf_paths, map_with_paths


@jax.jit
def gradient_step(params: Params, gradient: Params, leaf_scales: Mapping[str, jax.Array], length: float | jax.Array) -> Params:
    """theta = params + length * scale * u, with u the direction of scale * gradient over all leaves that move, |u| = 1.

    A candidate of d moving weights is params + sigma * scale * E with |E| about sqrt(d), so ``length = sigma sqrt(d)`` is a step as long as
    a candidate, and ``length = z sigma`` moves as far along the gradient as a candidate does whose inner product is z deviations up.

    Args:
        params: the base; each leaf is computed in float32 and rounded once to its own type.
        gradient: of what is to grow, in the shapes of ``params``.
        leaf_scales: ``noise.scales(params, noise)``; other leaves stay.
        length: of the step.
    """
    scaled = {path: leaf_scales[path] * leaf.astype(jnp.float32) for path, leaf in leaf_paths(gradient).items() if path in leaf_scales}
    norm = jnp.sqrt(jnp.asarray([jnp.square(leaf).sum() for leaf in scaled.values()]).sum())
    factor = jnp.float32(length) / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny)

    def one(path: str, leaf: jax.Array) -> jax.Array:
        if path not in scaled:
            return leaf
        return (leaf.astype(jnp.float32) + factor * leaf_scales[path] * scaled[path]).astype(leaf.dtype)

    return map_with_paths(one, params)
