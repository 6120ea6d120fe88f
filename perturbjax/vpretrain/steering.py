"""The steered loop: what ``train.loop.fit`` updates before every r-th step, for any designed task.

On the batch of that step and with the present learner: g_down from a batch of feedback, scores of the task in that direction, one step of
the designer up the value. The learner then takes its step on the task that the new designer makes. It never sees feedback.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax

from perturbjax.sharding import REPLICATED, ShardedDim
from perturbjax.train.data import BatchOrder
from perturbjax.train.optimizer import promoting
from perturbjax.train.placement import moment_specs, param_specs
from perturbjax.train.problem import Auxiliary, Figures, TrainingRows
from perturbjax.train.step import Sums, TrainState
from perturbjax.vpretrain.config import Similarity
from perturbjax.vpretrain.directions import DesignedTask, Matched, designed_gradient, designer_direction, feedback_gradients, over_parts
from perturbjax.vpretrain.value import cosine_direction, dot, fall_by_adamw, norm, preconditioned, unit


@dataclass(frozen=True)
class Steering:
    """How a designer is trained.

    Attributes:
        similarity: of g_pre to g_down: their dot product, their cosine, or the dot product after AdamW's scaling of g_down.
        random: a random direction takes the place of g_down; a control.
        every: r, steps between two updates.
        burn_in: steps before the first update.
        learning_rate, clip: of the designer's Adam, and the highest norm of its gradient.
        seed: of feedback batches and random directions.
        probe: predict how far the feedback loss falls by each step after an update, and measure it: a forward pass of feedback, and one of
            scores where the similarity is not that of AdamW.
    """

    similarity: Similarity = "dot"
    random: bool = False
    every: int = 8
    burn_in: int = 0
    learning_rate: float = 1e-4
    clip: float = 1.0
    seed: int = 0
    probe: bool = True

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Of the designer."""
        return optax.chain(optax.clip_by_global_norm(self.clip), optax.adam(self.learning_rate))

    def due(self, step: int) -> bool:
        return step >= self.burn_in and (step - self.burn_in) % self.every == 0

    def number(self, step: int) -> int:
        """How many updates came before that of ``step``."""
        return (step - self.burn_in) // self.every


def feedback_batches(sets: Mapping[str, TrainingRows], batch_rows: int, steering: Steering) -> Callable[[int], dict[str, Any]]:
    """step -> name -> arrays of so many rows of each set, in orders that depend on the seed alone."""
    orders = {name: BatchOrder(len(rows), batch_rows, steering.seed + number) for number, (name, rows) in enumerate(sets.items())}
    return lambda step: {name: sets[name].batch(orders[name].at(steering.number(step))) for name in sets}


def designer_auxiliary(
    task: DesignedTask,
    steering: Steering,
    designer: Any,
    batches: Callable[[int], Any],
    rate: Callable[[jax.Array], Any],
    matched: Sequence[Matched] = (),
    dims: Mapping[str, ShardedDim] = MappingProxyType({}),
) -> Auxiliary:
    """A designer beside its learner.

    Figures of an update: ``value`` of the task before it (of a unit direction, or the cosine); ``feedback_loss``; ``direction_norm``, of
    g_down; ``skipped``, 1 where the value was not finite and the designer stayed as it was; what ``task.value`` sums besides. With a
    probe: ``predicted``, the first-order fall of the feedback loss by the learner's step of AdamW, momentum included;
    ``predicted_alone``, as if the step were along this task's gradient alone; ``realized``, the fall that was measured.

    Args:
        task: what the designer changes.
        steering: settings.
        designer: its parameters at the start, float32.
        batches: step -> a batch of feedback.
        rate: step -> learning rate of the learner, in which ``predicted`` is counted.
        matched: one for each domain, where feedback steers the rows of its own domain: ``task.prepare`` then gets a direction for each,
            of a norm that is the domain's share over the mean share. ``feedback_loss`` and predictions are of all feedback on all rows.
        dims: path -> sharded dim of the designer's parameters; its moments lie where they lie.

    Raises:
        ValueError: a cosine with ``matched`` domains.
    """
    if matched and steering.similarity == "cosine":
        raise ValueError("similarity cosine: it is of all rows together; with matched domains, dot or preconditioned is required")

    def update(state: Any, training: TrainState, frozen: Any, batch: Any, own: Any, step: jax.Array) -> tuple[Any, Figures]:
        trained, feedback = training.params, jax.tree.map(lambda array: array[0], own)
        with jax.named_scope("feedback"):
            down, g_down, parts = feedback_gradients(task, matched, trained, frozen, feedback)
            second_moments = task.subset.take(optax.tree.get(training.optimizer, "nu"))
            scaled = preconditioned(g_down, second_moments, step)
        cosine: Any = None
        if steering.similarity == "cosine" and not steering.random:
            direction, cosine = cosine_direction(g_down, designed_gradient(task, trained, frozen, state["designer"], batch))
        else:
            key = jax.random.fold_in(jax.random.key(steering.seed), step) if steering.random else None
            direction = designer_direction(steering.similarity, parts, matched, key, second_moments, step)

        def scores(direction: Any) -> Any:
            return over_parts(lambda part: task.prepare(trained, frozen, direction, part), batch)

        value = partial(_mean_value, task, trained, frozen)
        with jax.named_scope("scores"):
            prepared = scores(direction)
        with jax.named_scope("designer"):
            (found, means), gradients = jax.value_and_grad(value, has_aux=True)(state["designer"], prepared)
            good = jnp.isfinite(found) & jnp.isfinite(optax.tree.norm(gradients)) & jnp.isfinite(norm(g_down))
            new, moments = _raised(steering.optimizer, state, gradients, good)
        figures = means | {"value": found if cosine is None else cosine, "feedback_loss": down}
        figures |= {"direction_norm": norm(g_down), "skipped": 1.0 - good.astype(jnp.float32)}
        if steering.probe:
            with jax.named_scope("probe"):
                if matched or steering.random or steering.similarity != "preconditioned":
                    prepared = scores(unit(scaled))
                own_part = norm(scaled) * value(new, prepared)[0]
                momentum = dot(scaled, task.subset.take(optax.tree.get(training.optimizer, "mu")))
                figures |= _predictions(jnp.asarray(rate(step), jnp.float32), momentum, own_part, step)
        return {"designer": new, "optimizer": moments, **_counted(state, good)}, figures

    start, specs = _designer_start(steering.optimizer, designer, dims)
    return Auxiliary(start, steering.due, batches, update=update, after=_probe(task, steering), specs=specs)


def _designer_start(optimizer: optax.GradientTransformation, designer: Any, dims: Mapping[str, ShardedDim]) -> tuple[Any, Any]:
    """The state that a designer begins with, and its partition specs."""
    designer = jax.tree.map(jnp.asarray, designer)
    moments = promoting(optimizer.init)(designer)
    specs = {"designer": param_specs(designer, dims), "optimizer": moment_specs(TrainState(designer, moments), optimizer, dims)}
    return {"designer": designer, "optimizer": moments, **_counts()}, {**specs, **dict.fromkeys(_counts(), REPLICATED)}


def _raised(optimizer: optax.GradientTransformation, state: Any, gradients: Any, good: jax.Array) -> tuple[Any, Any]:
    """The designer and its moments after a step up the gradients of its value, or where that is not ``good``, as they were."""
    updates, moments = promoting(optimizer.update)(jax.tree.map(jnp.negative, gradients), state["optimizer"], state["designer"])
    after, before = (optax.apply_updates(state["designer"], updates), moments), (state["designer"], state["optimizer"])
    return jax.tree.map(partial(jnp.where, good), after, before)


def _mean_value(task: DesignedTask, trained: Any, frozen: Any, designer: Any, prepared: Any) -> tuple[jax.Array, Sums]:
    """() the value over a whole batch, and the means of what ``task.value`` sums besides."""
    sums = jax.tree.map(jnp.sum, over_parts(lambda part: task.value(designer, trained, frozen, part), prepared))
    weight = jnp.maximum(sums.pop("weight"), 1e-30)
    means = jax.tree.map(lambda total: total / weight, sums)
    return means.pop("value"), means


def oracle_auxiliary(
    task: DesignedTask,
    steering: Steering,
    trained: Any,
    batches: Callable[[int], Any],
    matched: Sequence[Matched] = (),
    dims: Mapping[str, ShardedDim] = MappingProxyType({}),
) -> Auxiliary:
    """The direction g_down itself, or that of each domain, for targets that need no designer (``text.Oracle``). ``dims``: of the learner's
    parameters, where their part of a direction lies too."""

    def update(state: Any, training: TrainState, frozen: Any, batch: Any, own: Any, step: jax.Array) -> tuple[Any, Figures]:
        feedback = jax.tree.map(lambda array: array[0], own)
        down, g_down, parts = feedback_gradients(task, matched, training.params, frozen, feedback)
        size, units = norm(g_down), tuple(map(unit, parts))
        good = jnp.isfinite(size)
        direction = jax.tree.map(lambda new, old: jnp.where(good, new, old), units if matched else units[0], state["direction"])
        figures = {"feedback_loss": down, "direction_norm": size, "skipped": 1.0 - good.astype(jnp.float32)}
        return {"direction": direction, **_counted(state, good)}, figures

    shapes = jax.eval_shape(task.subset.take, trained)
    zeros = tuple({path: jnp.zeros(leaf.shape, jnp.float32) for path, leaf in shapes.items()} for _ in matched or [task])
    where = tuple(param_specs(part, dims) for part in zeros)
    start = {"direction": zeros if matched else zeros[0], **_counts()}
    specs = {"direction": where if matched else where[0], **dict.fromkeys(_counts(), REPLICATED)}
    return Auxiliary(start, steering.due, batches, update=update, after=_probe(task, steering), specs=specs)


def _predictions(rate: jax.Array, momentum: jax.Array, value: jax.Array, step: jax.Array) -> Figures:
    """The fall by the whole step of AdamW, and by the task's own part of it; of ``fall_by_adamw``'s arguments."""
    alone = jnp.where(step == 0, jnp.nan, rate * value)
    return {"predicted": fall_by_adamw(rate, momentum, value, step), "predicted_alone": alone}


def _counts() -> dict[str, jax.Array]:
    return {"updates": jnp.int32(0), "skipped": jnp.int32(0)}


def _counted(state: Any, good: jax.Array) -> dict[str, jax.Array]:
    return {"updates": state["updates"] + good.astype(jnp.int32), "skipped": state["skipped"] + (~good).astype(jnp.int32)}


def _probe(task: DesignedTask, steering: Steering) -> Callable[[TrainState, Any, Any, Figures], Figures] | None:
    """Measures the fall of the feedback loss by the learner's step, where that is asked for."""

    def after(training: TrainState, frozen: Any, own: Any, figures: Figures) -> Figures:
        feedback = jax.tree.map(lambda array: array[0], own)
        return {"realized": figures["feedback_loss"] - task.feedback_loss(training.params, frozen, feedback)}

    return after if steering.probe else None
