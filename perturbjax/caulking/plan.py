"""The plan of a grid, said before it starts: cells, tokens, files, and how long it may take."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax.caulking.cells import Cell
from perturbjax.caulking.setup import Encoded, Parts, row_orders
from perturbjax.models.adapters import trainable_count
from perturbjax.models.config import param_shapes
from perturbjax.report.words import count, plural, size
from perturbjax.runs.console import duration

REACHED = 0.5
"""Part of the rate of large matrix products that a training is expected to reach."""


@dataclass(frozen=True)
class Tokens:
    """Put through the model, padding included, at the width that most rows have.

    Attributes:
        training: of a cell's steps; ``testing``: to measure it. None of the method ``head``, whose features are made once for a base.
        features: of the examples that a head is trained on, for a base; ``test_features``: of those that measure it.
    """

    training: int
    testing: int
    features: int
    test_features: int

    @staticmethod
    def of(parts: Parts, encoded: Encoded) -> "Tokens":
        """Of a grid."""
        fitting, most, made = parts.config.fitting, parts.config.grid.samples[-1], encoded.feature_layout
        drawn = len(np.unique(row_orders(parts)[:, :most])) if "head" in parts.methods else 0
        return Tokens(
            fitting.steps * encoded.layout.tokens(fitting.batch),
            encoded.test_layout.tokens(len(parts.test)),
            made.tokens(drawn),
            made.tokens(len(parts.test)) if drawn else 0,
        )

    def total(self, cells: Sequence[Cell]) -> tuple[int, int]:
        """Of so many cells: of training, and of measuring."""
        whole = sum(cell.method != "head" for cell in cells)
        bases = len({cell.quality for cell in cells if cell.method == "head"})
        return whole * self.training + bases * self.features, whole * self.testing + bases * self.test_features


def trainable(parts: Parts, encoded: Encoded) -> dict[str, int]:
    """Method -> numbers that it trains."""
    found, columns = {}, encoded.columns
    for name, method in parts.methods.items():
        if name == "head":
            config = parts.model.config
            found[name] = config.hidden_size * (config.vocab_size if columns is None else len(columns))
        else:
            shapes = jax.eval_shape(lambda method=method: method.init(parts.model.params, jax.random.key(0)))
            found[name] = trainable_count(shapes)
    return found


def plan_lines(parts: Parts, encoded: Encoded, left: Sequence[Cell], devices: int) -> list[str]:
    """What will be done, a line each; ``left``: the cells that are not trained yet."""
    grid, cells = parts.config.grid, parts.cells
    tokens, trained = Tokens.of(parts, encoded), trainable(parts, encoded)
    sigmas = f"{len(parts.config.bases.sigmas)} bases" if len(parts.config.bases.sigmas) > 1 else "1 base"
    what = f"{', '.join(grid.methods)}; {sigmas}, {len(grid.samples)} numbers of examples, {plural(grid.seeds, 'seed')}"
    kept = {name: 4 * trained[name] for name in grid.methods if encoded.keeps(name)}
    files = sum(kept.get(cell.method, 0) for cell in cells)
    lines = [
        f"plan       {count(len(cells))} cells ({what})" + (f", {count(len(left))} left" if len(left) < len(cells) else ""),
        f"trained    {', '.join(f'{name} {count(trained[name])}' for name in grid.methods)} parameters; files {size(files)}",
    ]
    if set(grid.methods) != {"head"}:
        steps, testing = parts.config.fitting.steps, count(tokens.testing)
        lines.insert(1, f"a cell     {count(tokens.training)} tokens in {steps} steps, {testing} to measure it")
    if "head" in grid.methods:
        made = count(tokens.features + tokens.test_features)
        lines.append(f"a head     reads hidden states of {made} tokens, made once for a base; its cells put none through the model")
    seconds = _flops(parts, tokens, left) / (REACHED * _rate(parts) * devices)
    # How long it takes to compile is known when it is done: it depends on the layers, the widths and the compiler, not on the arithmetic.
    compiling = f"besides compiling {plural(len({cell.method for cell in left}), 'program')}"
    rest = "the bar, which counts that too, tells more after the first cells"
    return [*lines, f"expected   about {duration(seconds)} by matrix products timed here, {compiling}; {rest}"]


def missing_classes(parts: Parts) -> Sequence[int]:
    """Numbers of samples with which some answer is never seen in training: fewer than the answers, or an answer has test examples alone."""
    there = set(parts.classes)
    asked = there | {example.choices.index(example.answer) for example in parts.test}
    return [n for n in parts.config.grid.samples if n < len(asked) or there != asked]


def _flops(parts: Parts, tokens: Tokens, cells: Sequence[Cell]) -> float:
    """Of so many cells: 2 a weight and token forward, and in training as many backward to the inputs, which all methods but ``head`` need.
    Weights of the layers alone, since a head is read at few positions."""
    weights = sum(int(np.prod(shape)) for path, shape in param_shapes(parts.model.config).items() if path.startswith("layers/"))
    passes = 2 + parts.config.grid.remat
    whole = sum(cell.method != "head" for cell in cells) * (passes * tokens.training + tokens.testing)
    heads = len({cell.quality for cell in cells if cell.method == "head"}) * (tokens.features + tokens.test_features)
    return 2.0 * weights * (whole + heads)


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
