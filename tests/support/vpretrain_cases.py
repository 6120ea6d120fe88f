"""A learner of two layers on 23 tokens, a designer beside it, and batches for both: small enough to be differentiated twice."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax.models.config import DecoderConfig, param_shapes
from perturbjax.train.demonstrations import EncodedDemonstration
from perturbjax.train.rows import Rows, pack_rows
from perturbjax.tree import nest
from perturbjax.vpretrain.designer import TopKDesigner
from perturbjax.vpretrain.text import Learner, TextTask
from perturbjax.vpretrain.value import make_subset

VOCABULARY, K = 23, 5
CONFIG = DecoderConfig("toy", VOCABULARY, 16, 24, 2, 2, 1, 8, 1e4, 1e-5, True)
LEARNER = Learner(CONFIG, jnp.float32)
SMALL = Learner(replace(CONFIG, num_layers=1), jnp.float32)
"""Of one layer, for whole steps, which take longest to compile."""
DESIGNER = TopKDesigner(VOCABULARY, K, hidden=16, layers=1, heads=2)


def params(config: DecoderConfig = CONFIG, seed: int = 0) -> Any:
    """Large enough that distributions are far from uniform."""
    rng = np.random.default_rng(seed)

    def one(path: str, shape: tuple[int, ...]) -> np.ndarray:
        start = np.ones(shape) if path.endswith("scale") else 0
        return (start + rng.normal(0, 0.3, shape)).astype(np.float32)

    return nest({path: one(path, shape) for path, shape in param_shapes(config).items()})


def designer_params(designer: TopKDesigner = DESIGNER, seed: int = 1) -> Any:
    """Embeddings of size 1: at their own start they are too small to be tested."""
    tree = designer.init(seed)
    tree["decoder"]["embed"]["embedding"] *= 50
    return tree


def rows(count: int = 12, seed: int = 0, row_tokens: int = 20) -> Rows:
    rng = np.random.default_rng(seed)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(map(int, rng.integers(0, VOCABULARY, rng.integers(low, high))))

    return pack_rows([EncodedDemonstration(str(i), tokens(1, 5), tokens(1, 6)) for i in range(count)], row_tokens, per_demonstration=True)


def batch(some: Rows, first: int = 0, count: int = 2) -> dict[str, jax.Array]:
    return {name: jnp.asarray(array) for name, array in some.batch(np.arange(first, first + count) % len(some)).items()}


def task(designer: TopKDesigner = DESIGNER, layers: int = 1, sets: tuple[str, ...] = ("one",), learner: Learner = LEARNER) -> TextTask:
    subset = make_subset(params(learner.config), layers)
    return TextTask(learner, designer, subset, {name: float(number + 1) for number, name in enumerate(sets)})
