"""The value of a designed task by one forward-mode derivative.

A learner takes a step down the gradient g_pre of a designed loss. What the step is worth is how far it lowers a feedback loss with
gradient g_down: V = g_down . g_pre (arXiv 2601.22108). That is the derivative of the designed loss in the direction g_down, so ``jax.jvp``
gives it, and the designer's gradient is ordinary reverse mode over it; no second backward pass goes through the learner.

A language model's designed loss is linear in its targets, L = -mean_t sum_v q_t(v) log p(v), so its value is
mean_t sum_v q_t(v) s_t(v) with s_t(v) = -d/de log p_(params + e g_down)(v). ``value_scores`` gives s, in which no designer appears.
(Both are our derivations.)

All of it looks at a subset of the parameters, and a direction exists for the subset alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from perturbjax.errors import InputError
from perturbjax.noise import Rule
from perturbjax.tree import leaf_paths, map_with_paths

STACKED = "layers/"
"""Leaves under it are stacked along a leading axis of layers; any part of a path may come before it."""
EPSILON = 1e-8
"""AdamW's, beside the root of its second moments; and the least norm that is divided by."""

DECAYS = 0.9, 0.999
"""AdamW's b1 and b2, of its first and second moments."""

Part = dict[str, jax.Array]
"""Path -> what the subset holds of a leaf: all of it, or its last layers."""


@dataclass(frozen=True)
class Subset:
    """The parameters that a value looks at.

    Attributes:
        leaves: (path, first layer) of each leaf; layers before it do not belong. 0: the whole leaf.
        layers: how many of the last layers, where nothing else belongs; derivatives need to go through no other. None otherwise.
    """

    leaves: tuple[tuple[str, int], ...]
    layers: int | None

    def take(self, params: Any) -> Part:
        """What the subset holds of a tree like the parameters."""
        found = leaf_paths(params)
        return {path: found[path][first:] if first else found[path] for path, first in self.leaves}

    def put(self, params: Any, part: Part) -> Any:
        """The tree with ``part`` in its place. Of everything else derivatives are zero, and known to be before anything runs."""
        firsts = dict(self.leaves)

        def one(path: str, leaf: Any) -> Any:
            if path not in firsts:
                return leaf
            return jnp.concatenate([leaf[: firsts[path]], part[path]]) if firsts[path] else part[path]

        return map_with_paths(one, params)


def make_subset(params: Any, layers: int | None = None, rules: Sequence[Rule | str] = ()) -> Subset:
    """The subset that the settings name.

    Args:
        params: nested dicts of arrays, or of shapes.
        layers: the last so many layers, of the leaves whose path holds ``layers/``; 0 or None: all that the rules choose.
        rules: for paths, first match wins, as for noise. A regular expression chooses leaves, as a ``Rule`` with the scale "absolute" does;
            one with the scale None excludes them. What no rule names belongs where all of them exclude. With ``layers``, of these leaves
            the last layers alone. At least one of the two is required.

    Raises:
        InputError: a rule that is no regular expression, has a scale, or matches no path that an earlier one has left; rules that leave
            nothing; more layers than there are.
    """
    paths = leaf_paths(params)
    if not layers and not rules:
        raise InputError("`subset_layers`: a number of layers, or `subset_rules`, is required")
    chosen = _chosen(list(paths), rules) if rules else list(paths)
    if not layers:
        return Subset(tuple((path, 0) for path in chosen), None)
    chosen = [path for path in chosen if STACKED in path]
    if not chosen:
        raise InputError(f"`subset_rules` {','.join(map(str, rules))}: leave nothing of the layers; set `subset_layers` 0")
    (count,) = {len(paths[path]) if hasattr(paths[path], "__len__") else paths[path].shape[0] for path in chosen}
    if not 1 <= layers <= count:
        raise InputError(f"`subset_layers` {layers}: 1 to {count}, the number of layers, is required")
    return Subset(tuple((path, count - layers) for path in chosen), layers)


def _chosen(paths: list[str], rules: Sequence[Rule | str]) -> list[str]:
    """The paths that the rules choose."""
    found: list[Rule] = []
    for rule in rules:
        try:
            found.append(Rule(rule, "absolute") if isinstance(rule, str) else rule)
        except ValueError:
            raise InputError(f"`subset_rules` {rule}: not a regular expression") from None
        if found[-1].scale not in (None, "absolute"):
            pattern = found[-1].pattern
            raise InputError(f"`subset_rules` {rule}: a subset has no scales; {pattern} or {pattern}=exclude is required")
    decided = {path: next((number for number, rule in enumerate(found) if rule.matches(path)), None) for path in paths}
    for number, rule in enumerate(rules):
        if number not in decided.values():
            left = " that an earlier rule has left" if any(map(found[number].matches, paths)) else ""
            raise InputError(f"`subset_rules` {rule}: matches no parameter{left}; the paths are like {', '.join(paths[:3])}")
    unnamed = all(rule.scale is None for rule in found)
    chosen = [path for path, number in decided.items() if (unnamed if number is None else found[number].scale is not None)]
    if not chosen:
        raise InputError(f"`subset_rules` {','.join(map(str, rules))}: exclude every parameter; leave some")
    return chosen


class Scored(NamedTuple):
    """What ``value_scores`` gives.

    Attributes:
        scores: s, in the shape of the log-probabilities: what a unit of probability at this place of the targets is worth.
        log_probs: of the learner, constants.
        others: what the function gave besides, constants.
    """

    scores: jax.Array
    log_probs: jax.Array
    others: Any


def value_scores(
    log_probs_fn: Callable[[Any, Any], tuple[jax.Array, Any]], params: Any, subset: Subset, direction: Part, batch: Any
) -> Scored:
    """s = -d/de log_probs(params + e direction) at e = 0, by one ``jax.jvp``.

    Args:
        log_probs_fn: (params, batch) -> log-probabilities (B, Q, K) of K tokens at each position, and anything else that it knows.
        params: of the learner.
        subset: where the direction lies.
        direction: a tree of ``subset.take``.
        batch: handed on.
    """

    def of(part: Part) -> tuple[jax.Array, Any]:
        return log_probs_fn(subset.put(params, part), batch)

    log_probs, tangents, others = jax.jvp(of, (subset.take(params),), (direction,), has_aux=True)
    return Scored(*jax.lax.stop_gradient((-tangents, log_probs, others)))


def scores_by_domain(
    log_probs_fn: Callable[[Any, Any], tuple[jax.Array, Any]], params: Any, subset: Subset, direction: Part | tuple[Part, ...], batch: Any
) -> Scored:
    """``value_scores``. Of a direction for each domain, the scores of a row are those in the direction of its domain, whose number is
    ``batch["domain"]`` (B,); the learner is run once, its derivative once for each direction."""
    if not isinstance(direction, tuple):
        return value_scores(log_probs_fn, params, subset, direction, batch)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *direction)

    def scored(one: Part) -> tuple[jax.Array, Any]:
        scores, *others = value_scores(log_probs_fn, params, subset, one, batch)
        return scores, others

    scores, (log_probs, others) = jax.vmap(scored, out_axes=(0, None))(stacked)
    own = jnp.arange(len(direction))[:, None, None, None] == batch["domain"][None, :, None, None]
    return Scored(jnp.sum(jnp.where(own, scores, 0.0), axis=0), log_probs, others)


def designed_value(
    loss_fn: Callable[[Any, Any, Any], jax.Array], params: Any, subset: Subset, direction: Part, designer: Any, batch: Any
) -> jax.Array:
    """d/de loss(params + e direction): the value of any designed task, to be differentiated in the designer by reverse mode.

    Args:
        loss_fn: (params, designer, batch) -> () designed loss, as the learner sees it.
        params, subset, direction, batch: as for ``value_scores``.
        designer: what the task depends on.
    """

    def of(part: Part) -> jax.Array:
        return loss_fn(subset.put(params, part), designer, batch)

    return jax.jvp(of, (subset.take(params),), (direction,))[1]


def norm(part: Part) -> jax.Array:
    """() Euclidean norm over all leaves."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in part.values()))


def unit(part: Part) -> Part:
    """The direction divided by its norm: else a designer's learning rate would depend on the size of a gradient."""
    size = jnp.maximum(norm(part), EPSILON)
    return {path: leaf / size for path, leaf in part.items()}


def dot(one: Part, other: Part) -> jax.Array:
    """() sum of products over all leaves."""
    return sum((jnp.sum(one[path] * other[path]) for path in one), jnp.float32(0))


def preconditioned(part: Part, second_moments: Part, step: jax.Array) -> Part:
    """A gradient as AdamW scales it: divided by the root of its second moments, which are corrected for their start at zero.

    A step of AdamW is not along g_pre but along P g_pre; its first-order effect on the feedback loss is (P g_down) . g_pre.

    Args:
        part: the gradient.
        second_moments: of AdamW, on the same subset.
        step: () steps that went into them; at 0 the gradient stays as it is, but for its size.
    """
    correction = jnp.maximum(1 - DECAYS[1] ** step.astype(jnp.float32), EPSILON)
    return {path: leaf / (jnp.sqrt(second_moments[path] / correction) + EPSILON) for path, leaf in part.items()}


def fall_by_adamw(rate: jax.Array, momentum: jax.Array, value: jax.Array, step: jax.Array) -> jax.Array:
    """() the first-order fall of the feedback loss by the next step of AdamW, weight decay and clipping aside.

    The step is along b1 m + (1 - b1) g_pre, corrected for the start of m at zero: what earlier gradients left there counts most. NaN before
    the first step, when there are no second moments to scale by.

    Args:
        rate: () learning rate of the step.
        momentum: () (P g_down) . m, of AdamW's first moments m.
        value: () (P g_down) . g_pre.
        step: () steps taken.
    """
    decay = DECAYS[0]
    fall = rate * (decay * momentum + (1 - decay) * value) / (1 - decay ** (step.astype(jnp.float32) + 1))
    return jnp.where(step == 0, jnp.nan, fall)


def cosine_direction(g_down: Part, g_pre: Part) -> tuple[Part, jax.Array]:
    """A direction whose value has the designer's gradient of cos(g_down, g_pre), and the cosine itself.

    d cos = u . d g_pre with u = (g_down / |g_down| - cos g_pre / |g_pre|) / |g_pre|, so with g_pre known for the present designer the
    cosine needs no second-order pass either. The value in this direction is itself 0, because cos does not depend on |g_pre|.
    """
    down, size = unit(g_down), jnp.maximum(norm(g_pre), EPSILON)
    cosine = dot(down, g_pre) / size
    return {path: (down[path] - cosine * g_pre[path] / size) / size for path in down}, cosine
