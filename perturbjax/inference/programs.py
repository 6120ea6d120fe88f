"""The compiled programs of a batch: the function of one candidate that scores choices, and the one that generates replies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax.inference.decode import ROW_SIZES, Replies, generate, no_replies
from perturbjax.inference.outputs import ProgramName
from perturbjax.inference.packing import PREFIX_BUCKETS, PROMPT, SHARED, bucket
from perturbjax.models.language_model import ModelConfig, run_prefix


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


PROMPT_BUCKETS = (16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192)
MIN_SLOTS = 8
"""Slots of a batch, at least. Prompts that one slot of the largest size cannot hold take several, one after the other."""


def batch_prompts(prefix: Sequence[int], prompts: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """Pads prompts (without the shared prefix) into S slots of one shape, B rows of T tokens, in order.

    Returns:
        What the compiled program reads: ``prefix`` (1, P) token ids, padded, P = 0 where there is none, and ``prefix_length`` (), how many
        are valid; ``tokens`` (S, B, T), ``lengths`` (S, B), ``valid`` (S, B) bool, False on padding rows, and ``row_ids`` (S, B), the
        number of the example; ``num_valid`` (), slots in use; ``temperature`` () of sampling, not read when decoding greedily.
    """
    rows = bucket(min(len(prompts), max(ROW_SIZES)), sorted(ROW_SIZES))
    width = bucket(max(len(p) for p in prompts), PROMPT_BUCKETS)
    used = -(-len(prompts) // rows)
    num_slots = max(MIN_SLOTS, 1 << (used - 1).bit_length())
    tokens = np.zeros((num_slots * rows, width), np.int32)
    lengths = np.ones(num_slots * rows, np.int32)
    for i, prompt in enumerate(prompts):
        tokens[i, : len(prompt)] = prompt
        lengths[i] = len(prompt)
    padded = np.zeros((1, bucket(len(prefix), PREFIX_BUCKETS) if prefix else 0), np.int32)
    padded[0, : len(prefix)] = prefix
    shape = (num_slots, rows)
    ids = np.arange(num_slots * rows, dtype=np.int32)
    return {
        "prefix": padded,
        "prefix_length": np.asarray(len(prefix), np.int32),
        "tokens": tokens.reshape(*shape, width),
        "lengths": lengths.reshape(shape),
        "valid": (ids < len(prompts)).reshape(shape),
        "row_ids": ids.reshape(shape),
        "num_valid": np.asarray(used, np.int32),
        "temperature": np.asarray(1, np.float32),
    }


def generate_replies(config: ModelConfig, max_new_tokens: int, stop_ids: tuple[int, ...], sample: bool, parallel: Any = None):
    """The function of one candidate that ``ChunkProgram`` runs on the arrays of ``batch_prompts``: ``Replies`` with leading S.

    With ``sample``, tokens are drawn with the candidate's key (of the plain model: noise and samples never share one). ``parallel``: how
    the model is sharded over the devices of "model".
    """

    def fn(params: Any, candidate: Any, data: dict[str, jax.Array]) -> Replies:
        model = config.build(params, parallel)
        prefix = run_prefix(model, data["prefix"], data["prefix_length"]) if data["prefix"].shape[1] else None

        def slot(index: jax.Array, results: Replies) -> Replies:
            tokens, lengths, valid, row_ids = (
                jax.lax.dynamic_index_in_dim(data[name], index, keepdims=False) for name in ("tokens", "lengths", "valid", "row_ids")
            )
            replies = generate(
                model, tokens, lengths, valid, max_new_tokens, stop_ids, prefix, data["prefix_length"],
                candidate.key_data if sample else None, row_ids, data["temperature"],
            )  # fmt: skip
            return jax.tree.map(lambda all_, new: jax.lax.dynamic_update_index_in_dim(all_, new, index, 0), results, replies)

        return jax.lax.fori_loop(0, data["num_valid"], slot, no_replies(data["lengths"].shape, max_new_tokens))

    return fn


class Kind(NamedTuple):
    """What tells an engine's programs apart. ``strategy`` None is the plain model, without noise; with ``sample`` replies are drawn."""

    name: ProgramName
    strategy: str | None
    sample: bool = False


def candidate_function(config: ModelConfig, max_new_tokens: int, stop_ids: tuple[int, ...], parallel: Any, kind: Kind):
    """The function of one candidate that a kind of program runs."""
    if kind.name == "generate":
        return generate_replies(config, max_new_tokens, stop_ids, kind.sample, parallel)
    return choice_values(config, kind.name == "single_token", parallel)
