"""What the new tokens of one pass attend to: worked out once, used by every layer.

Axis letters as in ``decoder``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from perturbjax.models.attention import KVCache, Past, Prefix, rotary
from perturbjax.models.config import DecoderConfig


class Layer(NamedTuple):
    """What one layer has of its own beside its parameters; stacked over layers, so that a scan takes it apart.

    Attributes:
        number: () which layer it is.
        prefix: its keys and values of the shared prefix, or None.
        slides: () whether it sees a sliding window only; None where no layer does.
    """

    number: jax.Array
    prefix: KVCache | None
    slides: jax.Array | None

    def choose(self, full: Any, near: Any) -> Any:
        """``near`` if this layer slides, else ``full``: pytrees of arrays that broadcast to one shape."""
        slides = self.slides
        return full if slides is None else jax.tree.map(lambda one, other: jnp.where(slides, one, other), near, full)


class Seen(NamedTuple):
    """Which keys each new token sees, bool (B or 1, T or 1, S): in layers that see all, and in those that slide (None: there are none)."""

    full: jax.Array
    near: jax.Array | None

    @staticmethod
    def of(config: DecoderConfig, mask: jax.Array, distance: Callable[[], jax.Array]) -> Seen:
        """``mask``, and besides that at a distance, new position less key's, below the window."""
        return Seen(mask, mask & (distance() < config.window.size) if config.window else None)


class Context(NamedTuple):
    """What all layers share.

    Attributes:
        rotations: cosines and sines of the new tokens' positions; of layers that see all, and of those that slide.
        own: of the row's own keys, those of ``lead`` before them.
        lead: how many tokens of row 0 every row has before its own.
        prefix: of the shared prefix, or None.
        past: earlier keys and values of each row, and which of them are seen; or None.
        layers: what each layer has of its own.
    """

    rotations: tuple[Any, Any]
    own: Seen
    lead: int
    prefix: Seen | None
    past: tuple[Past, Seen] | None
    layers: Layer

    @staticmethod
    def of(
        config: DecoderConfig,
        positions_BxT: jax.Array,
        mask_BxTxT: jax.Array,
        prefix: Prefix | None,
        past: Past | None,
        lead_BxP: jax.Array | None,
    ) -> Context:
        """The context of a pass; arguments as of ``Decoder``."""
        mask, keys, lead, window = mask_BxTxT, positions_BxT, 0, config.window
        if lead_BxP is not None:
            lead = lead_BxP.shape[1]
            mask = jnp.concatenate([jnp.broadcast_to(lead_BxP[:, None], (*mask.shape[:2], lead)), mask], axis=2)
            keys = jnp.concatenate([jnp.broadcast_to(keys[:1, :lead], (len(keys), lead)), keys], axis=1)
        new = positions_BxT[:, :, None]
        rotations = (
            rotary(config.rope_theta, config.rope_factors, config.head_dim, positions_BxT),
            rotary(window.rope_theta, None, config.head_dim, positions_BxT) if window else None,
        )
        slides = jnp.asarray([window.slides(layer) for layer in range(config.num_layers)]) if window else None
        return Context(
            rotations,
            Seen.of(config, mask, lambda: new - keys[:, None]),
            lead,
            Seen.of(config, prefix.valid[None, None], lambda: new - jnp.arange(len(prefix.valid))[None, None])
            if prefix is not None
            else None,
            (past, Seen.of(config, past.valid[:, None], lambda: new - new[:, :1] + _back(past.valid)[:, None]))
            if past is not None
            else None,
            Layer(jnp.arange(config.num_layers), prefix.cache if prefix is not None else None, slides),
        )

    def rotation(self, layer: Layer) -> tuple[jax.Array, jax.Array]:
        """Cosines and sines of a layer."""
        return layer.choose(*self.rotations)

    def parts(self, own: KVCache, layer: Layer) -> list[tuple[KVCache, jax.Array]]:
        """What a layer attends to beside the past, as ``Attention.attend`` takes it.

        Args:
            own: its keys and values of the new tokens.
            layer: the layer.
        """
        # Beside the row's own keys, so that attention stays one part: a second part costs more than this copy.
        keys = KVCache(*(_after_lead(heads, self.lead) for heads in own)) if self.lead else own
        parts = [(keys, layer.choose(*self.own))]
        if layer.prefix is not None:
            assert self.prefix is not None
            parts.append((layer.prefix, layer.choose(*self.prefix)))
        return parts

    def past_of(self, layer: Layer) -> tuple[Past, jax.Array] | None:
        """The past, and which of it a layer sees, as ``Attention.attend`` takes it."""
        return None if self.past is None else (self.past[0], layer.choose(*self.past[1]))


def _back(valid_BxS: jax.Array) -> jax.Array:
    """How far each valid column of a past lies before the row's first new token, int (B, S): 1 for the last."""
    return jnp.cumsum(valid_BxS[:, ::-1], axis=1)[:, ::-1]


def _after_lead(heads_BxKxTxE: jax.Array, count: int) -> jax.Array:
    """The first ``count`` positions of row 0, then the row's own: (B, K, count + T, E)."""
    lead = heads_BxKxTxE[:1, :, :count]
    return jnp.concatenate([jnp.broadcast_to(lead, (len(heads_BxKxTxE), *lead.shape[1:])), heads_BxKxTxE], axis=2)
