"""The compiled half of multiple-choice scoring: log-probabilities of choices, at the positions and vocabulary rows that they need."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from perturbjax.inference.packing import PROMPT, SHARED
from perturbjax.models.language_model import ModelConfig


def packed_mask(example_RxT: jax.Array, branch_RxT: jax.Array) -> jax.Array:
    """Who sees whom in a packed row: earlier tokens of the same example that are its prompt or the same choice, and the shared prefix.
    bool (R, T, T)."""
    same_example = (example_RxT[:, :, None] == example_RxT[:, None, :]) & (example_RxT >= 0)[:, None, :]
    open_branch = (branch_RxT[:, None, :] == PROMPT) | (branch_RxT[:, :, None] == branch_RxT[:, None, :])
    shared = (example_RxT == SHARED)[:, None, :]
    order = jnp.arange(example_RxT.shape[1])
    return (same_example & open_branch | shared) & (order[None, :] <= order[:, None])[None]


def choice_values(config: ModelConfig, single: bool, parallel: Any = None):
    """The function of one candidate that ``ChunkProgram`` runs on the arrays of a ``Packing``: float32 (S, Q, C).

    With ``single``, logits of the C ids at each query; else log-probabilities over the vocabulary. ``parallel``: how the model is
    sharded over the devices of "model".
    """

    def fn(params: Any, _, data: dict[str, jax.Array]) -> jax.Array:
        model = config.build(params, parallel)
        rows = jnp.arange(data["tokens"].shape[1])
        # The first row holds the prefix itself and sees it through its own mask.
        lead = (rows > 0)[:, None] & data["lead"][None]

        def slot(index: jax.Array, results: jax.Array) -> jax.Array:
            tokens, positions, example, branch, query, ids = (
                jax.lax.dynamic_index_in_dim(data[name], index, keepdims=False)
                for name in ("tokens", "positions", "example", "branch", "query", "ids")
            )
            hidden, _ = model(tokens, positions, packed_mask(example, branch), lead=lead if len(rows) > 1 else None)
            hidden = jax.tree.map(lambda h: h.reshape(-1, h.shape[-1])[query], hidden)
            if single:
                values = model.logits_at(hidden, ids)
            else:
                logits = model.logits(hidden)
                values = model.vocabulary.take(logits, ids) - model.vocabulary.logsumexp(logits)
            return jax.lax.dynamic_update_index_in_dim(results, values, index, 0)

        return jax.lax.fori_loop(0, data["num_valid"], slot, jnp.zeros(data["ids"].shape, jnp.float32))

    return fn
