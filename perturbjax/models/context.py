"""What the new tokens of one pass attend to: worked out once, used by every layer.

Axis letters as in ``decoder``.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from perturbjax.models.attention import KVCache, Past, Prefix, rotary
from perturbjax.models.config import DecoderConfig


class Layer(NamedTuple):
    """What one layer has of its own beside its parameters; stacked over layers, so that a scan takes it apart.

    Attributes:
        number: () which layer it is.
        prefix: its keys and values of the shared prefix, or None.
    """

    number: jax.Array
    prefix: KVCache | None


class Context(NamedTuple):
    """What all layers share.

    Attributes:
        rotation: cosines and sines of the new tokens' positions.
        mask: which of its row's own keys, those of ``lead`` before them, each new token sees, bool (B, T, S).
        lead: how many tokens of row 0 every row has before its own.
        prefix_valid: which positions of the shared prefix are valid, bool (P,), or None.
        past: earlier keys and values of each row, or None.
        layers: what each layer has of its own.
    """

    rotation: tuple[jax.Array, jax.Array]
    mask: jax.Array
    lead: int
    prefix_valid: jax.Array | None
    past: Past | None
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
        mask, lead = mask_BxTxT, 0
        if lead_BxP is not None:
            lead = lead_BxP.shape[1]
            mask = jnp.concatenate([jnp.broadcast_to(lead_BxP[:, None], (*mask.shape[:2], lead)), mask], axis=2)
        layers = Layer(jnp.arange(config.num_layers), prefix.cache if prefix is not None else None)
        return Context(rotary(config, positions_BxT), mask, lead, prefix.valid if prefix is not None else None, past, layers)

    def parts(self, own: KVCache, layer: Layer) -> list[tuple[KVCache, jax.Array]]:
        """What a layer attends to beside the past, as ``Attention.attend`` takes it.

        Args:
            own: its keys and values of the new tokens.
            layer: the layer.
        """
        # Beside the row's own keys, so that attention stays one part: a second part costs more than this copy.
        keys = KVCache(*(_after_lead(heads, self.lead) for heads in own)) if self.lead else own
        parts = [(keys, self.mask)]
        if layer.prefix is not None:
            assert self.prefix_valid is not None
            parts.append((layer.prefix, self.prefix_valid[None, None]))
        return parts


def _after_lead(heads_BxKxTxE: jax.Array, count: int) -> jax.Array:
    """The first ``count`` positions of row 0, then the row's own: (B, K, count + T, E)."""
    lead = heads_BxKxTxE[:1, :, :count]
    return jnp.concatenate([jnp.broadcast_to(lead, (len(heads_BxKxTxE), *lead.shape[1:])), heads_BxKxTxE], axis=2)
