"""The vocabulary of a decoder, whole or sharded over the "model" axis: what needs all tokens at once, from the logits of some.

Axis letters as in ``decoder``; v are the tokens of this device. The last device is padded: logits after the last token mean nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from perturbjax.sharding import MODEL

MASKED = -1e30
"""A logit with no probability; finite, so that 0 times it is 0."""


@dataclass(frozen=True)
class Vocabulary:
    """V = ``size`` tokens, sharded over ``devices`` of the "model" axis in order, the same number to each."""

    size: int
    devices: int

    @property
    def rows(self) -> int:
        """Tokens of one device."""
        return -(-self.size // self.devices)

    @property
    def sharded(self) -> bool:
        return self.devices > 1

    @property
    def start(self) -> jax.Array:
        """() this device's first token."""
        return jax.lax.axis_index(MODEL) * self.rows

    def local(self, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Ids as positions among this device's tokens, and which of them are there (the others are at position 0)."""
        local = ids - self.start
        here = (local >= 0) & (local < self.rows)
        return jnp.where(here, local, 0), here

    def look_up(self, table: Callable[[jax.Array], jax.Array], ids: jax.Array) -> jax.Array:
        """``table(ids)`` of a table by tokens, ids (...) -> (..., D); of a sharded one each device gives what it has."""
        if not self.sharded:
            return table(ids)
        local, here = self.local(ids)
        rows = table(local)
        return jax.lax.psum(jnp.where(here[..., None], rows, jnp.zeros((), rows.dtype)), MODEL)

    def take(self, logits: jax.Array, ids: jax.Array) -> jax.Array:
        """The logits of C tokens in each row: (Q, v), ids (Q, C) -> (Q, C), the same on every device."""
        if not self.sharded:
            return jnp.take_along_axis(logits, ids, axis=1)
        local, here = self.local(ids)
        return jax.lax.psum(jnp.where(here, jnp.take_along_axis(logits, local, axis=1), 0.0), MODEL)

    def pad(self, logits: jax.Array, value: float) -> jax.Array:
        """Logits (..., v) with ``value`` after the last token."""
        if self.devices * self.rows == self.size:
            return logits
        inside = self.start + jnp.arange(self.rows) < self.size
        return jnp.where(jax.lax.expand_dims(inside, range(logits.ndim - 1)), logits, value)

    def logsumexp(self, logits: jax.Array) -> jax.Array:
        """log(sum(exp(logits))) over all tokens: (..., v) -> (..., 1)."""
        if not self.sharded:
            return jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        logits = self.pad(logits, -jnp.inf)
        top = jax.lax.pmax(logits.max(axis=-1, keepdims=True), MODEL)
        top = jnp.where(jnp.isfinite(top), top, 0.0)
        return jnp.log(jax.lax.psum(jnp.exp(logits - top).sum(axis=-1, keepdims=True), MODEL)) + top

    def mean_of(self, table: jax.Array, logits: jax.Array) -> jax.Array:
        """The rows of a table by tokens (v, D), weighted by the softmax of logits (..., v): (..., D), in the table's type."""
        weights = jnp.exp(logits - self.logsumexp(logits)).astype(table.dtype)
        mixed = jnp.einsum("...v,vd->...d", weights, table, preferred_element_type=jnp.float32).astype(table.dtype)
        return jax.lax.psum(mixed, MODEL) if self.sharded else mixed

    def entropy(self, logits: jax.Array) -> jax.Array:
        """Of the softmax over all tokens, in nats: (..., v) -> (...)."""
        log_probs = self.pad(logits, MASKED) - self.logsumexp(logits)
        total = -(jnp.exp(log_probs) * log_probs).sum(axis=-1)
        return jax.lax.psum(total, MODEL) if self.sharded else total

    def max(self, logits: jax.Array) -> jax.Array:
        """The highest logit of all tokens: (..., v) -> (..., 1)."""
        top = self.pad(logits, -jnp.inf).max(axis=-1, keepdims=True)
        return jax.lax.pmax(top, MODEL) if self.sharded else top

    def total(self, logits: jax.Array) -> jax.Array:
        """Sum over all tokens: (..., v) -> (...)."""
        total = self.pad(logits, 0.0).sum(axis=-1)
        return jax.lax.psum(total, MODEL) if self.sharded else total

    def argmax(self, logits: jax.Array) -> jax.Array:
        """The first token with the highest logit: (B, v) -> int32 (B,). The same on every device, to the bit: it decides when loops end."""
        if not self.sharded:
            return _argmax(logits)
        logits = self.pad(logits, -jnp.inf)
        place = _argmax(logits)
        top = jnp.take_along_axis(logits, place[:, None], axis=1)[:, 0]
        pairs = jax.lax.all_gather(jnp.stack([jax.lax.bitcast_convert_type(top, jnp.int32), place + self.start]), MODEL)
        # Devices are in the order of their tokens, so of equal tops the first belongs to the lowest token.
        best = jnp.argmax(jax.lax.bitcast_convert_type(pairs[:, 0], jnp.float32), axis=0)
        return jnp.take_along_axis(pairs[:, 1], best[None], axis=0)[0]

    def draw(self, keys: jax.Array, logits: jax.Array) -> jax.Array:
        """A token of each row from the softmax: B keys, (B, v) -> int32 (B,). The draws of ``jax.random.categorical`` on all logits."""
        if not self.sharded:
            return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
        gumbel = jax.vmap(lambda key: jax.random.gumbel(key, (self.size,), logits.dtype))(keys)
        padded = jnp.pad(gumbel, ((0, 0), (0, self.devices * self.rows - self.size)))
        return self.argmax(logits + jax.lax.dynamic_slice_in_dim(padded, self.start, self.rows, axis=1))


def _argmax(logits_BxV: jax.Array) -> jax.Array:
    """The first highest logit of each row, int32 (B,): its block first, then its place there.

    XLA:CPU vectorizes maxima, but not a reduction of (value, index) pairs, which is what an argmax over the whole vocabulary is.
    """
    b, vocabulary = logits_BxV.shape
    width = math.gcd(vocabulary, 512)
    blocks = logits_BxV.reshape(b, -1, width)
    first = jnp.argmax(blocks.max(axis=-1), axis=-1)
    inside = jnp.take_along_axis(blocks, first[:, None, None], axis=1)[:, 0]
    return (first * width + jnp.argmax(inside, axis=-1)).astype(jnp.int32)
