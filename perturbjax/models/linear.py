"""The linear layer of decoder and vision transformer, which has room for adapters, and the decoder's norm."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from perturbjax.models import adapter_layers
from perturbjax.models.adapter_layers import BOTTLENECK
from perturbjax.models.config import DecoderConfig

ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = MappingProxyType({"silu": jax.nn.silu, "gelu_tanh": jax.nn.gelu})


KEPT = "kept"
"""``checkpoint_name`` of what a backward pass keeps of a layer: what linear layers give, and attention. It makes the rest again."""


class Linear(nnx.Linear):
    """``nnx.Linear`` with room for LoRA factors: x W + (x A) B, without ever making A B; and for a bottleneck that follows it.

    Attributes:
        lora_a, lora_b: factors, set by ``set_adapters`` where the parameters have them.
    """

    lora_a: nnx.Param | None = None
    lora_b: nnx.Param | None = None

    def __call__(self, inputs: jax.Array, low: jax.Array | None = None) -> jax.Array:
        """``low``: x A, (rows, r), where it is made already."""
        # Rows have one axis, so that the kernel's gradient sums over one. For two, XLA:CPU writes the cotangent transposed, and computes
        # what made it again on the way, element by element.
        rows = inputs.reshape(-1, inputs.shape[-1])
        outputs = super().__call__(rows)
        if self.lora_a is not None and self.lora_b is not None:
            with jax.named_scope("lora"):
                low = rows @ self.lora_a[...].astype(rows.dtype) if low is None else low
                outputs = outputs + low @ self.lora_b[...].astype(rows.dtype)
        return checkpoint_name(outputs.reshape(*inputs.shape[:-1], outputs.shape[-1]), KEPT)


def apply_all(layers: Sequence[Linear], inputs: jax.Array) -> tuple[jax.Array, ...]:
    """What several layers make of the same inputs. Their factors A stand side by side in one product: each has a few columns, for which
    reading the inputs is most of the work, forwards and backwards."""
    factors = [layer.lora_a for layer in layers]
    if any(factor is None for factor in factors):
        return tuple(layer(inputs) for layer in layers)
    rows = inputs.reshape(-1, inputs.shape[-1])
    with jax.named_scope("lora"):
        kernels = [factor[...].astype(rows.dtype) for factor in factors if factor is not None]
        ends = list(itertools.accumulate(kernel.shape[-1] for kernel in kernels))
        lows = jnp.split(rows @ jnp.concatenate(kernels, axis=-1), ends[:-1], axis=-1)
    return tuple(layer(inputs, low) for layer, low in zip(layers, lows, strict=True))


def bottleneck_after(layer: nnx.Module, y: jax.Array) -> jax.Array:
    """What follows the outputs of a layer, once they are summed over the devices; y itself without a bottleneck."""
    return adapter_layers.bottleneck({name: getattr(layer, name)[...] for name in BOTTLENECK.values() if hasattr(layer, name)}, y)


def set_adapters(model: nnx.Module, leaves: Mapping[str, Any]) -> None:
    """Sets leaves of adapters, by path, on the layers of a model that they lie beside."""
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        setattr(functools.reduce(getattr, parents, model), name, nnx.Param(leaf))


def rms_norm(config: DecoderConfig, size: int, rngs: nnx.Rngs, dtype: Any, axis: str | None = None) -> nnx.RMSNorm:
    """An RMS norm (arXiv 1910.07467) over the last dim, of ``size`` on each device; with ``axis``, that dim is sharded over a mesh axis."""
    kind = functools.partial(OffsetRMSNorm, config.norm_offset) if config.norm_offset else nnx.RMSNorm
    return kind(size, epsilon=config.norm_eps, dtype=dtype, param_dtype=dtype, axis_name=axis, rngs=rngs)


class OffsetRMSNorm(nnx.RMSNorm):
    """An RMS norm that multiplies by ``offset`` + scale, float32 until the end: scales near 0 keep their bits in bfloat16."""

    def __init__(self, offset: float, size: int, **settings: Any):
        super().__init__(size, **settings)
        if self.axis_name is not None:
            raise ValueError("a norm with an offset is not sharded")
        self.offset = offset

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        assert self.scale is not None and mask is None
        wide = x.astype(jnp.float32)
        scale = self.offset + self.scale[...].astype(jnp.float32)
        normal = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.epsilon)
        return (normal * jax.lax.expand_dims(scale, range(x.ndim - 1))).astype(x.dtype)
