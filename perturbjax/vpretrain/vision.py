"""Designed masks for self-distillation (``dino``), steered by dense labels of few images (arXiv 2601.22108, vision).

A designer masks the student's large views. Feedback are segmentation and depth at the resolution of patches: a linear head is fitted on
some labelled images, with features as constants, and g_down is the gradient of its loss on others.

Axis letters: B images, S pixels of a side, C channels, P patches, D model, K prototypes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp

from perturbjax.errors import InputError
from perturbjax.train.problem import Auxiliary, Problem
from perturbjax.train.step import Loss, Sums, TrainState
from perturbjax.vpretrain.dino import Batch, Dino
from perturbjax.vpretrain.directions import over_parts
from perturbjax.vpretrain.images import Images, check_images
from perturbjax.vpretrain.masks import MaskDesigner
from perturbjax.vpretrain.probes import DENSE, FEEDBACK_HEAD, LinearHead, dense_losses
from perturbjax.vpretrain.steering import Steering, designer_auxiliary, feedback_batches
from perturbjax.vpretrain.value import Part, Subset, designed_value
from perturbjax.vpretrain.views import GLOBALS

VisionMode = Literal["plain", "random_masks", "value", "random"]
"""No masks; masks without a designer; a designer that follows g_down; one that follows a random direction."""


def learner_loss(learner: Dino, designer: MaskDesigner | None) -> Loss:
    """What the student minimizes, under the state of ``with_teacher`` and of what that prepares: with the masks of the designer, which are
    constants to it, or with masks without logits where the state has no designer; no masks for None. ``entropy``: of the teacher's
    distributions, in nats."""

    def loss(trained: Any, frozen: Any, prepared: Batch) -> Sums:
        (_, auxiliary), masks = frozen, None
        if designer is not None:
            steered = auxiliary["steering"].get("designer")
            masks, _ = jax.lax.stop_gradient(_masks(designer, steered, prepared))
        targets = prepared["targets"]
        return {
            "loss": learner.loss(trained, prepared, masks),
            "entropy": -jax.scipy.special.xlogy(targets, targets).sum() / GLOBALS,
            "outputs": prepared["outputs"].mean(axis=1).sum(axis=0),
            "weight": jnp.float32(len(targets)),
        }

    return loss


def with_teacher(learner: Dino, steering: Auxiliary, student: Any) -> Auxiliary:
    """``steering``, of a ``VisionTask``, with the teacher beside it, which follows every step and looks at each batch once, for step and
    update. Every device holds all of both."""

    def prepare(state: Any, frozen: Any, batch: Any) -> Any:
        return over_parts(lambda part: learner.prepare(state["teacher"], part), batch)

    def update(state: Any, training: TrainState, frozen: Any, batch: Any, own: Any, step: jax.Array) -> tuple[Any, Sums]:
        new, figures = steering.update(state["steering"], training, frozen, batch, own, step)
        return state | {"steering": new}, figures

    def follow(state: Any, training: TrainState, sums: Sums) -> tuple[Any, Sums]:
        teacher = learner.follow(state["teacher"], training.params, sums)
        return state | {"teacher": teacher}, {name: total for name, total in sums.items() if name != "outputs"}

    state = {"steering": steering.state, "teacher": learner.start(student)}
    return replace(steering, state=state, prepare=prepare, update=update, follow=follow, specs=None)


@dataclass(frozen=True)
class VisionTask:
    """Designed masks, as ``steering`` asks of a designed task. Its batches are those of ``Dino.prepare``; nothing is frozen.

    Attributes:
        learner: student and teacher.
        designer: of the masks.
        subset: what the value looks at.
        classes: how many there are, the background included.
        weights: of the losses of ``dense_losses``.
        head: how heads are fitted.

    Raises:
        InputError: one of them cannot be used, or does not fit the student.
    """

    learner: Dino
    designer: MaskDesigner
    subset: Subset
    classes: int
    weights: Mapping[str, float]
    head: LinearHead = FEEDBACK_HEAD

    def __post_init__(self) -> None:
        vit, designer = self.learner.vit, self.designer
        if (designer.patch, designer.channels) != (vit.patch, vit.channels):
            raise InputError(
                f"`patch` {designer.patch}, `channels` {designer.channels}: the student's {vit.patch} and {vit.channels} are required"
            )
        if isinstance(self.classes, bool) or not self.classes >= 2:
            raise InputError(f"`classes` {self.classes}: at least 2, the background included, are required")
        if not self.weights or not set(self.weights) <= set(DENSE) or not all(0 < weight < math.inf for weight in self.weights.values()):
            raise InputError(f"`weights` {dict(self.weights)}: a weight above 0 for some of {', '.join(DENSE)} is required")

    def feedback_loss(self, trained: Any, frozen: Any, feedback: Mapping[str, Batch]) -> jax.Array:
        """The weighted loss on the ``meta`` batch of a head that is fitted on the ``train`` batch."""
        return self._fitted_losses(trained, feedback["train"], feedback["meta"], self.subset.layers)["loss"].mean()

    def validation_loss(self, trained: Any, frozen: Any, batch: Batch) -> Sums:
        """The same on other labelled images, ``batch``, of a head that is fitted on ``frozen``, and each of its parts."""
        weights = batch["weights"][:, 0]
        losses = self._fitted_losses(trained, frozen, batch)
        return {name: loss @ weights for name, loss in losses.items()} | {"weight": weights.sum()}

    def _fitted_losses(self, trained: Any, train: Batch, other: Batch, layers: int | None = None) -> dict[str, jax.Array]:
        """Losses of ``other``, of each image (B,), under a head that is fitted on ``train`` with constant features. Derivatives go through
        the last ``layers`` alone. ``loss``: their weighted mean."""
        vit, total = self.learner.vit, sum(self.weights.values())

        def weighted(losses: Mapping[str, jax.Array]) -> jax.Array:
            return sum((weight / total * losses[name] for name, weight in self.weights.items()), jnp.float32(0))

        _, features = vit.build(jax.lax.stop_gradient(trained)["vit"])(train["image"])
        head = self.head.fit(features, self.classes + 1, lambda outputs: weighted(dense_losses(outputs, train)).mean())
        _, features = vit.build(trained["vit"])(other["image"], None, layers)
        losses = dense_losses(self.head.apply(head, features), other)
        return losses | {"loss": weighted(losses)}

    def prepare(self, trained: Any, frozen: Any, direction: Part, batch: Batch) -> dict[str, Any]:
        """The batch with the direction."""
        return {**batch, "direction": direction}

    def value(self, designer: Any, trained: Any, frozen: Any, prepared: Batch) -> Sums:
        """``value``: the derivative of the loss in the direction, forward; ``logit``, the mean size of the designer's."""
        masks, logits = _masks(self.designer, designer, prepared)

        def loss(params: Any, masks: jax.Array, prepared: Batch) -> jax.Array:
            return self.learner.loss(params, prepared, masks, self.subset.layers)

        value = designed_value(loss, trained, self.subset, prepared["direction"], masks, prepared)
        count = jnp.float32(len(masks))
        return {"value": value, "logit": jnp.abs(logits).mean() * count, "weight": count}

    def designed_loss(self, trained: Any, frozen: Any, designer: Any, batch: Batch) -> Sums:
        """The student's loss under the designer, for the gradient of a cosine."""
        masks, _ = _masks(self.designer, designer, batch)
        return {"loss": self.learner.loss(trained, batch, masks, self.subset.layers), "weight": jnp.float32(len(masks))}


@dataclass(frozen=True)
class VisionExperiment:
    """What the arms have in common.

    Attributes:
        task: student, designer, subset, weights of the losses.
        student: its parameters at the start; ``designer``: the designer's.
        steering: settings of the updates.
        rows: unlabelled images.
        feedback: labelled images: ``train``, that heads are fitted on, and ``meta``, that g_down is taken on; ``validation``, where looks
            are to measure the feedback's loss on images that steer nothing.
        feedback_rows: rows of each in one update.
        rate: step -> learning rate of the student.

    Raises:
        InputError: images or labels of another shape than the student's, a class that there is not, or too few rows.
    """

    task: VisionTask
    student: Any
    designer: Any
    steering: Steering
    rows: Images
    feedback: Mapping[str, Images]
    feedback_rows: int
    rate: Callable[[Any], Any]

    def __post_init__(self) -> None:
        vit = self.task.learner.vit
        check_images("rows", self.rows, vit, None)
        if not {"train", "meta"} <= set(self.feedback) <= {"train", "meta", "validation"}:
            found = ", ".join(self.feedback) or "none"
            raise InputError(f"`feedback` {found}: train and meta are required, validation is possible besides")
        for name, images in self.feedback.items():
            check_images(f"feedback {name}", images, vit, self.task.classes)
        for name in ("train", "meta"):
            if not 1 <= self.feedback_rows <= len(self.feedback[name]):
                raise InputError(f"`feedback_rows` {self.feedback_rows}: 1 to {len(self.feedback[name])}, the rows of {name}, are required")

    def problem(self, mode: VisionMode) -> Problem:
        """What ``train.loop.fit`` trains in this mode."""
        steering = Auxiliary({})
        if mode in ("value", "random"):
            steer = {name: self.feedback[name] for name in ("train", "meta")}
            batches = feedback_batches(steer, self.feedback_rows, self.steering)
            settings = replace(self.steering, random=mode == "random")
            steering = designer_auxiliary(self.task, settings, self.designer, batches, self.rate)
        loss = learner_loss(self.task.learner, None if mode == "plain" else self.task.designer)
        validation = self.feedback.get("validation")
        validate = None if validation is None else (self.task.validation_loss, dict(self.feedback["train"].arrays))
        teacher = with_teacher(self.task.learner, steering, self.student)
        return Problem(self.student, [(loss, None)], self.rows, validation, validate, auxiliary=teacher)


def _masks(designer: MaskDesigner, params: Any, prepared: Batch) -> tuple[jax.Array, jax.Array]:
    """Masks of the student's large views, and the designer's logits, which are 0 without parameters: (B, 2, P) each."""
    noise, views = prepared["noise"], prepared["views"][0]
    flat = views.reshape(-1, *views.shape[2:])
    logits = jnp.zeros(noise.shape) if params is None else designer.logits(params, flat).reshape(noise.shape)
    return designer.masks(logits, noise), logits
