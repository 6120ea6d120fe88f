"""What an arm is measured by at its end beside its answers: the loss of each row, and what its designer does."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from perturbjax.pretrained import Model
from perturbjax.sharding import REPLICATED
from perturbjax.train.demonstrations import EncodedDemonstration
from perturbjax.train.language import hidden_at_queries, sum_over_queries
from perturbjax.train.placement import put_batch
from perturbjax.train.rows import join_rows, pack_rows
from perturbjax.train.step import cross_entropy
from perturbjax.vpretrain.arms import Experiment
from perturbjax.vpretrain.results import TargetExample
from perturbjax.vpretrain.text import Designed, Learner

EXAMPLES, CONTEXT, SHOWN = 6, 12, 4
"""Targets that are shown, tokens of their context, candidates of each."""


def row_losses(learner: Learner, params: Any, texts: Sequence[EncodedDemonstration], row_tokens: int, mesh: Mesh) -> tuple[float, ...]:
    """The mean loss of each demonstration's answer, one a row; a loss does not depend on what else is measured.

    Args:
        learner: its shape.
        params: all parameters, on the mesh.
        texts: that fit into a row.
        row_tokens: T.
        mesh: (data, model); rows are sharded over "data".
    """
    alone = {str(number): pack_rows([text], row_tokens, per_demonstration=True) for number, text in enumerate(texts)}
    rows = join_rows(alone, dict.fromkeys(alone, 1.0))
    found = jax.jit(_losses(learner), out_shardings=NamedSharding(mesh, REPLICATED))
    width = 8 * mesh.devices.shape[0]
    losses: list[float] = []
    for start in range(0, len(rows), width):
        numbers = np.minimum(np.arange(start, start + width), len(rows) - 1)
        losses += np.asarray(jax.device_get(found(params, put_batch(rows.batch(numbers), 1, mesh)))).tolist()
    return tuple(losses[: len(rows)])


@functools.cache  # a new function would be traced and compiled for each arm and each set
def _losses(learner: Learner) -> Callable[[Any, Any], jax.Array]:
    def losses(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        batch = {name: array[0] for name, array in batch.items()}
        decoder = learner.build(params, None)

        def sums(hidden: jax.Array, labels: jax.Array, weights: jax.Array) -> dict[str, jax.Array]:
            return {"loss": jnp.sum(weights * cross_entropy(decoder.logits(hidden), labels), axis=-1)}

        return sum_over_queries(sums, hidden_at_queries(decoder, batch), batch["labels"], batch["weights"])["loss"]

    return losses


def target_examples(experiment: Experiment, params: Any, auxiliary: Any, model: Model) -> tuple[tuple[TargetExample, ...], float]:
    """The different targets with the highest alpha in the first rows of the corpus; and there, the mean total variation between the
    designer's targets and those of the designer at the start."""
    task = experiment.task
    batch = experiment.rows.batch(np.arange(min(4, len(experiment.rows))))
    targets = Designed(task.designer)

    @jax.jit
    def of(params: Any, states: Any, batch: dict[str, jax.Array]) -> Any:
        decoder = task.learner.merged.build(params, None)
        logits = decoder.logits(hidden_at_queries(decoder, batch))
        ids, log_probs = task.learner.merged.candidates(logits, batch["labels"], task.designer.candidates)

        def target(state: Any) -> tuple[jax.Array, jax.Array]:
            alpha, r = targets.at(targets.prepare(params, None, state, batch), state, ids, log_probs)
            first = jnp.zeros(r.shape, r.dtype).at[..., 0].set(1.0)
            return alpha, (1 - alpha)[..., None] * first + alpha[..., None] * r

        return ids, jnp.exp(log_probs), *(target(state) for state in states)

    start = {**auxiliary, "designer": experiment.designer, "updates": np.int32(1)}
    arrays = {name: jnp.asarray(array) for name, array in batch.items()}
    ids, probs, (alpha, q), (_, began) = jax.device_get(of(params, (auxiliary, start), arrays))
    weights = batch["weights"]
    drift = float(np.sum(weights * np.abs(q - began).sum(axis=-1) / 2) / np.sum(weights))
    return _furthest(batch, ids, probs, np.where(weights > 0, alpha, -1.0), q, model), drift


def _furthest(batch: Any, ids: Any, probs: Any, alpha: Any, q: Any, model: Model) -> tuple[TargetExample, ...]:
    def decode(tokens: Any) -> str:
        return model.tokenizer.decode([int(token) for token in np.ravel(tokens)])

    found: dict[tuple[str, str], TargetExample] = {}
    for row, place in zip(*np.unravel_index(np.argsort(-alpha, axis=None), alpha.shape), strict=True):
        if alpha[row, place] < 0 or len(found) == EXAMPLES:
            break
        at = int(batch["query"][row, place])
        own = batch["segments"][row] == batch["segments"][row, at]
        context = decode(batch["tokens"][row][max(0, at + 1 - CONTEXT) : at + 1][own[max(0, at + 1 - CONTEXT) : at + 1]])
        likeliest = np.argsort(-q[row, place], kind="stable")[:SHOWN]
        shown = tuple((decode(ids[row, place, k]), float(probs[row, place, k]), float(q[row, place, k])) for k in likeliest)
        token = decode(batch["labels"][row, place])
        found.setdefault((context, token), TargetExample(context, token, float(alpha[row, place]), shown))
    return tuple(found.values())
