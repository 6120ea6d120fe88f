"""AdamW as the settings say: schedule, clipping, and decay of matrices alone."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from perturbjax.train.config import Training
from perturbjax.tree import map_with_paths

VECTORS = ("scale", "bias")
"""Last names in the paths of leaves that do not decay."""


def learning_rates(training: Training, steps: int) -> optax.Schedule:
    """The learning rate of each step: from zero to the highest, then constant or along half a cosine to zero."""
    warmup = min(steps, round(training.warmup * steps))
    rising = optax.linear_schedule(0.0, training.learning_rate, max(1, warmup))
    if training.schedule == "constant":
        after: optax.Schedule = optax.constant_schedule(training.learning_rate)
    else:
        after = optax.cosine_decay_schedule(training.learning_rate, max(1, steps - warmup))
    # A first step at rate zero would change nothing.
    return promoting(optax.join_schedules([lambda count: rising(count + 1), after], [warmup]))


def make_optimizer(training: Training, steps: int) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101) behind a clip of the global norm. Scales and biases do not decay: in a stack of layers they look like
    matrices, so they are known by name."""

    def matrices(params: Any) -> Any:
        return map_with_paths(lambda path, leaf: leaf.ndim > 1 and path.rpartition("/")[2] not in VECTORS, params)

    chain = optax.chain(
        optax.clip_by_global_norm(training.clip),
        optax.adamw(learning_rates(training, steps), weight_decay=training.weight_decay, mask=matrices),
    )
    return optax.GradientTransformation(promoting(chain.init), promoting(chain.update))


def promoting(fn: Callable[..., Any]) -> Any:
    """``fn`` under JAX's standard dtype promotion, which optax counts on, for a program that has set the strict one."""

    def call(*args: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return fn(*args)

    return call
