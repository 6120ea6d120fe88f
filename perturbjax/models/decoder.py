"""One decoder-only transformer for the Llama and Qwen2 families, in Flax NNX, scanned over its layers.

Axis letters: B rows, T new tokens of a row, S key positions, P positions of a shared prefix, D model, F ffn, V vocab, L layers, H query
heads, K key/value heads, G = H / K, E head dim. Parameters are laid out as ``config.param_shapes`` says and travel as a plain nested dict
(``bind(config, params)`` makes the module), so perturbation, sharding and export see ordinary pytrees.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from perturbjax.models.config import DecoderConfig, param_shapes

MASKED = -1e30
"""Score of a key that may not be attended to; finite, so that a row with no key at all stays finite too."""


class KVCache(NamedTuple):
    """Keys (rotated) and values of every layer: each (L, B, K, S, E). Heads stand before positions, as the attention matmuls want them."""

    keys: jax.Array
    values: jax.Array


class Prefix(NamedTuple):
    """A prefix that all rows share: its cache (B = 1) and which of its P positions are real, bool (P,)."""

    cache: KVCache
    valid: jax.Array


class Attention(nnx.Module):
    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs, dtype: Any):
        heads, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q = nnx.Linear(config.hidden_size, heads, use_bias=config.qkv_bias, dtype=dtype, param_dtype=dtype, rngs=rngs)
        self.k = nnx.Linear(config.hidden_size, kv, use_bias=config.qkv_bias, dtype=dtype, param_dtype=dtype, rngs=rngs)
        self.v = nnx.Linear(config.hidden_size, kv, use_bias=config.qkv_bias, dtype=dtype, param_dtype=dtype, rngs=rngs)
        self.o = nnx.Linear(heads, config.hidden_size, use_bias=False, dtype=dtype, param_dtype=dtype, rngs=rngs)
        self.head_dim = config.head_dim

    def project(self, x_BxTxD: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries (B, H, T, E), keys (B, K, T, E), values (B, K, T, E); queries and keys rotated."""
        q, k, v = (self._heads(projection(x_BxTxD)) for projection in (self.q, self.k, self.v))
        return rotate(q, rotation), rotate(k, rotation), v

    def _heads(self, x_BxTxHE: jax.Array) -> jax.Array:
        b, t, _ = x_BxTxHE.shape
        return x_BxTxHE.reshape(b, t, -1, self.head_dim).transpose(0, 2, 1, 3)

    def attend(self, q_BxHxTxE: jax.Array, own: tuple[jax.Array, jax.Array], mask_BxTxS: jax.Array, prefix: Prefix | None) -> jax.Array:
        """Softmax attention over the row's own keys and, where given, the shared prefix's: (B, T, D)."""
        keys, values = own
        b, h, t, e = q_BxHxTxE.shape
        kv = keys.shape[1]
        q = (q_BxHxTxE * e**-0.5).reshape(b, kv, h // kv, t, e)
        scores = jnp.einsum("bkgte,bkse->bkgts", q, keys, preferred_element_type=jnp.float32)
        scores = jnp.where(mask_BxTxS[:, None, None], scores, MASKED)
        if prefix is not None:
            before = jnp.einsum("bkgte,kpe->bkgtp", q, prefix.cache.keys[0], preferred_element_type=jnp.float32)
            before = jnp.where(prefix.valid[None, None, None, None, :], before, MASKED)
            scores = jnp.concatenate([before, scores], axis=-1)
        weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
        split = weights.shape[-1] - keys.shape[2]
        mixed = jnp.einsum("bkgts,bkse->btkge", weights[..., split:], values)
        if prefix is not None:
            mixed = mixed + jnp.einsum("bkgtp,kpe->btkge", weights[..., :split], prefix.cache.values[0])
        return self.o(mixed.reshape(b, t, h * e))


class MLP(nnx.Module):
    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs, dtype: Any):
        d, f = config.hidden_size, config.intermediate_size
        self.gate = nnx.Linear(d, f, use_bias=False, dtype=dtype, param_dtype=dtype, rngs=rngs)
        self.up = nnx.Linear(d, f, use_bias=False, dtype=dtype, param_dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(f, d, use_bias=False, dtype=dtype, param_dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs, dtype: Any):
        self.attention_norm = nnx.RMSNorm(config.hidden_size, epsilon=config.norm_eps, dtype=dtype, param_dtype=dtype, rngs=rngs)
        self.attention = Attention(config, rngs, dtype)
        self.mlp_norm = nnx.RMSNorm(config.hidden_size, epsilon=config.norm_eps, dtype=dtype, param_dtype=dtype, rngs=rngs)
        self.mlp = MLP(config, rngs, dtype)


class Decoder(nnx.Module):
    """Tokens to hidden states, and hidden states to logits. Built abstractly by ``bind``; its own initialisation is for tiny test
    models."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs, dtype: Any):
        self.config = config
        self.embed = nnx.Embed(config.vocab_size, config.hidden_size, dtype=dtype, param_dtype=dtype, rngs=rngs)
        self.layers = nnx.vmap(lambda rngs: Block(config, rngs, dtype))(rngs.split(config.num_layers))
        self.norm = nnx.RMSNorm(config.hidden_size, epsilon=config.norm_eps, dtype=dtype, param_dtype=dtype, rngs=rngs)
        if not config.tied_head:
            self.head = nnx.Linear(config.hidden_size, config.vocab_size, use_bias=False, dtype=dtype, param_dtype=dtype, rngs=rngs)

    def __call__(
        self,
        tokens_BxT: jax.Array,
        positions_BxT: jax.Array,
        mask_BxTxS: jax.Array,
        prefix: Prefix | None = None,
        cache: KVCache | None = None,
        offset: jax.Array | int = 0,
    ) -> tuple[jax.Array, KVCache]:
        """Runs the layers on new tokens.

        Args:
            tokens_BxT: token ids.
            positions_BxT: rotary positions.
            mask_BxTxS: which of the row's own S keys each token sees. Without ``cache`` these are the new tokens (S = T), with one its
            positions.
            prefix: keys and values that every row sees besides.
            cache: earlier keys and values; the new ones are written at ``offset`` and the whole cache is attended to.
            offset: first position of the new tokens in ``cache``.

        Returns:
            Hidden states after the last norm, (B, T, D), and the new cache: of the T new tokens, or ``cache`` updated.
        """
        with jax.named_scope("embed"):
            x = self.embed(tokens_BxT)
        rotation = rotary(self.config, positions_BxT)
        graphdef, stacked = nnx.split(self.layers)

        def layer(carry, scanned):
            x, cache = carry
            state, index, layer_prefix = scanned
            block = nnx.merge(graphdef, state)
            with jax.named_scope("attention"):
                q, k, v = block.attention.project(block.attention_norm(x), rotation)
                if cache is not None:
                    # The cache is carried whole and written in place: scanned in and out, every step would copy all of it.
                    cache = KVCache(
                        *(jax.lax.dynamic_update_slice(c, n[None], (index, 0, 0, offset, 0)) for c, n in zip(cache, (k, v), strict=True))
                    )
                    k, v = (jax.lax.dynamic_index_in_dim(c, index, keepdims=False) for c in cache)
                own = Prefix(layer_prefix, prefix.valid) if prefix is not None else None
                x = x + block.attention.attend(q, (k, v), mask_BxTxS, own)
            with jax.named_scope("mlp"):
                x = x + block.mlp(block.mlp_norm(x))
            return (x, cache), None if cache is not None else KVCache(k, v)

        scanned = (stacked, jnp.arange(self.config.num_layers), prefix.cache if prefix is not None else None)
        if cache is None:
            (x, _), cache = jax.lax.scan(layer, (x, None), scanned)
        else:
            (x, cache), _ = jax.lax.scan(layer, (x, cache), scanned)
        assert cache is not None
        return self.norm(x), cache

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Next-token logits of hidden states (..., D): float32 (..., V)."""
        with jax.named_scope("head"):
            if self.config.tied_head:
                return jnp.einsum("...d,vd->...v", hidden, self.embed.embedding[...], preferred_element_type=jnp.float32)
            return jnp.einsum("...d,dv->...v", hidden, self.head.kernel[...], preferred_element_type=jnp.float32)

    def logits_at(self, hidden_QxD: jax.Array, ids_QxC: jax.Array) -> jax.Array:
        """Logits of C chosen tokens per hidden state, without the rest of the vocabulary: float32 (Q, C)."""
        with jax.named_scope("head"):
            if self.config.tied_head:
                rows = jnp.take(self.embed.embedding[...], ids_QxC, axis=0)
            else:
                rows = jnp.moveaxis(jnp.take(self.head.kernel[...], ids_QxC, axis=1), 0, -1)
            return jnp.einsum("qd,qcd->qc", hidden_QxD, rows, preferred_element_type=jnp.float32)


def bind(config: DecoderConfig, params: Any) -> Decoder:
    """The module over a nested dict of parameters (arrays or tracers), shaped as ``param_shapes(config)``. Nothing is copied.

    Raises:
        ValueError: a missing, superfluous or mis-shaped parameter, named.
    """
    expected = param_shapes(config)
    got = {
        jax.tree_util.keystr(path, simple=True, separator="/"): jnp.shape(leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    }
    for path in sorted(expected.keys() | got.keys()):
        if expected.get(path) != got.get(path):
            raise ValueError(f"parameter {path}: shape {got.get(path)} where the model needs {expected.get(path)}")
    # Activations have the type of the weights; norms, rotary angles, attention weights and logits are float32 inside.
    dtype = params["embed"]["embedding"].dtype
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0), dtype)))
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graphdef, state)


def causal_mask(valid_BxT: jax.Array) -> jax.Array:
    """Each token sees the valid tokens up to itself: bool (B, T, T)."""
    t = valid_BxT.shape[1]
    return valid_BxT[:, None, :] & jnp.tril(jnp.ones((1, t, t), bool))


def rotary(config: DecoderConfig, positions_BxT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the rotary angles (RoFormer, arXiv 2104.09864), each float32 (B, 1, T, E / 2)."""
    half = config.head_dim // 2
    frequencies = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if config.rope_factors is not None:
        frequencies = frequencies / jnp.asarray(config.rope_factors, jnp.float32)
    angles = positions_BxT[:, None, :, None].astype(jnp.float32) * frequencies[None, None, None]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BxHxTxE: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates the pairs (i, i + E / 2): the rotate-half layout."""
    cos, sin = rotation
    first, second = jnp.split(x_BxHxTxE.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BxHxTxE.dtype)
