"""What training many caulks at once saves: ratios of programs that take turns in one process, on weights that are made up.

| row | ratio | aim |
|---|---|---|
| grid, by cells | a Python loop over the same compiled training, cell by cell, over the grid | at least 20 |
| grid, by steps | a Python loop over cells and compiled steps, over the grid | at least 20 |
| grid on D devices | cells a second of the grid sharded over all D devices, over those on one; where there are several | at least 0.9 |
| caulks on one base | one fine-tuning of all weights over so many LoRA caulks at the same total batch, steps alone | at least 0.9 |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from perturbjax.bench.values import Ratio, made_up_weights, ratio_row, shape
from perturbjax.caulking.language import ChoiceProblem
from perturbjax.caulking.program import CellArrays, Fitting, GridProgram, Method, Shared, evenly_in_flight
from perturbjax.caulking.questions import Layout
from perturbjax.inference.packing import PROMPT
from perturbjax.models.adapters import LoRA, full, head
from perturbjax.models.config import DecoderConfig
from perturbjax.sharding import make_mesh, put_replicated
from perturbjax.train import Training
from perturbjax.train.optimizer import make_optimizer


@dataclass(frozen=True)
class Sizes:
    """Shapes of the rows.

    Attributes:
        width, cells, in_flight: of the grid: hidden units of a network of two tanh layers, cells, those that are vmapped together.
        steps, batch: of each cell, rows of a step.
        looped: cells that the loop over steps trains; its time is scaled to all.
        model, caulks, rows, tokens, caulk_steps: of the language model: its shape, caulks, rows of each in a step, their tokens, steps.
    """

    width: int
    cells: int
    in_flight: int
    steps: int
    batch: int
    looped: int
    model: DecoderConfig
    caulks: int
    rows: int
    tokens: int
    caulk_steps: int


SIZES = Sizes(64, 144, 16, 300, 32, 4, shape(16384, 384, 8, 1024, 6, 2, True), 8, 4, 64, 3)
"""Of the grid: the networks and cells of the toy of scripts/recipes/caulking, shorter."""


def measure(sizes: Sizes, rounds: int) -> Iterator[Ratio]:
    """The rows, one after the other."""
    yield from grid_rows(sizes, rounds)
    yield _caulks(sizes, rounds)


def grid_rows(sizes: Sizes, rounds: int) -> Iterator[Ratio]:
    """Those of grids, on all devices: LoRA on the second layer and a new head, as in the toy. A CPU is one device, of which small networks
    use one core; with as many forced devices as cores (``--xla_force_host_platform_device_count``) a grid uses them all."""
    rng, w = np.random.default_rng(0), sizes.width

    def layer(rows: int, columns: int) -> dict[str, np.ndarray]:
        kernel = rng.normal(0, rows**-0.5, (rows, columns)).astype(np.float32)
        return {"kernel": kernel, "bias": np.zeros(columns, np.float32)}

    base = {"first": layer(16, w), "second": layer(w, w), "head": layer(w, 1)}
    data, test = ((rng.normal(size=(n, 16)).astype(np.float32), rng.normal(size=(n, 1)).astype(np.float32)) for n in (1024, 2048))

    def loss(params: Any, batch: Any) -> jax.Array:
        h = batch[0]
        for name in ("first", "second"):
            layer = params[name]
            y = h @ layer["kernel"] + layer["bias"][None]
            h = jnp.tanh(y + (h @ layer["lora_a"]) @ layer["lora_b"] if "lora_a" in layer else y)
        return jnp.square(h @ params["head"]["kernel"] + params["head"]["bias"][None] - batch[1]).mean()

    method, fitting = Method(LoRA(2, 2.0, ("second/kernel",)), head(), attach=True), Fitting(sizes.steps, sizes.batch)
    mesh, one, rows = make_mesh(), make_mesh(jax.devices()[:1]), Shared(base, data, test, np.arange(1024, dtype=np.int32)[None])
    on_all, shared = put_replicated(rows, mesh), put_replicated(rows, one)

    def program(mesh: Mesh, in_flight: int) -> GridProgram:
        return GridProgram(loss, loss, method, fitting, mesh, evenly_in_flight(in_flight, sizes.cells, mesh))

    together, alone = program(mesh, sizes.in_flight), program(one, 1)
    cells = CellArrays(
        np.arange(sizes.cells, dtype=np.uint32),
        np.zeros(sizes.cells, np.int32),
        np.resize(np.array([16, 128, 1024], np.int32), sizes.cells),
    )

    def in_chunks(program: GridProgram, shared: Shared) -> None:
        for start in range(0, sizes.cells, program.chunk):
            program(shared, jax.tree.map(lambda leaf, start=start: leaf[start : start + program.chunk], cells))

    by_steps = _loop_of_steps(sizes, loss, method, shared)
    what = f"{sizes.cells} cells, {together.chunk} together, of {sizes.steps} steps of {sizes.batch} rows, {w} hidden units"
    programs: dict[str, Callable[[], Any]] = {"grid": lambda: in_chunks(together, on_all), "cells": lambda: in_chunks(alone, shared)}
    yield ratio_row("grid, by cells", what, 20.0, True, programs, rounds, lambda s: s["cells"] / s["grid"])
    scale = sizes.cells / sizes.looped
    what = f"the same, of {sizes.looped} cells, scaled to all"
    programs = {"grid": programs["grid"], "steps": by_steps}
    yield ratio_row("grid, by steps", what, 20.0, True, programs, rounds, lambda s: scale * s["steps"] / s["grid"])
    if (devices := jax.device_count()) > 1:
        whole, spread = program(one, sizes.in_flight), program(mesh, max(1, sizes.in_flight // devices))
        what = f"{sizes.cells} cells, {spread.chunk} together; forced devices of a CPU share its cores"
        programs = {"one": lambda: in_chunks(whole, shared), "all": lambda: in_chunks(spread, on_all)}
        yield ratio_row(f"grid on {devices} devices", what, 0.9, True, programs, rounds, lambda s: s["one"] / s["all"])


def _loop_of_steps(sizes: Sizes, loss: Any, method: Method, shared: Shared) -> Callable[[], Any]:
    """What one writes without a grid: a compiled step, called for every step of every cell with a batch that the host draws."""
    optimizer = make_optimizer(Training(steps=sizes.steps, learning_rate=method.learning_rate), sizes.steps)

    @jax.jit
    def step(trained: Any, moments: Any, batch: Any) -> Any:
        gradients = jax.grad(lambda trained: loss(method.apply(shared.base, trained), batch))(trained)
        updates, moments = optimizer.update(gradients, moments, trained)
        return jax.tree.map(jnp.add, trained, updates), moments

    error = jax.jit(lambda trained: loss(method.apply(shared.base, trained), shared.test))
    x, y = jax.device_get(shared.data)

    def run() -> Any:
        rng, errors = np.random.default_rng(0), []
        for seed in range(sizes.looped):
            trained = method.init(shared.base, jax.random.key(seed))
            moments = optimizer.init(trained)
            for _ in range(sizes.steps):
                rows = rng.integers(0, 128, sizes.batch)
                trained, moments = step(trained, moments, (x[rows], y[rows]))
            errors.append(error(trained))
        return errors

    return run


def _caulks(sizes: Sizes, rounds: int) -> Ratio:
    """A few steps of LoRA caulks of one base at once, and of all its weights on as many rows."""
    rng, config, t = np.random.default_rng(0), sizes.model, sizes.tokens
    n = sizes.caulks * sizes.rows
    tokens, last = rng.integers(0, config.vocab_size, (n, t)).astype(np.int32), np.full((n, 1), t - 1, np.int32)
    labels, places = rng.integers(0, config.vocab_size, (n, 1, 2)).astype(np.int32), np.tile(np.arange(t, dtype=np.int32), (n, 1))
    data = {"tokens": tokens, "positions": places, "branch": np.full((n, t), PROMPT, np.int32), "lengths": np.full(n, t, np.int32)}
    data |= {"query": last, "labels": labels, "answer": np.zeros(n, np.int32)}
    test, mesh = jax.tree.map(lambda array: array[:1], data), make_mesh(jax.devices()[:1])
    shared = put_replicated(Shared(made_up_weights(config, 0), data, test, np.arange(n, dtype=np.int32)[None]), mesh)
    one_a_row = Layout((), 1, (t,))
    problem = ChoiceProblem(config, one_a_row, one_a_row)

    def nothing(params: Any, test: Any) -> jax.Array:
        """In place of the error, which eight caulks would have measured on eight times the questions of one model."""
        return jnp.float32(0)

    def program(method: Method, cells: int, rows: int) -> Callable[[], Any]:
        made = GridProgram(problem.loss, nothing, method, Fitting(sizes.caulk_steps, rows), mesh, cells)
        arrays = CellArrays(np.arange(cells, dtype=np.uint32), np.zeros(cells, np.int32), np.full(cells, n, np.int32))
        return lambda: made(shared, arrays)

    programs = {
        "caulks": program(Method(LoRA(8), attach=True), sizes.caulks, sizes.rows),
        "plain": program(Method(full(), learning_rate=1e-4), 1, n),
    }
    what = f"{sizes.caulks} caulks, {sizes.rows} rows of {t} tokens each, {sizes.caulk_steps} steps"
    return ratio_row("caulks on one base", what, 0.9, True, programs, rounds, lambda s: s["plain"] / s["caulks"])
