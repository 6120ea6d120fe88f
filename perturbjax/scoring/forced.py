"""The compiled half of teacher-forced scoring: log-probabilities of choices, at the positions and vocabulary rows that they need."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from perturbjax.models.config import DecoderConfig
from perturbjax.models.decoder import Decoder, Prefix, bind, causal_mask
from perturbjax.scoring.packing import PROMPT


def run_prefix(decoder: Decoder, prefix_1xP: jax.Array, length: jax.Array) -> Prefix:
    """Runs the shared prefix once: its cache, and which of its positions are real."""
    valid = jnp.arange(prefix_1xP.shape[1]) < length
    positions = jnp.arange(prefix_1xP.shape[1])[None]
    _, cache = decoder(prefix_1xP, positions, causal_mask(valid[None]))
    return Prefix(cache, valid)


def packed_mask(example_RxT: jax.Array, branch_RxT: jax.Array) -> jax.Array:
    """Who sees whom in a packed row: earlier tokens of the same example that are its prompt or the same choice. bool (R, T, T)."""
    same_example = (example_RxT[:, :, None] == example_RxT[:, None, :]) & (example_RxT >= 0)[:, None, :]
    open_branch = (branch_RxT[:, None, :] == PROMPT) | (branch_RxT[:, :, None] == branch_RxT[:, None, :])
    order = jnp.arange(example_RxT.shape[1])
    return same_example & open_branch & (order[None, :] <= order[:, None])[None]


def choice_values(config: DecoderConfig, single: bool):
    """The function of one candidate that ``ChunkProgram`` runs on a ``PackedBatch``: float32 (S, Q, C).

    With ``single``, logits of the C ids at each query; else log-probabilities over the vocabulary.
    """

    def fn(params: Any, _, data: dict[str, jax.Array]) -> jax.Array:
        decoder = bind(config, params)
        prefix = run_prefix(decoder, data["prefix"], data["prefix_length"])

        def slot(index: jax.Array, results: jax.Array) -> jax.Array:
            tokens, positions, example, branch, query, ids = (
                jax.lax.dynamic_index_in_dim(data[name], index, keepdims=False)
                for name in ("tokens", "positions", "example", "branch", "query", "ids")
            )
            hidden, _ = decoder(tokens, positions, packed_mask(example, branch), prefix)
            hidden = hidden.reshape(-1, hidden.shape[-1])[query]
            values = decoder.logits_at(hidden, ids)
            if not single:
                values = values - jax.nn.logsumexp(decoder.logits(hidden), axis=-1, keepdims=True)
            return jax.lax.dynamic_update_index_in_dim(results, values, index, 0)

        return jax.lax.fori_loop(0, data["count"], slot, jnp.zeros(data["ids"].shape, jnp.float32))

    return fn
