"""A student of two layers on images of 16 pixels, and a designer of its masks: small enough to be differentiated twice."""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax.models.vit import ViTConfig
from perturbjax.train import Training
from perturbjax.train.optimizer import learning_rates
from perturbjax.vpretrain.dino import Dino
from perturbjax.vpretrain.images import Images
from perturbjax.vpretrain.masks import MaskDesigner
from perturbjax.vpretrain.probes import LinearHead
from perturbjax.vpretrain.steering import Steering
from perturbjax.vpretrain.value import make_subset
from perturbjax.vpretrain.views import Views
from perturbjax.vpretrain.vision import VisionExperiment, VisionTask

VIT, CLASSES, STEPS = ViTConfig(image=16, patch=4, hidden=8, layers=2, heads=2), 3, 5
LEARNER = Dino(VIT, Views(local=8, locals=0), prototypes=8, width=8, bottleneck=4, momentum=0.9)
SMALL = replace(LEARNER, vit=replace(VIT, layers=1))
"""Of one layer, for whole steps, which take longest to compile."""
DESIGNER = MaskDesigner(VIT.patch, width=4)
TRAINING = Training(steps=STEPS, batch_rows=2, every=2, learning_rate=3e-3)


def _moved(tree: Any, seed: int) -> Any:
    """From the start, where many leaves are 0."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.2, leaf.shape).astype(np.float32), tree)


@functools.cache
def start() -> Any:
    return LEARNER.init(0)


def student(learner: Dino = LEARNER, seed: int = 0) -> Any:
    vit = start()["vit"]
    return _moved(start() | {"vit": vit | {"layers": jax.tree.map(lambda leaf: leaf[: learner.vit.layers], vit["layers"])}}, seed)


def designer_params() -> Any:
    return _moved(DESIGNER.init(0), 0)


def images(count: int, seed: int = 0, labelled: bool = False) -> Images:
    rng, patches = np.random.default_rng(seed), VIT.grid**2
    arrays: dict[str, np.ndarray] = {"image": rng.random((count, VIT.image, VIT.image, 3), np.float32)}
    if labelled:
        arrays["classes"] = rng.integers(0, CLASSES, (count, patches)).astype(np.int32)
        arrays["depth"] = rng.random((count, patches), np.float32)
    return Images(arrays)


def batch(rows: Images, count: int) -> dict[str, jax.Array]:
    return {name: jnp.asarray(array) for name, array in rows.batch(np.arange(count)).items()}


def task(learner: Dino = LEARNER) -> VisionTask:
    subset, weights = make_subset(student(learner), 1), {"segmentation": 3.0, "depth": 1.0}
    return VisionTask(learner, DESIGNER, subset, CLASSES, weights, LinearHead(steps=20))


def experiment() -> VisionExperiment:
    feedback = {"train": images(6, 1, labelled=True), "meta": images(6, 2, labelled=True)}
    steering, rate = Steering("preconditioned", every=2, learning_rate=0.01), learning_rates(TRAINING, STEPS)
    return VisionExperiment(task(SMALL), student(SMALL), designer_params(), steering, images(8), feedback, 2, rate)
