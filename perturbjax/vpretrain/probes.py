"""Linear heads on features: fitted on labelled images, read on others. As probes they measure a frozen student.

Axis letters: B images, P patches, D model, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from perturbjax.models.vit import ViTConfig
from perturbjax.train.optimizer import promoting
from perturbjax.vpretrain.dino import Batch
from perturbjax.vpretrain.images import Images


@dataclass(frozen=True)
class LinearHead:
    """A linear head with batch normalization before it, fitted by Adam on all rows at once.

    Attributes:
        steps, rate: of Adam, from a kernel of zeros.
    """

    steps: int = 50
    rate: float = 0.1

    def fit(self, features: jax.Array, outputs: int, loss: Callable[[jax.Array], jax.Array]) -> dict[str, jax.Array]:
        """The head that makes a loss of its outputs small: features (..., D), loss (..., outputs) -> ()."""
        features = jax.lax.stop_gradient(features)
        flat = features.reshape(-1, features.shape[-1])
        fixed = {"mean": flat.mean(axis=0), "scale": 1 / jnp.sqrt(flat.var(axis=0) + 1e-5)}
        adam = optax.adam(self.rate)

        def step(carry: Any, _: None) -> tuple[Any, None]:
            head, moments = carry
            gradient = jax.grad(lambda head: loss(self.apply(fixed | head, features)))(head)
            updates, moments = promoting(adam.update)(gradient, moments)
            return (optax.apply_updates(head, updates), moments), None

        head = {"kernel": jnp.zeros((features.shape[-1], outputs)), "bias": jnp.zeros(outputs)}
        (head, _), _ = jax.lax.scan(step, (head, promoting(adam.init)(head)), length=self.steps)
        return fixed | head

    @staticmethod
    def apply(head: Mapping[str, jax.Array], features: jax.Array) -> jax.Array:
        """(..., D) -> (..., outputs)."""
        kernel = head["scale"][:, None] * head["kernel"]
        bias = head["bias"] - head["mean"] @ kernel
        return features @ kernel + bias.reshape((1,) * (features.ndim - 1) + (-1,))


FEEDBACK_HEAD = LinearHead()
"""How heads are fitted at an update of the designer."""
DENSE = "segmentation", "depth"
"""Losses of dense labels."""


def dense_losses(outputs_BxPxO: jax.Array, labels: Batch) -> dict[str, jax.Array]:
    """Of each image (B,): ``segmentation``, the cross-entropy of ``classes`` in nats a patch, and ``depth``, the mean absolute error.

    Outputs are a logit for each class and a depth."""
    log_probs = jax.nn.log_softmax(outputs_BxPxO[..., :-1], axis=-1)
    picked = jnp.take_along_axis(log_probs, labels["classes"][..., None], axis=-1)
    return {"segmentation": -picked.mean(axis=(1, 2)), "depth": jnp.abs(outputs_BxPxO[..., -1] - labels["depth"]).mean(axis=1)}


@dataclass(frozen=True)
class Probed:
    """What probes find of a frozen student on test images.

    Attributes:
        class_accuracy: of the class of an image, read from the class token.
        segmentation: share of patches whose class is right; ``miou``: mean over classes of intersection over union.
        depth: mean absolute error of a patch's depth.
    """

    class_accuracy: float
    segmentation: float
    miou: float
    depth: float


PROBE = LinearHead(steps=300, rate=0.03)
"""How probes are fitted."""


def probe(vit: ViTConfig, student: Any, train: Images, test: Images, classes: tuple[int, int], head: LinearHead = PROBE) -> Probed:
    """Linear probes, the class token's and the patches', fitted on some labelled images and measured on others.

    Args:
        vit: the student's shape.
        student: its parameters, as training gives them.
        train, test: images with ``label`` (N,) beside ``classes`` and ``depth`` (N, P).
        classes: how many classes images have, and how many patches have.
        head: how heads are fitted.
    """

    @jax.jit
    def outputs(student: Any, train: Mapping[str, jax.Array], test: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        model = vit.build(student["vit"])
        (state, patches), (test_state, test_patches) = model(train["image"]), model(test["image"])

        def of_class(logits: jax.Array) -> jax.Array:
            return -jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), train["label"][:, None], axis=-1).mean()

        def dense(outputs: jax.Array) -> jax.Array:
            return sum(dense_losses(outputs, train).values(), jnp.float32(0)).mean()

        fitted = head.fit(state, classes[0], of_class), head.fit(patches, classes[1] + 1, dense)
        return head.apply(fitted[0], test_state), head.apply(fitted[1], test_patches)

    logits, dense = map(np.asarray, outputs(student, train.arrays, test.arrays))
    labels, found = test.arrays, dense[..., :-1].argmax(axis=-1)
    right = found == labels["classes"]
    both = np.array([np.sum(right & (found == number)) for number in range(classes[1])])
    either = np.array([np.sum((found == number) | (labels["classes"] == number)) for number in range(classes[1])])
    error = np.abs(dense[..., -1] - labels["depth"]).mean()
    accuracy = np.mean(logits.argmax(axis=-1) == labels["label"])
    return Probed(float(accuracy), float(right.mean()), float(np.mean(both / np.maximum(either, 1))), float(error))
