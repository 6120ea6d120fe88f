"""Candidates of a target and the learner's log-probabilities of them, from logits that may be sharded over the vocabulary.

The compiler shards what it can see to be apart. ``blocks`` says how: with logits as (..., blocks, V / blocks), each device finds the
likeliest tokens of its own block and looks up what lies in it, and only lists of K meet. Asked of all V at once, it exchanges the logits.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

MASKED = -1e30


def vocabulary_blocks(vocab_size: int, devices: int) -> int:
    """Into how many blocks ``devices`` along "model" have logits sharded: a vocabulary that they do not divide, every device has whole."""
    return devices if vocab_size % devices == 0 else 1


def candidates(logits: jax.Array, labels: jax.Array, k: int, blocks: int = 1) -> jax.Array:
    """The true token and the K - 1 likeliest others: logits (..., V), labels (...) -> int32 (..., K), the true token first.

    Of equal logits the lower token comes first, whatever ``blocks`` is: blocks, and tokens in them, are in the order of the vocabulary.
    """
    logits = jax.lax.stop_gradient(logits)
    others = jnp.where(jax.nn.one_hot(labels, logits.shape[-1], dtype=bool), MASKED, logits)
    if blocks == 1:
        found = jax.lax.top_k(others, k - 1)[1]
    else:
        parts, first = _parts(others, blocks)
        values, local = jax.lax.top_k(parts, min(k - 1, parts.shape[-1]))
        values, ids = (array.reshape(*labels.shape, -1) for array in (values, local + first))
        found = jnp.take_along_axis(ids, jax.lax.top_k(values, k - 1)[1], axis=-1)
    return jnp.concatenate([labels[..., None], found], axis=-1).astype(jnp.int32)


def log_probs_of(logits: jax.Array, ids: jax.Array, blocks: int = 1) -> jax.Array:
    """Log-probabilities of K tokens at each position: (B, Q, V), (B, Q, K) -> float32 (B, Q, K)."""
    logits = logits.astype(jnp.float32)
    return _at(logits, ids, blocks) - jax.nn.logsumexp(logits, axis=-1, keepdims=True)


def _at(logits: jax.Array, ids: jax.Array, blocks: int) -> jax.Array:
    """The logits of K tokens: each block gives what it has, zeros for the others, and the blocks are added up."""
    if blocks == 1:
        return jnp.take_along_axis(logits, ids, axis=-1)
    parts, first = _parts(logits, blocks)
    local = ids[..., None, :] - first
    here = (local >= 0) & (local < parts.shape[-1])
    found = jnp.take_along_axis(parts, jnp.where(here, local, 0), axis=-1)
    return jnp.sum(jnp.where(here, found, 0.0), axis=-2)


def _parts(logits: jax.Array, blocks: int) -> tuple[jax.Array, jax.Array]:
    """(..., V) as (..., blocks, V / blocks), and the first token of each block, (1, ..., blocks, 1)."""
    parts = logits.reshape(*logits.shape[:-1], blocks, -1)
    first = jnp.arange(blocks, dtype=jnp.int32) * parts.shape[-1]
    return parts, jnp.expand_dims(first, (*range(parts.ndim - 2), parts.ndim - 1))
