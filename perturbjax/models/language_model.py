"""What inference asks of a language model: a decoder is one, and so is a base with a value network beside it.

The hidden states and the cache of a model are pytrees that only the model itself looks into: one array and one ``KVCache`` for a decoder,
those of each part for a model of several. Whoever moves rows and columns about does it leaf by leaf.
"""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from perturbjax.models.attention import Past, Prefix, causal_mask
from perturbjax.models.vocabulary import Vocabulary

Hidden = Any
"""A pytree of arrays with leading (B, T), (B,) or (Q,), and a last axis of its own."""
Cache = Any
"""A pytree of arrays (L, B, K, S, E)."""


class LanguageModel(Protocol):
    """A model over its parameters, arrays or tracers, in the middle of a traced function. Axis letters as in ``decoder``."""

    @property
    def vocabulary(self) -> Vocabulary:
        """What to ask about logits, of which this device may have some."""
        ...

    def __call__(
        self,
        tokens_BxT: jax.Array,
        positions_BxT: jax.Array,
        mask_BxTxT: jax.Array,
        prefix: Prefix | None = None,
        past: Past | None = None,
        lead: jax.Array | None = None,
    ) -> tuple[Hidden, Cache]:
        """Hidden states of new tokens, and their keys and values; see ``Decoder``."""
        ...

    def logits(self, hidden: Hidden) -> jax.Array:
        """Next-token logits, float32 (..., V), of this device's tokens."""
        ...

    def logits_at(self, hidden_QxD: Hidden, ids_QxC: jax.Array) -> jax.Array:
        """Logits of C chosen tokens, float32 (Q, C), the same on every device."""
        ...

    def empty(self, rows: int, columns: int) -> tuple[Hidden, Cache]:
        """Zeros in the shapes of the hidden states of one token a row, and of a cache with so many columns."""
        ...


class ModelConfig(Protocol):
    """The static shape of a language model: what the engine and the compiled programs know it by. Hashable."""

    @property
    def max_positions(self) -> int:
        """Longest context, in tokens."""
        ...

    @property
    def tied_head(self) -> bool:
        """All logits take the embedding's matrix."""
        ...

    def partition(self, size: int) -> Any:
        """The layout on a "model" axis of ``size``, whose ``dims(config)`` say along which dim each parameter is sharded; None for 1."""
        ...

    def build(self, params: Any, parallel: Any = None) -> LanguageModel:
        """The model over a pytree of its parameters; nothing is copied. With ``parallel``, a layout, these are one device's, inside
        ``shard_map`` over the "model" axis."""
        ...


def run_prefix(model: LanguageModel, prefix_1xP: jax.Array, length: jax.Array) -> Prefix:
    """Runs a prefix that all rows share, once: its cache, and which of its positions are valid."""
    positions = jnp.arange(prefix_1xP.shape[1])
    valid = positions < length
    _, cache = model(prefix_1xP, positions[None], causal_mask(valid[None]))
    return Prefix(cache, valid)
