"""Log-odds of the right choice: measured ones, and the gradient of their mean.

The log-odds of a question are log p(right) - log p(any other choice); the sigmoid of them is the probability of the right choice among the
choices. Accuracy is the share of questions whose right choice is the most probable one: a step function, which has no gradient. Two smooth
objectives stand for it, both means over the questions:

- **log_odds**: every question counts alike, however clear it is.
- **probability**: the expected accuracy of one draw from the choices. Questions that the model is sure of count little.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from perturbjax.inference.programs import choice_values
from perturbjax.tasks.base import Example, Objective

if TYPE_CHECKING:
    from perturbjax.inference.outputs import EncodedBatch
    from perturbjax.inference.packing import Packing
    from perturbjax.tree import Params

GRADIENT_TOKENS = 1024
"""Tokens of one slot of a batch that is differentiated (``Engine.prepare``): a backward pass keeps the activations of one slot."""


def right_choices(examples: Sequence[Example]) -> np.ndarray:
    """(E,) which choice of each multiple-choice example is right."""
    return np.array([example.choices.index(example.answer) for example in examples])


def log_odds(log_probs: np.ndarray | None, right: np.ndarray) -> Float64[np.ndarray, "n E"]:
    """Log-odds of n models on E questions, in nats, from ``Outputs.log_probs`` (n, E, C) and the (E,) right choices."""
    assert log_probs is not None, "a multiple-choice task has them"
    mine = np.arange(log_probs.shape[2])[None] == right[:, None]
    return log_probs[:, mine] - np.logaddexp.reduce(np.where(mine, -np.inf, log_probs), axis=2)


def objective_values(found: np.ndarray, objective: Objective) -> np.ndarray:
    """(n,) objectives of log-odds (n, E)."""
    return found.mean(axis=1) if objective == "log_odds" else (1 / (1 + np.exp(-found))).mean(axis=1)


def objective_gradient(params: Params, config: Any, batch: EncodedBatch, objective: Objective) -> tuple[float, Params]:
    """The objective of the examples of a batch and its gradient, from the program that scores them.

    Args:
        params: the base.
        config: of the model.
        batch: of a multiple-choice task; ``Engine.prepare(..., slot_tokens=GRADIENT_TOKENS)``.
        objective: a mean over the examples.

    Returns:
        The objective, and a tree of float32 arrays in the shapes of ``params``.
    """
    return _gradient(params, config, batch, np.zeros((len(batch.examples), 0), np.float32), objective)


def policy_gradient(params: Params, config: Any, batch: EncodedBatch, advantages: np.ndarray) -> Params:
    """The gradient of the mean over E examples of sum_c advantages[e, c] log p(c | e), p the softmax over the choices: the policy gradient
    where a choice's advantage is added up over its draws and divided by their number.

    Args:
        params, config, batch: as for ``objective_gradient``.
        advantages: (E, C) float32, C at least the most choices of an example.

    Returns:
        A tree of float32 arrays in the shapes of ``params``.
    """
    return _gradient(params, config, batch, advantages, None)[1]


def _gradient(
    params: Params, config: Any, batch: EncodedBatch, advantages: np.ndarray, objective: Objective | None
) -> tuple[float, Params]:
    """One slot of the batch after the other goes forward and back, and the gradients are added up: the memory is that of one slot, of
    parameters and of a gradient, whatever the number of examples."""
    right, value = right_choices(batch.examples), 0.0
    total = jax.tree.map(lambda leaf: jnp.zeros(jnp.shape(leaf), jnp.float32), params)
    for packing in batch.packings:
        step = _steps(config, packing.single, objective)
        for data, asked in _slots(packing, right, advantages):
            total, one = step(total, params, data, asked)
            value += float(one)
    count = len(batch.examples)
    return value / count, _divided(total, count)


@lru_cache
def _steps(config: Any, single: bool, objective: Objective | None) -> Any:
    """The compiled step of a slot: a training takes it many times."""
    return jax.jit(partial(_add_gradient, config=config, single=single, objective=objective), donate_argnums=0)


@partial(jax.jit, donate_argnums=0)
def _divided(tree: Params, count: Any) -> Params:
    return jax.tree.map(lambda leaf: leaf / count, tree)


def _add_gradient(
    total: Params, params: Params, data: dict[str, Any], asked: dict[str, Any], config: Any, single: bool, objective: Objective | None
) -> tuple[Params, jax.Array]:
    value, gradient = jax.value_and_grad(slot_objective)(params, config, single, data, asked, objective)
    return jax.tree.map(lambda all_, new: all_ + new.astype(jnp.float32), total, gradient), value


def slot_objective(
    params: Params, config: Any, single: bool, data: dict[str, Any], asked: dict[str, Any], objective: Objective | None
) -> jax.Array:
    """Sum of the objective over the examples of one slot, float32 ().

    Args:
        params: of the model of ``config``.
        single: as in ``choice_values``.
        data: the arrays of a ``Packing``, of one slot.
        asked: ``example`` and ``choice`` (Q,) of each query; ``there`` and ``right`` (E, C) bool, ``weight`` (E,), 0 on padding;
            ``advantages`` (E, C).
        objective: which; None: advantages times log-probabilities.
    """
    one_slot: dict[str, Any] = {**data, "num_valid": 1}  # a loop of a known length has a backward pass
    values = choice_values(config, single)(params, None, one_slot)[0]
    examples, choices = asked["there"].shape
    # Queries that pad the slot belong to an example that there is not, and are dropped.
    if single:
        found = jnp.zeros((examples, values.shape[1])).at[asked["example"]].set(values, mode="drop")[:, :choices]
    else:
        found = jnp.zeros((examples, choices)).at[asked["example"], asked["choice"]].add(values[:, 0], mode="drop")
    if objective is None:
        logs = jax.nn.log_softmax(jnp.where(asked["there"], found, -jnp.inf), axis=1)
        return jnp.sum(asked["advantages"] * jnp.where(asked["there"], logs, 0))
    others = jax.nn.logsumexp(jnp.where(asked["there"] & ~asked["right"], found, -jnp.inf), axis=1)
    odds = jnp.where(asked["right"], found, 0).sum(axis=1) - others
    return (asked["weight"] * (odds if objective == "log_odds" else jax.nn.sigmoid(odds))).sum()


def _slots(packing: Packing, right: np.ndarray, advantages: np.ndarray) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The arrays of each slot in use, with a leading dim of 1, and what is asked there; all slots have the same shapes."""
    used, queries = int(packing.arrays["num_valid"]), packing.arrays["query"].shape[1]
    of_slot = [packing.owner[packing.owner[:, 0] == slot] for slot in range(used)]
    most, widest = max(len(np.unique(rows[:, 2])) for rows in of_slot), max(2, *packing.num_choices)
    for slot, rows in enumerate(of_slot):
        mine = np.unique(rows[:, 2])
        example, choice = np.full(queries, most, np.int32), np.zeros(queries, np.int32)
        example[rows[:, 1]], choice[rows[:, 1]] = np.searchsorted(mine, rows[:, 2]), rows[:, 3]
        # An example of padding has two choices, so that its log-odds are finite.
        there, gold = np.zeros((most, widest), bool), np.zeros(most, np.int64)
        there[:, :2], weight, gain = True, np.zeros(most, np.float32), np.zeros((most, widest), np.float32)
        for number, each in enumerate(mine):
            there[number] = np.arange(widest) < packing.num_choices[each]
            gold[number], weight[number] = right[packing.examples[each]], 1
            own = advantages[packing.examples[each]][:widest]
            gain[number, : len(own)] = own
        arrays = {
            name: array if name == "lead" else array[slot : slot + 1] for name, array in packing.arrays.items() if name != "num_valid"
        }
        is_right = np.arange(widest)[None] == gold[:, None]
        yield arrays, {"example": example, "choice": choice, "there": there, "right": is_right, "weight": weight, "advantages": gain}
