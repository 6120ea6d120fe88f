"""Self-distillation without labels: DINO (arXiv 2104.14294), with masks on what the student sees.

A student is to give its views of an image the distribution over prototypes that a teacher gives the other large view. The teacher is an
exponential moving average of the student, and its outputs are centered by such an average of themselves. Both are carried beside what is
trained, in the state of an ``Auxiliary``.

Axis letters: B images, S pixels of a side, C channels, P patches, D model, K prototypes, V views of an image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax.errors import InputError, positive_integer
from perturbjax.models.vit import ViTConfig
from perturbjax.train.step import Sums
from perturbjax.vpretrain.views import GLOBALS, Views, row_keys

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Dino:
    """What is pretrained: a student, which is trained, and its teacher.

    Attributes:
        vit: its backbone.
        views: what it sees of an image.
        prototypes: K.
        width, bottleneck: of the head between class token and prototypes.
        student_temperature, teacher_temperature: that outputs are divided by.
        momentum: of the teacher in each step; ``center_momentum``: of the center.
        seed: of the views.

    Raises:
        InputError: one of them cannot be used, or small views are not whole patches.
    """

    vit: ViTConfig
    views: Views
    prototypes: int = 128
    width: int = 128
    bottleneck: int = 32
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    momentum: float = 0.99
    center_momentum: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("prototypes", "width", "bottleneck"):
            positive_integer(name, getattr(self, name))
        for name in ("student_temperature", "teacher_temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"`{name}` {getattr(self, name)}: a number above 0 is required")
        for name in ("momentum", "center_momentum"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"`{name}` {getattr(self, name)}: a number from 0 to 1 is required")
        if self.views.locals and (self.views.local % self.vit.patch or self.views.local > self.vit.image):
            sizes = f"a multiple of `patch` {self.vit.patch}, at most `image` {self.vit.image}"
            raise InputError(f"`local` {self.views.local}: {sizes}, is required")

    def init(self, seed: int) -> dict[str, Any]:
        """The student's random parameters, nested dicts of float32 numpy arrays."""
        rng, sizes = np.random.default_rng(seed), (self.vit.hidden, self.width, self.bottleneck, self.prototypes)

        def layer(inputs: int, outputs: int) -> dict[str, np.ndarray]:
            return {"kernel": rng.normal(0, inputs**-0.5, (inputs, outputs)).astype(np.float32)}

        names = ("up", "down", "prototypes")
        return {"vit": self.vit.init(seed), "head": {name: layer(*sizes[i : i + 2]) for i, name in enumerate(names)}}

    def start(self, student: Any) -> dict[str, Any]:
        """The teacher at the start: the student, a center of 0, and the steps taken, by which views are drawn."""
        return {"params": student, "center": jnp.zeros(self.prototypes), "step": jnp.int32(0)}

    def follow(self, teacher: Any, student: Any, sums: Sums) -> dict[str, Any]:
        """The teacher after a step: averages with the student, and of the center with the mean of the teacher's ``outputs`` in the step."""

        def average(momentum: float, old: Any, new: Any) -> Any:
            return jax.tree.map(lambda one, other: momentum * one + (1 - momentum) * other, old, new)

        center = average(self.center_momentum, teacher["center"], sums["outputs"] / sums["weight"])
        return {"params": average(self.momentum, teacher["params"], student), "center": center, "step": teacher["step"] + 1}

    def outputs(self, params: Any, views: jax.Array, masks: jax.Array | None = None, differentiated: int | None = None) -> jax.Array:
        """Cosines of each view with the prototypes: (B, V, S, S, C), masks (B, V, P) -> (B, V, K)."""
        flat, masks = views.reshape(-1, *views.shape[2:]), masks if masks is None else masks.reshape(-1, masks.shape[-1])
        state, _ = self.vit.build(params["vit"])(flat, masks, differentiated)
        head = params["head"]
        state = jax.nn.gelu(state @ head["up"]["kernel"]) @ head["down"]["kernel"]
        return (_unit(state, -1) @ _unit(head["prototypes"]["kernel"], 0)).reshape(*views.shape[:2], -1)

    def prepare(self, teacher: Any, batch: Batch) -> dict[str, Any]:
        """What of the loss does not depend on the student: ``views``, the large ones first; the teacher's ``outputs`` (B, 2, K) of these
        and its distributions, ``targets``; ``noise`` of masks (B, 2, P)."""
        keys = row_keys(self.seed, teacher["step"], batch["row"])
        views = self.views.make(batch["image"], keys)
        outputs = self.outputs(teacher["params"], views[0])
        targets = jax.nn.softmax((outputs - teacher["center"][None, None]) / self.teacher_temperature, axis=-1)
        noise = jax.vmap(lambda key: jax.random.logistic(jax.random.fold_in(key, 1), (GLOBALS, self.vit.grid**2)))(keys)
        return jax.lax.stop_gradient({"views": views, "outputs": outputs, "targets": targets, "noise": noise})

    def loss(self, params: Any, prepared: Batch, masks: jax.Array | None, differentiated: int | None = None) -> jax.Array:
        """() the sum over images of the mean cross-entropy of the teacher's large views and the student's other views; masks (B, 2, P) of
        the student's large ones."""
        large, *small = prepared["views"]
        outputs = [self.outputs(params, large, masks, differentiated)]
        outputs += [self.outputs(params, views, None, differentiated) for views in small]
        log_probs = jax.nn.log_softmax(jnp.concatenate(outputs, axis=1) / self.student_temperature, axis=-1)
        pairs = -jnp.einsum("bik,bjk->bij", prepared["targets"], log_probs)
        other = 1 - jnp.eye(pairs.shape[1], pairs.shape[2])
        return jnp.sum(pairs * other[None]) / other.sum()


def _unit(x: jax.Array, axis: int) -> jax.Array:
    """Of norm 1 along an axis."""
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=axis, keepdims=True) + 1e-12)
