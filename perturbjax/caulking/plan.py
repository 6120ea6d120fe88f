"""The plan of a grid, said before it starts: cells, tokens, files, and how long it may take."""

import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax.caulking.config import KEPT
from perturbjax.caulking.setup import Encoded, Parts
from perturbjax.models.adapters import trainable_count
from perturbjax.models.config import param_shapes
from perturbjax.report.words import count, size
from perturbjax.runs.console import duration

REACHED = 0.5
"""Part of the rate of large matrix products that a training is expected to reach."""


def trained_tokens(parts: Parts, encoded: Encoded) -> tuple[int, int]:
    """Tokens of a cell, padding included: put through the model in training, and to measure it."""
    fitting = parts.config.fitting
    return fitting.steps * fitting.batch * encoded.train.padded_tokens, len(parts.test) * encoded.test.padded_tokens


def trainable(parts: Parts) -> dict[str, int]:
    """Method -> numbers that it trains."""
    found = {}
    for name, method in parts.methods.items():
        shapes = jax.eval_shape(lambda method=method: method.init(parts.model.params, jax.random.key(0)))
        found[name] = trainable_count(shapes)
    return found


def plan_lines(parts: Parts, encoded: Encoded, left: int, devices: int) -> list[str]:
    """What will be done, a line each; ``left``: cells that are not trained yet."""
    grid, cells = parts.config.grid, parts.cells
    training, testing = trained_tokens(parts, encoded)
    trained = trainable(parts)
    sigmas = f"{len(parts.config.bases.sigmas)} bases" if len(parts.config.bases.sigmas) > 1 else "1 base"
    what = f"{', '.join(grid.methods)}; {sigmas}, {len(grid.samples)} numbers of examples, {grid.seeds} seeds"
    kept = {name: 4 * trained[name] for name in grid.methods if name in KEPT}
    files = sum(kept.get(cell.method, 0) for cell in cells)
    lines = [
        f"plan       {count(len(cells))} cells ({what})" + (f", {count(left)} left" if left < len(cells) else ""),
        f"a cell     {count(training)} tokens in {parts.config.fitting.steps} steps, {count(testing)} to measure it",
        f"trained    {', '.join(f'{name} {count(trained[name])}' for name in grid.methods)} parameters; files {size(files)}",
    ]
    seconds = left * _flops(parts, training, testing) / (REACHED * _rate(parts) * devices)
    return [*lines, f"expected   about {duration(seconds)}, by matrix products timed here; the bar tells more after the first cells"]


def missing_classes(parts: Parts) -> Sequence[int]:
    """Numbers of samples that are fewer than the different answers, so that some answer is never seen."""
    kinds = len(np.unique(parts.classes))
    return [n for n in parts.config.grid.samples if n < kinds]


def _flops(parts: Parts, training: int, testing: int) -> float:
    """Of a cell: 2 a weight and token forward, as many backward to the inputs, which all methods need. Weights of the layers alone, since a
    head is read at few positions."""
    weights = sum(int(np.prod(shape)) for path, shape in param_shapes(parts.model.config).items() if path.startswith("layers/"))
    return 2.0 * weights * ((2 + parts.config.grid.remat) * training + testing)


def _rate(parts: Parts) -> float:
    """Floating-point operations a second of one device, by a product of the ffn's shape."""
    config = parts.model.config
    dtype = parts.model.params["embed"]["embedding"].dtype
    x, w = jnp.ones((512, config.hidden_size), dtype), jnp.ones((config.hidden_size, config.intermediate_size), dtype)
    product = jax.jit(lambda x, w: x @ w)
    product(x, w).block_until_ready()
    best = np.inf
    for _ in range(5):
        started = time.perf_counter()
        product(x, w).block_until_ready()
        best = min(best, time.perf_counter() - started)
    return 2.0 * 512 * config.hidden_size * config.intermediate_size / best
