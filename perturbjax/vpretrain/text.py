"""Designed next-token targets: candidates, soft targets, and what a value is for them (arXiv 2601.22108, language).

At a learned position with true token y the candidates are C = {y} and the learner's K - 1 likeliest other tokens. The target is

    q = (1 - alpha) onehot(y) + alpha r,  r a distribution over C, alpha in [0, alpha_max]

and the learner's loss the cross-entropy of q, a mean over an example's tokens and then over examples, which is what the weights of
``pack_rows(..., per_demonstration=True)`` say. Targets are constants to the learner.

Axis letters: B rows, T tokens, Q learned positions, K candidates, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from perturbjax.models.config import DecoderConfig
from perturbjax.models.decoder import Decoder
from perturbjax.train.language import fine_tuning_loss, hidden_at_queries, map_over_queries, sum_over_queries
from perturbjax.train.step import Loss, Sums, cast, cross_entropy
from perturbjax.vpretrain.candidates import candidates, log_probs_of, logits_of, vocabulary_blocks
from perturbjax.vpretrain.designer import TopKDesigner
from perturbjax.vpretrain.directions import Matched
from perturbjax.vpretrain.value import Part, Subset, scores_by_domain

Batch = dict[str, jax.Array]


@dataclass(frozen=True)
class Learner:
    """What is pretrained further.

    Attributes:
        config: its shape.
        dtype: what its trained weights are used in.
        remat: compute each layer again in the backward pass.
        mesh: (data, model), over which batches and parameters are sharded; None: one device has all of it.
        whole: (trained, frozen) -> all parameters; of an adapter, its ``attach``.
    """

    config: DecoderConfig
    dtype: Any
    remat: bool = False
    mesh: Mesh | None = None
    whole: Callable[[Any, Any], Any] = lambda trained, frozen: trained

    @property
    def merged(self) -> Learner:
        """The same over all parameters, once training is done."""
        return Learner(self.config, self.dtype, self.remat)

    def candidates(self, logits: jax.Array, labels: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
        """The candidates of each position and their log-probabilities: (B, Q, V), (B, Q) -> (B, Q, K) both."""
        ids = candidates(logits, labels, k, self.mesh)
        return ids, log_probs_of(logits, ids, self.blocks)

    @property
    def blocks(self) -> int:
        """Into how many blocks its logits are sharded."""
        return vocabulary_blocks(self.config.vocab_size, self.mesh)

    def build(self, trained: Any, frozen: Any) -> Decoder:
        return self.config.build(cast(self.whole(trained, frozen), self.dtype))

    def plain_loss(self, differentiated: int | None = None) -> Loss:
        """Cross-entropy of the true tokens."""
        loss = fine_tuning_loss(self.config, self.dtype, self.remat, differentiated)
        return lambda trained, frozen, batch: loss(self.whole(trained, frozen), None, batch)


class Targets(Protocol):
    """Where soft targets come from."""

    def prepare(self, trained: Any, frozen: Any, auxiliary: Any, batch: Batch) -> Any:
        """A pytree with leading (B, Q) of what is known before the learner's logits."""
        ...

    def at(self, prepared: Any, auxiliary: Any, ids: jax.Array, log_probs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Alpha (B, q) and r (B, q, K) at some positions, of candidates and the learner's log-probabilities of them."""
        ...


@dataclass(frozen=True)
class Fixed:
    """Controls without feedback: r is uniform over the candidates, or the learner's own distribution over them (self-distillation)."""

    kind: Literal["uniform", "self"]
    alpha: float

    def prepare(self, trained: Any, frozen: Any, auxiliary: Any, batch: Batch) -> Any:
        return ()

    def at(self, prepared: Any, auxiliary: Any, ids: jax.Array, log_probs: jax.Array) -> tuple[jax.Array, jax.Array]:
        r = jnp.full(ids.shape, 1 / ids.shape[-1], jnp.float32) if self.kind == "uniform" else jax.nn.softmax(log_probs, axis=-1)
        return jnp.full(ids.shape[:-1], self.alpha, jnp.float32), r


@dataclass(frozen=True)
class Designed:
    """Targets of a designer, which is the auxiliary's ``designer``; the true tokens alone before its first update."""

    designer: TopKDesigner

    def prepare(self, trained: Any, frozen: Any, auxiliary: Any, batch: Batch) -> Any:
        return self.designer.states(auxiliary["designer"], batch)

    def at(self, prepared: Any, auxiliary: Any, ids: jax.Array, log_probs: jax.Array) -> tuple[jax.Array, jax.Array]:
        alpha, log_r = self.designer.targets(auxiliary["designer"], prepared, ids, log_probs)
        return jnp.where(auxiliary["updates"] > 0, alpha, 0.0), jnp.exp(log_r)


@dataclass(frozen=True)
class Oracle:
    """The targets of highest value, without a designer: as much as alpha allows on the best candidate. It takes a score of every batch in
    the auxiliary's ``direction``, which is that of the last update; no designer can do better by the value."""

    learner: Learner
    subset: Subset
    k: int
    alpha: float

    def prepare(self, trained: Any, frozen: Any, auxiliary: Any, batch: Batch) -> Any:
        fn = candidate_log_probs(self.learner, self.k, frozen, self.subset)
        found = scores_by_domain(fn, trained, self.subset, auxiliary["direction"], batch)
        # By token: the forward pass of the loss is another program, which may see two equal candidates in another order.
        return found.others[..., 0], jnp.take_along_axis(found.others, jnp.argmax(found.scores, axis=-1)[..., None], axis=-1)[..., 0]

    def at(self, prepared: Any, auxiliary: Any, ids: jax.Array, log_probs: jax.Array) -> tuple[jax.Array, jax.Array]:
        best = (ids == prepared[1][..., None]).astype(jnp.float32)
        alpha = jnp.where(auxiliary["updates"] > 0, self.alpha, 0.0) * best.sum(axis=-1)
        return alpha, best


def candidate_log_probs(learner: Learner, k: int, frozen: Any, subset: Subset) -> Callable[[Any, Batch], tuple[jax.Array, jax.Array]]:
    """(trained, batch) -> log-probabilities of the candidates (B, Q, K), to be differentiated on ``subset``, and the candidates."""

    def log_probs(trained: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        decoder = learner.build(trained, frozen)
        hidden = hidden_at_queries(decoder, batch, learner.remat, subset.layers)

        def some(hidden: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
            ids, log_probs = learner.candidates(decoder.logits(hidden), labels, k)
            return log_probs, ids

        return map_over_queries(some, 1, hidden, batch["labels"])

    return log_probs


def designed_loss(learner: Learner, k: int, targets: Targets, differentiated: int | None = None, steered: bool = True) -> Loss:
    """The cross-entropy of soft targets, as plain cross-entropy and what alpha changes of it: with alpha 0 it is plain to the bit.

    Its sums: ``loss``; ``plain``, of the true tokens; ``alpha``; ``off_true``, the share of the targets that lies on other tokens than the
    true one; ``entropy`` of r in nats.

    Args:
        learner: what is trained.
        k: candidates.
        targets: where they come from.
        differentiated: see ``Decoder``.
        steered: the loss gets (frozen, auxiliary) in place of frozen.
    """

    def loss(trained: Any, frozen: Any, batch: Batch) -> Sums:
        base, auxiliary = frozen if steered else (frozen, None)
        decoder = learner.build(trained, base)
        prepared = jax.lax.stop_gradient(targets.prepare(trained, base, auxiliary, batch))

        def sums(hidden: jax.Array, prepared: Any, labels: jax.Array, weights: jax.Array) -> Sums:
            logits = decoder.logits(hidden)
            ids = candidates(logits, labels, k, learner.mesh)
            picked = logits_of(logits.astype(jnp.float32), ids, learner.blocks)
            # Read before the cross-entropy, whose gradient then takes the place of the logits: else a third array of their size is kept.
            logits, picked = jax.lax.optimization_barrier((logits, picked))
            plain = cross_entropy(logits, labels)
            # The true token is the first candidate, so its cross-entropy knows the normalizer.
            log_probs = jax.lax.stop_gradient(picked - picked[..., :1] - plain[..., None])
            alpha, r = jax.lax.stop_gradient(targets.at(prepared, auxiliary, ids, log_probs))
            # Of logits: r adds up to 1, so the normalizer cancels.
            moved = alpha * (picked[..., 0] - jnp.sum(r * picked, axis=-1))
            return {
                "loss": jnp.sum(weights * (plain + moved)),
                "plain": jnp.sum(weights * plain),
                "alpha": jnp.sum(weights * alpha),
                "off_true": jnp.sum(weights * alpha * jnp.sum(r[..., 1:], axis=-1)),
                "entropy": jnp.sum(weights * _entropy(r)),
                "weight": jnp.sum(weights),
            }

        hidden = hidden_at_queries(decoder, batch, learner.remat, differentiated)
        return sum_over_queries(sums, hidden, prepared, batch["labels"], batch["weights"])

    return loss


@dataclass(frozen=True)
class TextTask:
    """Designed next-token targets, as ``steering`` asks of a designed task.

    Attributes:
        learner: what is trained.
        designer: of the targets.
        subset: what the value looks at.
        weights: name -> weight of each feedback set.
        domains: name -> domain of the rows that each set steers; the rows of a batch then have ``domain``, the number of theirs in the
            order of ``by_domain``. Empty: all sets steer all rows.
    """

    learner: Learner
    designer: TopKDesigner
    subset: Subset
    weights: Mapping[str, float]
    domains: Mapping[str, str] = field(default_factory=dict)

    def by_domain(self) -> tuple[Matched, ...]:
        """For each domain, the task with the feedback of that domain alone."""
        total, found = sum(self.weights.values()), []
        for domain in dict.fromkeys(self.domains.values()):
            weights = {name: weight for name, weight in self.weights.items() if self.domains[name] == domain}
            found.append(Matched(replace(self, weights=weights, domains={}), sum(weights.values()) / total))
        return tuple(found)

    def feedback_loss(self, trained: Any, frozen: Any, feedback: Mapping[str, Batch]) -> jax.Array:
        """The weighted mean of the sets' losses, each a mean over its examples."""
        total = sum(self.weights.values())
        loss, found = self.learner.plain_loss(self.subset.layers), jnp.float32(0)
        for name, weight in self.weights.items():
            sums = loss(trained, frozen, feedback[name])
            found = found + weight / total * sums["loss"] / jnp.maximum(sums["weight"], 1e-30)
        return found

    def prepare(self, trained: Any, frozen: Any, direction: Part | tuple[Part, ...], batch: Batch) -> Batch:
        """The batch with scores, log-probabilities and candidates of its positions. ``direction``: one, or one for each domain."""
        fn = candidate_log_probs(self.learner, self.designer.candidates, frozen, self.subset)
        found = scores_by_domain(fn, trained, self.subset, direction, batch)
        return batch | {"scores": found.scores, "log_probs": found.log_probs, "ids": found.others}

    def value(self, designer: Any, trained: Any, frozen: Any, prepared: Batch) -> Sums:
        """``value``, of all positions: the linear functional of the targets that their value is; ``alpha`` and ``entropy``."""
        alpha, log_r = self.designer.targets(designer, self.designer.states(designer, prepared), prepared["ids"], prepared["log_probs"])
        scores, weights, r = prepared["scores"], prepared["weights"], jnp.exp(log_r)
        value = (1 - alpha) * scores[..., 0] + alpha * jnp.sum(r * scores, axis=-1)
        return {
            "value": jnp.sum(weights * value),
            "alpha": jnp.sum(weights * alpha),
            "entropy": jnp.sum(weights * _entropy(r)),
            "weight": jnp.sum(weights),
        }

    def designed_loss(self, trained: Any, frozen: Any, designer: Any, batch: Batch) -> Sums:
        """The learner's loss under the designer, for the gradient of a cosine."""
        auxiliary = {"designer": designer, "updates": jnp.int32(1)}
        loss = designed_loss(self.learner, self.designer.candidates, Designed(self.designer), self.subset.layers)
        return loss(trained, (frozen, auxiliary), batch)


def _entropy(r: jax.Array) -> jax.Array:
    return -jnp.sum(jax.scipy.special.xlogy(r, r), axis=-1)
