"""Grouped-query attention with rotary positions, over any number of parts: new keys, a shared prefix, a cache.

Axis letters as in ``decoder``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from perturbjax.models.config import DecoderConfig
from perturbjax.models.linear import KEPT, Linear, apply_all, rms_norm

MASKED = -1e30
"""Score of a key that may not be attended to; finite, so that a row with no key at all stays finite too."""
CACHE_BLOCK = 128
"""Columns of a cache that are read at a time."""


class KVCache(NamedTuple):
    """Keys (rotated) and values of every layer: each (L, B, K, S, E). Heads stand before positions, as the attention matmuls want them."""

    keys: jax.Array
    values: jax.Array


class Prefix(NamedTuple):
    """A prefix that all rows share: its cache (B = 1) and which of its P positions are valid, bool (P,).

    A model of several parts has a cache a part, and gives each of them a ``Prefix`` and a ``Past`` of its own.
    """

    cache: Any
    valid: jax.Array


class Past(NamedTuple):
    """Earlier keys and values of each row.

    Attributes:
        cache: its S columns are a multiple of ``cache_block(S)``.
        valid: which of them a row sees, bool (B, S). They stand at the positions right before the row's first new token, in order.
        used: () none is valid from here on; what lies behind costs nothing, in whole blocks.
    """

    cache: Any
    valid: jax.Array
    used: jax.Array


class _Attended(NamedTuple):
    """Softmax attention over some of the keys, not yet divided.

    The highest score and the sum of the weights under it, (B, K, Q, 1) each, and the weighted values (B, K, Q, E), all float32. Q counts
    the query heads of one key head times T.
    """

    top: jax.Array
    total: jax.Array
    mixed: jax.Array


class Attention(nnx.Module):
    """Attention over heads that one device has.

    Args:
        config: their number and sizes.
        rngs, dtype: of the parameters.
        axis: the mesh axis that heads are sharded over, or None.
    """

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs, dtype: Any, axis: str | None = None):
        heads, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q = Linear(config.hidden_size, heads, use_bias=config.qkv_bias, dtype=dtype, param_dtype=dtype, rngs=rngs)
        self.k = Linear(config.hidden_size, kv, use_bias=config.qkv_bias, dtype=dtype, param_dtype=dtype, rngs=rngs)
        self.v = Linear(config.hidden_size, kv, use_bias=config.qkv_bias, dtype=dtype, param_dtype=dtype, rngs=rngs)
        self.o = Linear(heads, config.hidden_size, use_bias=False, dtype=dtype, param_dtype=dtype, rngs=rngs)
        if config.qk_norm is not None:
            # Every device has as many heads as every other, so the mean square of all is the mean of theirs.
            whole = config.qk_norm == "projection"
            self.q_norm, self.k_norm = (
                rms_norm(config, size if whole else config.head_dim, rngs, dtype, axis if whole else None) for size in (heads, kv)
            )
        self.head_dim, self.qk_norm = config.head_dim, config.qk_norm
        self.scale = (config.query_scalar or config.head_dim) ** -0.5

    def project(self, x_BxTxD: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries (B, H, T, E), keys (B, K, T, E), values (B, K, T, E); queries and keys rotated."""
        q, k, v = apply_all((self.q, self.k, self.v), x_BxTxD)
        if self.qk_norm == "projection":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = map(self._heads, (q, k, v))
        if self.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        return rotate(q, rotation), rotate(k, rotation), v

    def _heads(self, x_BxTxHE: jax.Array) -> jax.Array:
        b, t, _ = x_BxTxHE.shape
        return x_BxTxHE.reshape(b, t, -1, self.head_dim).transpose(0, 2, 1, 3)

    def attend(
        self,
        q_BxHxTxE: jax.Array,
        parts: Sequence[tuple[KVCache, jax.Array]],
        past: tuple[Past, jax.Array] | None = None,
        layer: jax.Array | int = 0,
    ) -> jax.Array:
        """Softmax attention over the keys of all ``parts`` and of one layer of ``past`` together: (B, T, D).

        A part is keys and values, (B or 1, K, S, E) each, where 1 stands for keys that all rows share, and which of them each token sees,
        bool (B or 1, T or 1, S). Parts are attended to one by one and merged (as in FlashAttention, arXiv 2205.14135), so nothing is
        concatenated, and the past, with which of its columns each token sees, is read a block at a time, as far as it is in use.
        """
        b, h, t, e = q_BxHxTxE.shape
        kv = parts[0][0].keys.shape[1]
        q = (q_BxHxTxE * self.scale).reshape(b, kv, h // kv * t, e)
        attended = functools.reduce(_merge, [_attend(q, part, mask) for part, mask in parts])
        if past is not None:
            (cache, _, used), mask = past
            width = cache_block(mask.shape[2])

            def block(index: jax.Array, attended: _Attended) -> _Attended:
                start = index * width
                zero = jnp.int32(0)
                columns = KVCache(*(jax.lax.dynamic_slice(c, (layer, zero, zero, start, zero), (1, b, kv, width, e))[0] for c in cache))
                return _merge(attended, _attend(q, columns, jax.lax.dynamic_slice_in_dim(mask, start, width, axis=2)))

            attended = jax.lax.fori_loop(0, -(-used // width), block, attended)
        heads = (attended.mixed / attended.total).astype(q.dtype).reshape(b, h, t, e)
        return self.o(heads.transpose(0, 2, 1, 3).reshape(b, t, h * e))


def cache_block(columns: int) -> int:
    """Columns of a cache that are attended to in one go. Room for a cache comes in multiples of it."""
    return min(columns, CACHE_BLOCK)


def _attend(q_BxKxQxE: jax.Array, part: KVCache, mask: jax.Array) -> _Attended:
    """Attention over one part; see ``Attention.attend``.

    All query heads of a key head are rows of one matmul. Division is left for the end, where rows are shorter. In this form XLA:CPU makes
    one kernel of it where nothing is merged. Scores and weights, (B, K, Q, S), are not kept for a backward pass: of every layer, they would
    be most of what a training step has in memory.
    """
    b, _, rows, _ = q_BxKxQxE.shape
    # Keys that all rows share have no batch axis for the matmul.
    axes, keys, values = ("bk", *part) if len(part.keys) == b else ("k", part.keys[0], part.values[0])
    if mask.shape[1] > 1:
        mask = jnp.tile(mask, (1, rows // mask.shape[1], 1))
    scores = jnp.einsum(f"bkqe,{axes}se->bkqs", q_BxKxQxE, keys, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None], scores, MASKED)
    top = scores.max(axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    mixed = jnp.einsum(f"bkqs,{axes}se->bkqe", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return checkpoint_name(_Attended(top, weights.sum(axis=-1, keepdims=True), mixed), KEPT)


def _merge(one: _Attended, other: _Attended) -> _Attended:
    top = jnp.maximum(one.top, other.top)
    first, second = jnp.exp(one.top - top), jnp.exp(other.top - top)
    return _Attended(top, one.total * first + other.total * second, one.mixed * first + other.mixed * second)


def causal_mask(valid_BxT: jax.Array) -> jax.Array:
    """Each token sees the valid tokens up to itself: bool (B, T, T)."""
    t = valid_BxT.shape[1]
    return valid_BxT[:, None, :] & jnp.tril(jnp.ones((1, t, t), bool))


def rotary(theta: float, factors: tuple[float, ...] | None, head_dim: int, positions_BxT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the rotary angles (RoFormer, arXiv 2104.09864), each float32 (B, 1, T, E / 2)."""
    half = head_dim // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if factors is not None:
        frequencies = frequencies / jnp.asarray(factors, jnp.float32)
    angles = positions_BxT[:, None, :, None].astype(jnp.float32) * frequencies[None, None, None]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BxHxTxE: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates the pairs (i, i + E / 2): the rotate-half layout."""
    cos, sin = rotation
    first, second = jnp.split(x_BxHxTxE.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BxHxTxE.dtype)
