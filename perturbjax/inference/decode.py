"""Greedy and sampled decoding of a batch of ragged prompts with a KV cache, as one traceable function.

Stopped rows leave the batch: when the rows that still write fit into the next smaller size of ``ROW_SIZES``, they and their caches are
gathered into a batch of that size, in which decoding goes on. So there is one decoding loop for each size, all compiled once, and shapes
stay static, as TPUs need it. The other way, handing a stopped row to the next waiting prompt, keeps big batches full for longer, but every
row then has an age of its own: its keys go to a column of its own, which is a scatter in every layer of every step (slow on TPUs), and the
prompts come one by one, too few tokens for the matmuls.

Axis letters as in ``decoder``; W is the longest reply, in tokens.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from perturbjax.models.attention import Past, Prefix, cache_block, causal_mask
from perturbjax.models.language_model import Cache, Hidden, LanguageModel
from perturbjax.noise.values import KEY_IMPL

NO_TOKEN = -1
"""Fills replies after their stop token."""
ROW_SIZES = (64, 32, 16, 8, 4, 1)
"""Batch sizes that decoding shrinks to."""
PREFILL_TOKENS = 2048
"""Prompt tokens of one forward pass: enough for full-speed matmuls, few enough that activations stay small."""


class Replies(NamedTuple):
    """What was generated.

    Attributes:
        tokens: (B, W) int32, NO_TOKEN after the stop token (which is kept).
        finite: bool (B,), whether all logits of the row were finite.
        row_steps: int32 (2,), rows decoded, summed over the steps: as run, and as a batch that keeps its stopped rows would have run them.
    """

    tokens: jax.Array
    finite: jax.Array
    row_steps: jax.Array


def no_replies(shape: tuple[int, ...], max_new_tokens: int) -> Replies:
    """Nothing generated yet, for rows of ``shape`` (B,), or (S, B) for S slots that count their steps apart."""
    return Replies(jnp.full((*shape, max_new_tokens), NO_TOKEN, jnp.int32), jnp.ones(shape, bool), jnp.zeros((*shape[:-1], 2), jnp.int32))


class State(NamedTuple):
    """A batch in the middle of decoding: b rows are in it, B in the replies."""

    step: jax.Array
    """() tokens chosen so far."""
    token: jax.Array
    """(b,) the last one."""
    stopped: jax.Array
    """(b,)"""
    cache: Cache
    lengths: jax.Array
    """(b,) of the prompts."""
    row: jax.Array
    """(b,) place in the replies."""
    row_ids: jax.Array
    """(b,)"""
    temperature: jax.Array
    """(b,)"""
    limits: jax.Array
    """(b,) tokens of the longest reply."""
    replies: Replies

    def take(self, size: int) -> State:
        """The batch of ``size`` rows that holds all rows that still write, with their caches; the replies stay those of all."""
        if size == len(self.row):
            return self
        kept = jnp.argsort(self.stopped, stable=True)[:size]
        cache = jax.tree.map(lambda c: jnp.take(c, kept, axis=1), self.cache)
        names = ("token", "stopped", "lengths", "row", "row_ids", "temperature", "limits")
        return self._replace(cache=cache, **{name: getattr(self, name)[kept] for name in names})


@dataclass(frozen=True)
class Decoding:
    """How the rows of a batch are decoded: a start and a step, both traceable, for a loop on the device or one on the host.

    Attributes:
        model: the model.
        width: T, columns of the prompts.
        stop_ids: tokens that end a reply.
        prefix, prefix_length: a prefix that all rows share, already run, and its length in tokens.
        key_data: raw key (uint32[2]) to sample with; None decodes greedily.
    """

    model: LanguageModel
    width: int
    stop_ids: tuple[int, ...]
    prefix: Prefix | None = None
    prefix_length: jax.Array | int = 0
    key_data: jax.Array | None = None

    def start(
        self,
        tokens_BxT: jax.Array,
        lengths_B: jax.Array,
        valid_B: jax.Array,
        max_new_tokens: int,
        row_ids_B: jax.Array | int = 0,
        temperature_B: jax.Array | float = 1.0,
        limits_B: jax.Array | int | None = None,
    ) -> State:
        """The batch with the first token of each reply; arguments as of ``generate``."""
        rows, replies = jnp.arange(len(tokens_BxT)), no_replies((len(tokens_BxT),), max_new_tokens)
        hidden, cache = _prefill(self.model, tokens_BxT, lengths_B, valid_B, max_new_tokens, self.prefix, self.prefix_length)
        own = (row_ids_B, jnp.asarray(temperature_B, jnp.float32), max_new_tokens if limits_B is None else limits_B)
        row_ids, temperature, limits = (jnp.broadcast_to(each, rows.shape) for each in own)
        state = State(jnp.int32(0), rows, ~valid_B, cache, lengths_B, rows, row_ids, temperature, limits, replies)
        return self._advance(state, hidden, cache)

    def step(self, state: State) -> State:
        """The batch with one more token of each reply."""
        column = jnp.arange(jax.tree.leaves(state.cache)[0].shape[3])[None]
        fed, t = state.step - 1, self.width
        valid = (column < state.lengths[:, None]) | ((column >= t) & (column < t + fed))
        position = (self.prefix_length + state.lengths + fed)[:, None]
        own = jnp.ones((len(state.row), 1, 1), bool)
        hidden, new = self.model(state.token[:, None], position, own, self.prefix, Past(state.cache, valid, t + fed))
        cache = jax.tree.map(lambda c, n: jax.lax.dynamic_update_slice_in_dim(c, n, t + fed, 3), state.cache, new)
        run = jnp.asarray([len(state.row), len(state.replies.tokens)])
        replies = state.replies._replace(row_steps=state.replies.row_steps + run)
        return self._advance(state._replace(replies=replies), jax.tree.map(lambda h: h[:, 0], hidden), cache)

    def _choose(self, logits: jax.Array, state: State) -> jax.Array:
        with jax.named_scope("sample"):
            if self.key_data is None:
                return self.model.vocabulary.argmax(logits)
            # The key of a row's draw is (candidate, step, row), whatever rows stand beside it.
            key = jax.random.fold_in(jax.random.wrap_key_data(self.key_data, impl=KEY_IMPL), state.step)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, state.row_ids)
            greedy = state.temperature == 0
            drawn = self.model.vocabulary.draw(keys, logits / jnp.where(greedy, 1, state.temperature)[:, None])
            return jnp.where(greedy, self.model.vocabulary.argmax(logits), drawn)

    def _advance(self, state: State, hidden: Hidden, cache: Cache) -> State:
        """The next token of each row, from the hidden states (b, D) of its last."""
        logits = self.model.logits(hidden)
        token = self._choose(logits, state)
        # A sum is finite only if all its terms are; one pass, where a test of each term takes several.
        finite = jnp.isfinite(self.model.vocabulary.total(logits)) | state.stopped
        replies = state.replies._replace(
            tokens=state.replies.tokens.at[state.row, state.step].set(jnp.where(state.stopped, NO_TOKEN, token)),
            finite=state.replies.finite.at[state.row].min(finite),
        )
        ends = jnp.isin(token, jnp.asarray(self.stop_ids, jnp.int32)) | (state.step + 1 >= state.limits)
        return state._replace(step=state.step + 1, token=token, stopped=state.stopped | ends, cache=cache, replies=replies)


def generate(
    model: LanguageModel,
    tokens_BxT: jax.Array,
    lengths_B: jax.Array,
    valid_B: jax.Array,
    max_new_tokens: int,
    stop_ids: tuple[int, ...],
    prefix: Prefix | None = None,
    prefix_length: jax.Array | int = 0,
    key_data: jax.Array | None = None,
    row_ids_B: jax.Array | int = 0,
    temperature_B: jax.Array | float = 1.0,
    limits_B: jax.Array | int | None = None,
) -> Replies:
    """Continues every prompt until its stop token or ``max_new_tokens``; the loop ends when all rows have stopped.

    Args:
        model: the model.
        tokens_BxT: prompts without the shared prefix, padded on the right.
        lengths_B: their lengths, at least 1.
        valid_B: False for rows that are only padding: they count as stopped from the start.
        max_new_tokens: W, static.
        stop_ids: tokens that end a reply.
        prefix, prefix_length: a prefix that all rows share, already run, and its length in tokens.
        key_data: raw key (uint32[2]) to sample with at ``temperature_B``; None decodes greedily.
        row_ids_B: number of each row for its random stream, so that a row's sample does not depend on the batch it is in.
        temperature_B: divides the logits before sampling, one of all rows or one a row; 0 is greedy.
        limits_B: longest reply of each row, in tokens, at least 1; W when None.
    """
    decoding = Decoding(model, tokens_BxT.shape[1], stop_ids, prefix, prefix_length, key_data)
    state = decoding.start(tokens_BxT, lengths_B, valid_B, max_new_tokens, row_ids_B, temperature_B, limits_B)
    rows = len(tokens_BxT)
    sizes = [rows, *(size for size in ROW_SIZES if size < rows), 0] if max_new_tokens > 1 else []
    # One after the other, not nested, so that the caches of a size are freed for those of the sizes after the next.
    for size, smaller in itertools.pairwise(sizes):
        state = jax.lax.while_loop(partial(_more, max_new_tokens, smaller), decoding.step, state.take(size))
    return state.replies


def _more(max_new_tokens: int, rows: int, state: State) -> jax.Array:
    """Whether more than ``rows`` rows still write."""
    return (state.step < max_new_tokens) & ((~state.stopped).sum() > rows)


def _prefill(
    model: LanguageModel,
    tokens_BxT: jax.Array,
    lengths_B: jax.Array,
    valid_B: jax.Array,
    max_new_tokens: int,
    prefix: Prefix | None,
    prefix_length: jax.Array | int,
) -> tuple[Hidden, Cache]:
    """Hidden states of the last prompt tokens (B, D), and a cache with room for the replies.

    Runs a few rows at a time; groups after the last valid row are left out.
    """
    b, t = tokens_BxT.shape
    group = next(n for n in range(b, 0, -1) if b % n == 0 and (n == 1 or n * t <= PREFILL_TOKENS))
    # The last token of a reply is never fed back.
    columns = t + max_new_tokens - 1
    columns = -(-columns // cache_block(columns)) * cache_block(columns)

    def run(index: jax.Array, carry: tuple[Hidden, Cache]) -> tuple[Hidden, Cache]:
        hidden, cache = carry
        start = index * group
        tokens, lengths = (jax.lax.dynamic_slice_in_dim(a, start, group) for a in (tokens_BxT, lengths_B))
        positions = prefix_length + jnp.broadcast_to(jnp.arange(t)[None], (group, t))
        x, new = model(tokens, positions, causal_mask(jnp.arange(t)[None] < lengths[:, None]), prefix)
        last = jax.tree.map(lambda x: jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)[:, 0], x)
        zero = jnp.int32(0)
        cache = jax.tree.map(lambda c, n: jax.lax.dynamic_update_slice(c, n, (zero, start, zero, zero, zero)), cache, new)
        return jax.tree.map(lambda h, x: jax.lax.dynamic_update_slice_in_dim(h, x, start, 0), hidden, last), cache

    groups = (jnp.where(valid_B, jnp.arange(b), -1).max() + group) // group
    return jax.lax.fori_loop(0, groups, run, model.empty(b, columns))
