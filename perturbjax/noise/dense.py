"""The dense oracle: ``perturb(params, candidate, noise)``, one candidate's weights, which every other path must equal."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from perturbjax.noise import low_rank
from perturbjax.noise.block import Block
from perturbjax.noise.population import Candidate, check_candidate
from perturbjax.noise.spec import Noise, scales, wide_dtype
from perturbjax.noise.values import KeyData, leaf_keys
from perturbjax.tree import Params, map_with_paths

Blocks = Mapping[str, Block]
"""Path -> block, of the leaves that are not whole."""


def perturb(
    params: Params,
    candidate: Candidate,
    noise: Noise,
    leaf_scales: Mapping[str, jax.Array] | None = None,
    blocks: Blocks | None = None,
) -> Params:
    """theta = params + sigma * scale * E: one candidate's weights, dense. The oracle that every other path must equal.

    Each leaf is ``(p.astype(float32) + sigma * sign * scale(leaf) * E).astype(p.dtype)``, rounded once (RandOpt, arXiv 2603.12228); a
    float64 leaf stays float64 throughout.

    Args:
        params: pytree of arrays; never written.
        candidate: one candidate (no leading axis; vmap for several).
        noise: static.
        leaf_scales: ``scales(params, noise)`` if it is at hand.
        blocks: which block of the leaf some of the arrays are; a block gets exactly its part of the leaf's noise. Give the scales of the
            whole leaves with it.

    >>> import perturbjax as pj
    >>> params = {"w": jnp.zeros((2, 3)), "norm": jnp.ones(3), "steps": jnp.int32(7)}
    >>> noise = pj.Noise("rademacher", rules=(pj.Rule("norm", None),))
    >>> theta = perturb(params, pj.Population(seed=0, size=4, sigmas=(0.5,))[2], noise)
    >>> jnp.abs(theta["w"]).tolist(), theta["norm"].tolist(), int(theta["steps"])
    ([[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]], [1.0, 1.0, 1.0], 7)
    """
    check_candidate(candidate)
    leaf_scales = scales(params, noise) if leaf_scales is None else leaf_scales
    step, keys = candidate.sigma * candidate.sign, leaf_keys(candidate.key_data, leaf_scales)

    def one(path, leaf):
        if path not in leaf_scales:
            return leaf
        leaf = jnp.asarray(leaf)
        block = (blocks or {}).get(path, Block(leaf.shape))
        return perturb_block(leaf, keys[path], step * leaf_scales[path], noise.of_leaf(path, block.global_shape), block)

    return map_with_paths(one, params)


def perturb_block(
    base: Float[Array, " *s"], key_data: KeyData, step: Float32[Array, ""], noise: Noise, block: Block
) -> Float[Array, " *s"]:
    """A block of a perturbed leaf, made from that block of the base alone.

    Args:
        base: the block of the leaf.
        key_data: the leaf's key, uint32[2].
        step: sigma * sign * scale, float32 ().
        noise: of the leaf (``Noise.of_leaf``), static.
        block: where in the leaf it lies.
    """
    wide = base.astype(wide_dtype(base.dtype))
    if noise.rank is not None:
        moved = wide + (step * low_rank.low_rank(key_data, block, noise.rank, noise.distribution)).astype(wide.dtype)
    else:
        moved = noise.drawn.add(wide, step, key_data, block)
    return moved.astype(base.dtype)
