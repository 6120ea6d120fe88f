"""Adapters in the forward pass: their leaves beside a kernel, and what a layer does with them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from perturbjax.errors import InputError

FACTORS = ("lora_a", "lora_b")
"""Names, beside a kernel (in, out), of A (in, r) and of B (r, out), which has the scale in it."""
BOTTLENECK: Mapping[str, str] = MappingProxyType(
    {"down/kernel": "adapter_down", "down/bias": "adapter_down_bias", "up/kernel": "adapter_up", "up/bias": "adapter_up_bias"}
)
"""Part of a bottleneck -> its name beside the kernel that it follows: (out, size), (size,), (size, out), (out,)."""


def bottleneck(layer: Mapping[str, Any], y: jax.Array) -> jax.Array:
    """y + up(gelu(down(y))) over the last axis, by the leaves of ``BOTTLENECK`` in ``layer``; y itself where there are none.

    Args:
        layer: parameters of the layer that made y, as ``Bottleneck.apply`` returns them.
        y: (..., out).
    """
    if "adapter_down" not in layer:
        return y
    down, down_bias, up, up_bias = (jnp.asarray(layer[name]).astype(y.dtype) for name in BOTTLENECK.values())
    with jax.named_scope("bottleneck"):
        inner = jax.nn.gelu(_plus(y @ down, down_bias))
        return y + _plus(inner @ up, up_bias)


def _plus(y: jax.Array, bias: jax.Array) -> jax.Array:
    return y + jax.lax.expand_dims(bias, range(y.ndim - 1))


def adapter_shapes(shapes: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes that adapter leaves must have beside the kernels of stacked layers; their rank or size is their own.

    Args:
        shapes: path -> shape of every parameter without adapters.
        found: path -> shape of every parameter that is there.

    Raises:
        InputError: a leaf of an adapter lies where the model has no place for one.
    """
    expected = {}
    for path in found:
        layer, _, name = path.rpartition("/")
        if name not in (*FACTORS, *BOTTLENECK.values()):
            continue
        kernel = shapes.get(f"{layer}/kernel", ())
        if len(kernel) != 3 or (name not in FACTORS and layer.rpartition("/")[2] not in ("o", "down")):
            raise InputError(f"`rules` {layer}/kernel: the model has no place for {name} there; exclude it, or use `apply`")
        count, rows, out = kernel
        size = found.get(f"{layer}/{'lora_a' if name in FACTORS else 'adapter_down'}", (0,))[-1]
        expected[path] = {
            "lora_a": (count, rows, size),
            "lora_b": (count, size, out),
            "adapter_down": (count, out, size),
            "adapter_down_bias": (count, size),
            "adapter_up": (count, size, out),
            "adapter_up_bias": (count, out),
        }[name]
    return expected
