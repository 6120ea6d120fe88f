"""A mixture of experts in place of an ffn: each token goes through the few experts that a router chooses for it.

Axis letters as in ``decoder``; X experts, C chosen for a token, N tokens of all rows, R = N C.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from perturbjax.models.config import DecoderConfig
from perturbjax.models.linear import ACTIVATIONS, KEPT, Linear


class ExpertLinear(nnx.Module):
    """A matrix for each expert, without bias."""

    def __init__(self, config: DecoderConfig, rows: int, columns: int, rngs: nnx.Rngs, dtype: Any):
        shape = (config.num_experts, rows, columns)
        self.kernel = nnx.Param(nnx.initializers.lecun_normal(batch_axis=0)(rngs.params(), shape, dtype))

    def __call__(self, x_RxD: jax.Array, sizes_X: jax.Array) -> jax.Array:
        """The first ``sizes[0]`` rows times the first matrix, the next ``sizes[1]`` times the second, and so on."""
        return checkpoint_name(jax.lax.ragged_dot(x_RxD, self.kernel[...], sizes_X), KEPT)


class Experts(nnx.Module):
    """Top-k routing (arXiv 1701.06538): the softmax over all experts, of which the k largest count, divided by their sum.

    Each expert's F is sharded as an ffn's is, so every device routes all tokens and has a part of every expert: no device waits for another
    whose experts are in demand.
    """

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs, dtype: Any):
        d, f = config.hidden_size, config.intermediate_size
        self.router = Linear(d, config.num_experts, use_bias=False, dtype=dtype, param_dtype=dtype, rngs=rngs)
        self.gate = ExpertLinear(config, d, f, rngs, dtype)
        self.up = ExpertLinear(config, d, f, rngs, dtype)
        self.down = ExpertLinear(config, f, d, rngs, dtype)
        self.experts, self.chosen, self.activation = config.num_experts, config.experts_per_token, config.activation

    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        x = x_BxTxD.reshape(-1, x_BxTxD.shape[-1])
        with jax.named_scope("router"):
            weights_NxC, chosen_NxC = jax.lax.top_k(jax.nn.softmax(self.router(x).astype(jnp.float32)), self.chosen)
            weights_NxC = (weights_NxC / weights_NxC.sum(axis=-1, keepdims=True)).astype(x.dtype)
            order_R = jnp.argsort(chosen_NxC.reshape(-1))  # by expert
            sizes_X = jnp.bincount(chosen_NxC.reshape(-1), length=self.experts)
        rows = x[order_R // self.chosen]
        rows = self.down(ACTIVATIONS[self.activation](self.gate(rows, sizes_X)) * self.up(rows, sizes_X), sizes_X)
        by_token = rows[jnp.argsort(order_R)].reshape(*chosen_NxC.shape, -1)
        return jnp.einsum("ncd,nc->nd", by_token, weights_NxC).reshape(x_BxTxD.shape)
