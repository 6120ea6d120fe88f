"""Bases of several qualities by the rows that they were pretrained on, each stopped early."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from perturbjax.caulking.cells import Cell
from perturbjax.caulking.grid import run_grid
from perturbjax.caulking.program import Fitting, Loss, Method
from perturbjax.errors import InputError
from perturbjax.runs.console import SILENT, Progress
from perturbjax.tree import Params


def pretrain(
    loss: Loss,
    error: Loss,
    init: Callable[[jax.Array], Params],
    data: Any,
    validation: Any,
    sources: Sequence[int],
    seeds: Sequence[int],
    lengths: Sequence[int],
    batch: int,
    learning_rate: float,
    *,
    per_seed: bool = False,
    progress: Progress = SILENT,
) -> dict[float, Any]:
    """Models pretrained from scratch on m source rows, for each m and seed; of several lengths of training the best on other rows is taken,
    as early stopping would.

    Args:
        loss, error, init: as of ``run_grid``; ``error`` chooses the length.
        data: source rows, arrays with leading N.
        validation: what ``error`` takes; rows that are not in ``data``.
        sources: m.
        seeds: of the rows' order and of ``init``.
        lengths: steps of pretraining.
        batch: rows of a step.
        learning_rate: highest.
        per_seed: ``data`` and ``validation`` have a leading axis of the seeds.
        progress: told of chunks.

    Returns:
        m -> parameters with a leading axis of the seeds, as ``run_grid(per_seed=True)`` takes its bases.

    Raises:
        InputError: as ``run_grid``, or every training of some m and seed diverged.
    """
    best: dict[tuple[int, int], tuple[float, Any]] = {}
    for steps in lengths:
        kept: dict[tuple[int, int], Any] = {}

        def keep(cell: Cell, trained: Any, kept: dict[tuple[int, int], Any] = kept) -> None:
            kept[cell.samples, cell.seed] = trained["caulk"]

        cells = run_grid(
            loss, error, {}, {"source": Method(None, learning_rate=learning_rate)}, data, validation, sources, seeds, Fitting(steps, batch),
            init=init, per_seed=per_seed, keep=keep, progress=progress,
        )  # fmt: skip
        for cell in cells:
            if cell.error < best.get((cell.samples, cell.seed), (np.inf,))[0]:
                best[cell.samples, cell.seed] = cell.error, kept[cell.samples, cell.seed]
    for m, seed in ((m, seed) for m in sources for seed in seeds if (m, seed) not in best):
        raise InputError(f"`learning_rate` {learning_rate}: training on {m} rows diverged at all `lengths` (seed {seed}); lower it")
    return {float(m): jax.tree.map(lambda *leaves: np.stack(leaves), *(best[m, seed][1] for seed in seeds)) for m in sources}
