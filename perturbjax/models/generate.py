"""Greedy and sampled decoding of a batch of ragged prompts with a KV cache, as one traceable function.

Axis letters as in ``decoder``; W is the longest reply, in tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from perturbjax.models.decoder import Decoder, KVCache, Prefix, causal_mask
from perturbjax.noise import KEY_IMPL

NO_TOKEN = -1
"""Fills replies after their stop token."""


class Replies(NamedTuple):
    """Generated tokens (B, W) int32, NO_TOKEN after the stop token (which is kept); and per row whether all its logits were finite, bool
    (B,)."""

    tokens: jax.Array
    finite: jax.Array


class _State(NamedTuple):
    step: jax.Array
    logits: jax.Array
    cache: KVCache
    tokens: jax.Array
    stopped: jax.Array
    finite: jax.Array


def generate(
    decoder: Decoder,
    tokens_BxT: jax.Array,
    lengths_B: jax.Array,
    live_B: jax.Array,
    max_new_tokens: int,
    stop_ids: tuple[int, ...],
    prefix: Prefix | None = None,
    prefix_length: jax.Array | int = 0,
    key_data: jax.Array | None = None,
    row_ids_B: jax.Array | int = 0,
    temperature: jax.Array | float = 1.0,
) -> Replies:
    """Continues every prompt until its stop token or ``max_new_tokens``; the loop ends when all rows have stopped.

    Args:
        decoder: the model.
        tokens_BxT: prompts without the shared prefix, padded on the right.
        lengths_B: their lengths, at least 1.
        live_B: False for rows that are only padding: they count as stopped from the start.
        max_new_tokens: W, static.
        stop_ids: tokens that end a reply.
        prefix, prefix_length: a prefix that all rows share, already run, and its length in tokens.
        key_data: raw key (uint32[2]) to sample with at ``temperature``; None decodes greedily.
        row_ids_B: number of each row for its random stream, so that a row's sample does not depend on the batch it is in.
        temperature: divides the logits before sampling.
    """
    b, t = tokens_BxT.shape
    s = t + max_new_tokens
    prompt_valid = jnp.arange(t)[None] < lengths_B[:, None]
    hidden, new = decoder(tokens_BxT, prefix_length + jnp.broadcast_to(jnp.arange(t)[None], (b, t)), causal_mask(prompt_valid), prefix)
    cache = jax.tree.map(lambda c: jnp.pad(c, ((0, 0), (0, 0), (0, 0), (0, max_new_tokens), (0, 0))), new)
    last = jnp.take_along_axis(hidden, (lengths_B - 1)[:, None, None], axis=1)[:, 0]
    padded_valid = jnp.pad(prompt_valid, ((0, 0), (0, max_new_tokens)))
    stops = jnp.asarray(stop_ids, jnp.int32)

    def choose(logits: jax.Array, step: jax.Array) -> jax.Array:
        with jax.named_scope("sample"):
            if key_data is None:
                return jnp.argmax(logits, axis=-1).astype(jnp.int32)
            key = jax.random.fold_in(jax.random.wrap_key_data(key_data, impl=KEY_IMPL), step)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.broadcast_to(row_ids_B, (b,)))
            return jax.vmap(jax.random.categorical)(keys, logits / temperature).astype(jnp.int32)

    def step(state: _State) -> _State:
        token = choose(state.logits, state.step)
        tokens = jax.lax.dynamic_update_index_in_dim(state.tokens, jnp.where(state.stopped, NO_TOKEN, token), state.step, 1)
        finite = state.finite & (jnp.isfinite(state.logits).all(-1) | state.stopped)
        stopped = state.stopped | jnp.isin(token, stops)
        position = (prefix_length + lengths_B + state.step)[:, None]
        written = (jnp.arange(s) >= t) & (jnp.arange(s) <= t + state.step)
        hidden, cache = decoder(token[:, None], position, (padded_valid | written[None])[:, None, :], prefix, state.cache, t + state.step)
        return _State(state.step + 1, decoder.logits(hidden[:, 0]), cache, tokens, stopped, finite)

    start = _State(
        jnp.int32(0), decoder.logits(last), cache, jnp.full((b, max_new_tokens), NO_TOKEN, jnp.int32), ~live_B, jnp.ones((b,), bool)
    )
    end = jax.lax.while_loop(lambda state: (state.step < max_new_tokens) & ~state.stopped.all(), step, start)
    return Replies(end.tokens, end.finite)
