"""What a designer serves: the contract of a designed task, gradients of its feedback, and the directions that values look in.

Feedback may be matched with domains: each then steers the rows of its own domain alone. With L = sum_d share_d L_d, the value is that of
direction g_d on the rows of domain d, a sum over all rows; g_down, which predictions are of, stays the gradient of L.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from perturbjax.train.step import Sums
from perturbjax.vpretrain.config import Similarity
from perturbjax.vpretrain.value import Part, Subset, preconditioned, unit


class DesignedTask(Protocol):
    """A self-supervised task that a designer changes, and the feedback that it is to serve. All functions are traced."""

    @property
    def subset(self) -> Subset:
        """The parameters that the value looks at."""
        ...

    def feedback_loss(self, trained: Any, frozen: Any, feedback: Any) -> jax.Array:
        """() the loss that steps are to lower."""
        ...

    def prepare(self, trained: Any, frozen: Any, direction: Any, batch: Any) -> Any:
        """What of a value no designer appears in, for a batch with leading B. ``direction``: a ``Part``; where feedback is matched with
        domains, also a tuple of them."""
        ...

    def value(self, designer: Any, trained: Any, frozen: Any, prepared: Any) -> Sums:
        """Sums over the batch: ``value``, ``weight``, and whatever else is of interest. Differentiated in the designer."""
        ...

    def designed_loss(self, trained: Any, frozen: Any, designer: Any, batch: Any) -> Sums:
        """Sums over the batch of what the learner minimizes: ``loss`` and ``weight``."""
        ...


class Matched(NamedTuple):
    """A task whose feedback is that of one domain alone, and the share of this feedback in the weights of all."""

    task: DesignedTask
    share: float


def gradient(task: DesignedTask, trained: Any, frozen: Any, feedback: Any) -> tuple[jax.Array, Part]:
    """The feedback loss and g_down, on the subset."""

    def loss(part: Part) -> jax.Array:
        return task.feedback_loss(task.subset.put(trained, part), frozen, feedback)

    return jax.value_and_grad(loss)(task.subset.take(trained))


def feedback_gradients(
    task: DesignedTask, matched: Sequence[Matched], trained: Any, frozen: Any, feedback: Any
) -> tuple[jax.Array, Part, tuple[Part, ...]]:
    """The loss of all feedback, its gradient, and the gradients of the domains' losses, of which it is the weighted sum; without domains
    the one gradient alone."""
    if not matched:
        down, g_down = gradient(task, trained, frozen, feedback)
        return down, g_down, (g_down,)
    found = [gradient(each.task, trained, frozen, feedback) for each in matched]
    shares = [each.share for each in matched]
    down = sum((share * loss for share, (loss, _) in zip(shares, found, strict=True)), jnp.float32(0))
    parts = tuple(part for _, part in found)
    total = jax.tree.map(lambda *leaves: sum(share * leaf for share, leaf in zip(shares, leaves, strict=True)), *parts)
    return down, total, parts


def designer_direction(
    similarity: Similarity, parts: Sequence[Part], matched: Sequence[Matched], key: jax.Array | None, second_moments: Part, step: jax.Array
) -> Part | tuple[Part, ...]:
    """Unit directions: of the one gradient, or of each domain's, these multiplied by the domain's share over the mean share.

    Args:
        similarity: dot, or preconditioned; a cosine has a direction of its own.
        parts, matched: of ``feedback_gradients``.
        key: of random directions in their place; None: there are none.
        second_moments, step: of AdamW, as for ``preconditioned``.
    """
    found = []
    for number, part in enumerate(parts):
        if key is not None:
            found.append(unit(_random(part, jax.random.fold_in(key, number) if number else key)))
        else:
            found.append(unit(preconditioned(part, second_moments, step) if similarity == "preconditioned" else part))
    if not matched:
        return found[0]
    factors = [len(matched) * each.share for each in matched]
    return tuple({path: factor * leaf for path, leaf in part.items()} for factor, part in zip(factors, found, strict=True))


def designed_gradient(task: DesignedTask, trained: Any, frozen: Any, designer: Any, batch: Any) -> Part:
    """g_pre of the whole batch, on the subset."""

    def loss(part: Part) -> jax.Array:
        whole = task.subset.put(trained, part)
        sums = over_parts(lambda rows: task.designed_loss(whole, frozen, designer, rows), batch)
        return sums["loss"].sum() / jnp.maximum(sums["weight"].sum(), 1e-30)

    return jax.grad(loss)(task.subset.take(trained))


def over_parts(fn: Callable[[Any], Any], parts: Any) -> Any:
    """``fn`` of each of the A parts of a batch, one after the other; the results with leading A."""
    if len(jax.tree.leaves(parts)[0]) == 1:  # the common case, without a loop to be compiled
        return jax.tree.map(lambda array: array[None], fn(jax.tree.map(lambda array: array[0], parts)))
    return jax.lax.map(fn, parts)


def _random(like: Part, key: jax.Array) -> Part:
    keys = jax.random.split(key, len(like))
    return {path: jax.random.normal(key, leaf.shape) for key, (path, leaf) in zip(keys, sorted(like.items()), strict=True)}
