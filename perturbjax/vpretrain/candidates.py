"""Candidates of a target and the learner's log-probabilities of them, from logits that may be sharded over rows and vocabulary.

Logits stay where they are: each device finds the likeliest tokens of what it holds, and the lists of K meet. A ``lax.top_k`` of all of it
would be left to the compiler, which exchanges the logits.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from perturbjax.sharding import DATA, MODEL

MASKED = -1e30


def candidates(logits: jax.Array, labels: jax.Array, k: int, mesh: Mesh | None = None) -> jax.Array:
    """The true token and the K - 1 likeliest others, of equal ones the lower token first: int32 (B, Q, K), the true token first.

    Args:
        logits, labels: (B, Q, V), (B, Q).
        k: K.
        mesh: (data, model), over which rows and vocabulary are sharded (a vocabulary that "model" does not divide, each of its devices has
            whole); None: one device has all of it.
    """
    logits = jax.lax.stop_gradient(logits)
    others = jnp.where(jax.nn.one_hot(labels, logits.shape[-1], dtype=bool), MASKED, logits)
    if mesh is None or mesh.size == 1:
        found = jax.lax.top_k(others, k - 1)[1]
    else:
        blocks = vocabulary_blocks(logits.shape[-1], mesh)

        def local(block: jax.Array) -> jax.Array:
            values, ids = jax.lax.top_k(block, min(k - 1, block.shape[-1]))
            if blocks == 1:
                return ids
            # Without a barrier a TPU copies the sorted block, which is as large as the logits, into the layout that the gather likes.
            # There is one for each: XLA of JAX 0.10.2 ends the process where one barrier takes both results of top_k.
            values, ids = map(jax.lax.optimization_barrier, (values, ids))
            ids = ids + jax.lax.axis_index(MODEL) * block.shape[-1]
            # Devices are in the order of their tokens, so of equal logits the first belongs to the lowest token.
            values, ids = (jax.lax.all_gather(array, MODEL, axis=array.ndim - 1, tiled=True) for array in (values, ids))
            return jnp.take_along_axis(ids, jax.lax.top_k(values, k - 1)[1], axis=-1)

        spec = PartitionSpec(DATA, None, MODEL if blocks > 1 else None)
        found = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=PartitionSpec(DATA), check_vma=False)(others)
    return jnp.concatenate([labels[..., None], found], axis=-1).astype(jnp.int32)


def vocabulary_blocks(vocab_size: int, mesh: Mesh | None) -> int:
    """Into how many blocks logits are sharded."""
    devices = mesh.shape[MODEL] if mesh is not None else 1
    return devices if vocab_size % devices == 0 else 1


def log_probs_of(logits: jax.Array, ids: jax.Array, blocks: int = 1) -> jax.Array:
    """Log-probabilities of K tokens at each position: (B, Q, V), (B, Q, K) -> float32 (B, Q, K). ``blocks``: into which V is sharded."""
    logits = logits.astype(jnp.float32)
    return logits_of(logits, ids, blocks) - jax.nn.logsumexp(logits, axis=-1, keepdims=True)


def logits_of(logits: jax.Array, ids: jax.Array, blocks: int = 1) -> jax.Array:
    """The logits of K tokens, (B, Q, K): each block gives what it has, zeros for the others, and the blocks are added up."""
    if blocks == 1:
        return jnp.take_along_axis(logits, ids, axis=-1)
    parts = logits.reshape(*logits.shape[:-1], blocks, -1)
    width = parts.shape[-1]
    local = ids[..., None, :] - (jnp.arange(blocks, dtype=jnp.int32) * width)[None, None, :, None]
    here = (local >= 0) & (local < width)
    found = jnp.take_along_axis(parts, jnp.where(here, local, 0), axis=-1)
    return jnp.sum(jnp.where(here, found, 0.0), axis=-2)
