"""One optimizer step under ``jit``: gradients of a weighted sum, added up over parts of the batch, and AdamW on what is trained."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Sums = dict[str, jax.Array]
"""Sums over a batch, () float32 each. ``loss`` is what is minimized and ``weight`` what it is divided by; the others are reported."""
Loss = Callable[[Any, Any, dict[str, jax.Array]], Sums]
"""(trained params, frozen pytree, batch arrays with leading B) -> sums over the batch."""


class TrainState(NamedTuple):
    """What training changes: the trained leaves in float32, and the optimizer's own. Frozen leaves are no part of it."""

    params: Any
    optimizer: Any


def make_step(loss: Loss, optimizer: optax.GradientTransformation) -> Callable[..., tuple[TrainState, Sums]]:
    """A function (state, frozen, batch) -> (state, sums), to be compiled with the state donated.

    ``batch`` arrays have leading (A, B): the A parts go through the model one after the other. The gradient is that of all A * B examples
    together, because sums are differentiated and divided once, by the weight of all of them.
    """

    def total(params: Any, frozen: Any, part: dict[str, jax.Array]) -> tuple[jax.Array, Sums]:
        sums = loss(params, frozen, part)
        return sums["loss"], sums

    def step(state: TrainState, frozen: Any, batch: dict[str, jax.Array]) -> tuple[TrainState, Sums]:
        def add(carry: tuple[Any, Sums], part: dict[str, jax.Array]) -> tuple[tuple[Any, Sums], None]:
            (_, sums), gradients = jax.value_and_grad(total, has_aux=True)(state.params, frozen, part)
            return jax.tree.map(jnp.add, carry, (gradients, sums)), None

        with jax.named_scope("gradients"):
            parts = len(jax.tree.leaves(batch)[0])
            if parts == 1:
                first = jax.tree.map(lambda array: array[0], batch)
                (_, sums), gradients = jax.value_and_grad(total, has_aux=True)(state.params, frozen, first)
            else:
                shapes = jax.eval_shape(loss, state.params, frozen, jax.tree.map(lambda array: array[0], batch))
                zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (state.params, shapes))
                (gradients, sums), _ = jax.lax.scan(add, zeros, batch)
        with jax.named_scope("optimizer"):
            gradients = jax.tree.map(lambda leaf: leaf / jnp.maximum(sums["weight"], 1e-30), gradients)
            updates, moments = optimizer.update(gradients, state.optimizer, state.params)
            params: Any = optax.apply_updates(state.params, updates)
            sums = sums | {"gradient_norm": optax.tree.norm(gradients)}
        return TrainState(params, moments), sums

    return step


def cross_entropy(logits_BxQxV: jax.Array, labels_BxQ: jax.Array) -> jax.Array:
    """-log softmax at the labels, float32 (B, Q). The label's logit is a sum over one-hot rows, which stays local where V is sharded."""
    logits = logits_BxQxV.astype(jnp.float32)
    onehot = jax.nn.one_hot(labels_BxQ, logits.shape[-1], dtype=logits.dtype)
    return jax.nn.logsumexp(logits, axis=-1) - jnp.sum(logits * onehot, axis=-1)


def cast(params: Any, dtype: Any) -> Any:
    """Floating-point leaves in the type they are used in."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, params)
