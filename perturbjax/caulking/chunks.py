"""``train_cells``: the cells of a grid that are not trained yet, by one compiled program a method, committed chunk by chunk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from perturbjax import sharding
from perturbjax.caulking.cells import Cell, CellTable
from perturbjax.caulking.program import CellArrays, GridProgram, Shared
from perturbjax.runs.console import SILENT, Progress
from perturbjax.runs.files import MetricsLog
from perturbjax.tree import Params

Bases = Mapping[float, Params | Callable[[], Params]]
"""Quality of the pretraining -> parameters, or a function that makes them when they are needed."""


def train_cells(
    table: CellTable,
    programs: Mapping[str, GridProgram],
    bases: Bases,
    shared: Shared,
    seeds: Sequence[int],
    mesh: Mesh,
    state: Any = None,
    metrics: MetricsLog | None = None,
    keep: Callable[[Cell, Any], None] | None = None,
    progress: Progress = SILENT,
    again: Set[int] = frozenset(),
) -> None:
    """Trains the cells that are not done yet, chunk by chunk, each of one method and quality, and commits every chunk.

    Args:
        table: filled in place, from ``state`` first.
        programs: one a method.
        shared: on the host; its base is None, ``bases`` have it.
        state: ``RunState`` of ``table.tree``, with ``metrics``; None: nothing is committed.
        keep: called with what the cells of programs that return it have trained.
        again: numbers of cells that are done and whose ``keep`` is called once more. Their chunks are trained as they were, since what is
            trained beside a cell decides how its sums are rounded; figures stay, and nothing is committed.
    """
    if state is not None and metrics is not None:
        metrics.rewind(state.step)
        if state.step:
            table.load(state.tree, state.record)
    left = ~table.done
    left[sorted(again)] = True
    if not left.any():
        return
    put = sharding.put_replicated((shared.data, shared.test, shared.order), mesh)
    position = {seed: number for number, seed in enumerate(seeds)}
    with progress.bar("training", len(left), int((~left).sum()), unit="cell") as bar:
        held: tuple[float | None, Any] = (None, None)
        for method, quality, numbers in _groups(table.cells):
            if not left[numbers].any():
                continue
            if quality is not None and held[0] != quality:
                base: Any = bases[quality]
                held = quality, sharding.put_replicated(base() if callable(base) else base, mesh)
            program, began = programs[method], time.perf_counter()
            shown = Shared(held[1] if quality is not None else (), *put)
            if program.freeze is not None:
                shown = program.freeze(shown)
                table.seconds += time.perf_counter() - began
            for chunk in _chunks(numbers, table.done, again, program.chunk):
                began, new = time.perf_counter(), not table.done[chunk].all()
                results = program(shown, _arrays([table.cells[number] for number in chunk], position))
                if new:
                    table.record(chunk, results)
                    table.seconds += time.perf_counter() - began
                if keep is not None and "trained" in results:
                    for place, number in enumerate(chunk):
                        if new or number in again:
                            keep(table.cells[number], jax.tree.map(lambda leaf, place=place: leaf[place], results["trained"]))
                if new and state is not None and metrics is not None:
                    _commit(table, chunk, state, metrics, time.perf_counter() - began)
                left[chunk] = False
                bar.update(int((~left).sum()), now=f"{method} {'scratch' if quality is None else format(quality, 'g')}")


def _commit(table: CellTable, chunk: np.ndarray, state: Any, metrics: MetricsLog, seconds: float) -> None:
    first = table.cells[chunk[0]]
    line = {"chunk": state.step + 1, "method": first.method, "quality": first.quality, "cells": len(chunk), "done": int(table.done.sum())}
    metrics.append(line | {"seconds": round(seconds, 3)})
    state.commit(table.tree, {"seconds": round(table.seconds, 3)})


def _groups(cells: Sequence[Cell]) -> Iterator[tuple[str, float | None, np.ndarray]]:
    """Method, quality, and the numbers of their cells: all methods of a base one after the other, since it may be made for them."""
    groups = dict.fromkeys((cell.method, cell.quality) for cell in cells)
    qualities = list(dict.fromkeys(quality for _, quality in groups))
    for method, quality in sorted(groups, key=lambda group: qualities.index(group[1])):
        yield method, quality, np.flatnonzero([(cell.method, cell.quality) == (method, quality) for cell in cells])


def _chunks(numbers: np.ndarray, done: np.ndarray, again: Set[int], size: int) -> list[np.ndarray]:
    """Those to train of one method and quality: what is not done, then chunks with a cell of ``again``, as an undisturbed run has them."""
    new = numbers[~done[numbers]]
    whole = [numbers[start : start + size] for start in range(0, len(numbers), size)]
    return [new[start : start + size] for start in range(0, len(new), size)] + [one for one in whole if not again.isdisjoint(one.tolist())]


def _arrays(cells: Sequence[Cell], position: Mapping[int, int]) -> CellArrays:
    """``position``: seed -> its place among the grid's."""
    seeds, samples = [cell.seed for cell in cells], [cell.samples for cell in cells]
    places = [position[seed] for seed in seeds]
    return CellArrays(np.array(seeds, np.uint32), np.array(places, np.int32), np.array(samples, np.int32))
