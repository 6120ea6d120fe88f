"""The linear layer of the decoder, which has room for adapters, and its norm."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from perturbjax.models import adapter_layers
from perturbjax.models.adapter_layers import BOTTLENECK
from perturbjax.models.config import DecoderConfig


class Linear(nnx.Linear):
    """``nnx.Linear`` with room for LoRA factors: x W + (x A) B, without ever making A B; and for a bottleneck that follows it.

    Attributes:
        lora_a, lora_b: factors, set by ``decoder_from_params`` where the parameters have them.
    """

    lora_a: nnx.Param | None = None
    lora_b: nnx.Param | None = None

    def __call__(self, inputs: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        outputs = super().__call__(inputs, *args, **kwargs)
        if self.lora_a is None or self.lora_b is None:
            return outputs
        with jax.named_scope("lora"):
            return outputs + (inputs @ self.lora_a[...].astype(inputs.dtype)) @ self.lora_b[...].astype(inputs.dtype)

    def bottleneck(self, y: jax.Array) -> jax.Array:
        """What follows this layer's outputs, once they are summed over the devices; y itself without a bottleneck."""
        return adapter_layers.bottleneck({name: getattr(self, name)[...] for name in BOTTLENECK.values() if hasattr(self, name)}, y)


def rms_norm(config: DecoderConfig, size: int, rngs: nnx.Rngs, dtype: Any, axis: str | None = None) -> nnx.RMSNorm:
    """An RMS norm (arXiv 1910.07467) over the last dim, of ``size`` on each device; with ``axis``, that dim is sharded over a mesh axis."""
    return nnx.RMSNorm(size, epsilon=config.norm_eps, dtype=dtype, param_dtype=dtype, axis_name=axis, rngs=rngs)
