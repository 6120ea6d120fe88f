"""What language models are trained on: the logits at learned positions, and the loss of plain fine-tuning."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from perturbjax.models.adapters import Adapter
from perturbjax.models.config import DecoderConfig
from perturbjax.models.decoder import Decoder
from perturbjax.train.rows import at_queries, segment_mask
from perturbjax.train.step import Loss, Sums, cast, cross_entropy

LOGIT_ROWS = 1024
"""Positions whose logits are in memory at a time: 200 MB in float32 where a vocabulary has 49,152 tokens."""


def hidden_at_queries(decoder: Decoder, batch: dict[str, jax.Array], remat: bool = False, differentiated: int | None = None) -> jax.Array:
    """Hidden states of packed rows where the next token is learned: (B, Q, D). ``remat`` and ``differentiated``: see ``Decoder``."""
    mask = segment_mask(batch["segments"])
    hidden, _ = decoder(batch["tokens"], batch["positions"], mask, remat=remat, differentiated=differentiated)
    return at_queries(hidden, batch["query"])


def sum_over_queries(fn: Callable[..., Sums], *arrays: Any) -> Sums:
    """``fn(*arrays)`` for sums over positions, some positions at a time: a backward pass makes their logits again.

    Args:
        fn: arrays with leading (B, q) -> sums, for any q.
        arrays: pytrees with leading (B, Q).
    """
    parts = _parts(arrays)
    if len(jax.tree.leaves(parts)[0]) == 1:
        return fn(*arrays)
    shapes = jax.eval_shape(fn, *jax.tree.map(lambda array: array[0], parts))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def add(sums: Sums, part: Any) -> tuple[Sums, None]:
        return jax.tree.map(jnp.add, sums, jax.checkpoint(lambda part: fn(*part))(part)), None

    return jax.lax.scan(add, zeros, parts)[0]


def map_over_queries(fn: Callable[..., Any], devices: int, *arrays: Any) -> Any:
    """``fn(*arrays)`` for a function that gives a pytree with leading (B, q), some positions of the B / ``devices`` rows of a device at a
    time."""
    parts = _parts(arrays, devices)
    if len(jax.tree.leaves(parts)[0]) == 1:
        return fn(*arrays)
    found = jax.lax.map(lambda part: fn(*part), parts)
    return jax.tree.map(lambda array: array.swapaxes(0, 1).reshape(array.shape[1], -1, *array.shape[3:]), found)


def _parts(arrays: Any, devices: int = 1) -> Any:
    """Leading (B, Q) as (parts, B, q), B q being at most ``LOGIT_ROWS`` on each of ``devices``."""
    b, queries = jax.tree.leaves(arrays)[0].shape[:2]
    width = next(q for q in range(min(queries, max(1, LOGIT_ROWS * devices // b)), 0, -1) if queries % q == 0)
    return jax.tree.map(lambda array: array.reshape(b, queries // width, width, *array.shape[2:]).swapaxes(0, 1), arrays)


def fine_tuning_loss(config: DecoderConfig, dtype: Any, remat: bool = False, differentiated: int | None = None) -> Loss:
    """Cross-entropy of the learned tokens, all parameters trained; ``frozen`` is not read. ``differentiated``: see ``Decoder``."""

    def loss(params: Any, _: Any, batch: dict[str, jax.Array]) -> Sums:
        decoder = config.build(cast(params, dtype))

        def sums(hidden: jax.Array, labels: jax.Array, weights: jax.Array) -> Sums:
            return {"loss": jnp.sum(weights * cross_entropy(decoder.logits(hidden), labels)), "weight": jnp.sum(weights)}

        return sum_over_queries(sums, hidden_at_queries(decoder, batch, remat, differentiated), batch["labels"], batch["weights"])

    return loss


def adapter_loss(config: DecoderConfig, adapter: Adapter, dtype: Any, remat: bool = False) -> Loss:
    """As ``fine_tuning_loss``, an adapter's leaves trained; ``frozen`` is the base."""
    whole = fine_tuning_loss(config, dtype, remat)
    return lambda trained, frozen, batch: whole(adapter.attach(frozen, trained), None, batch)
