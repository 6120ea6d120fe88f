"""``run_grid``: every cell (method, quality, n, seed) trained once, by one compiled program a method, and committed chunk by chunk."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from perturbjax import sharding
from perturbjax.caulking.cells import Cell, CellTable, Measured, grid_cells
from perturbjax.caulking.chunks import Bases, train_cells
from perturbjax.caulking.program import Fitting, GridProgram, Method, Shared, evenly_in_flight
from perturbjax.caulking.sizes import Loss
from perturbjax.errors import InputError, natural_number, positive_integer
from perturbjax.records import to_json
from perturbjax.runs.console import SILENT, Progress
from perturbjax.runs.files import MetricsLog
from perturbjax.tree import Params, fingerprint


def run_grid(
    loss: Loss,
    error: Loss,
    bases: Bases,
    methods: Mapping[str, Method],
    data: Any,
    test: Any,
    samples: Sequence[int] | np.ndarray,
    seeds: int | Sequence[int] | np.ndarray = 5,
    fitting: Fitting | None = None,
    *,
    init: Callable[[jax.Array], Params] | None = None,
    per_seed: bool = False,
    classes: np.ndarray | None = None,
    mesh: Mesh | None = None,
    in_flight: int = 16,
    out: Path | str | None = None,
    keep: Callable[[Cell, Any], None] | None = None,
    progress: Progress = SILENT,
) -> tuple[Measured, ...]:
    """Trains a caulk for every pretraining quality, number of target samples, seed and method.

    A seed's rows are nested: those of n = 16 are among those of n = 32, whatever the quality and the method. So differences between two
    qualities or methods are paired by seed.

    Args:
        loss: ``loss(params, batch)`` -> (), differentiable; minimized.
        error: ``error(params, test)`` -> (), what is reported.
        bases: quality -> parameters; all of one structure, never written.
        methods: name -> method.
        data: target rows to train on, arrays with leading N.
        test: what ``error`` takes; rows that are not in ``data``.
        samples: numbers of rows n, each at most N.
        seeds: how many, from 0, or which.
        fitting: steps and batch of every cell.
        init: key -> parameters, for methods from scratch.
        per_seed: ``bases``, ``data`` and ``test`` have a leading axis of the seeds: each has a target of its own.
        classes: (N,) labels; the first n rows of a seed then hold all classes as evenly as the rows allow.
        mesh: cells are sharded over "data"; all devices when left out. A CPU is one device, of which a small network uses one core: with
            ``XLA_FLAGS=--xla_force_host_platform_device_count=CORES`` in the environment the grid uses all.
        in_flight: cells vmapped together on each device, at most; on a CPU more than a dozen gain nothing, accelerators take more.
        out: directory of committed cells: a second call goes on where the first stopped. It is refused where settings, arrays or
            bases differ; ``loss`` and ``error``, and bases that are functions, cannot be compared.
        keep: called with every cell and what it trained, ``{"caulk": ..., "head": ...}``, before its chunk is committed.
        progress: told of chunks.

    Returns:
        All cells, in the order method, quality, n, seed.

    Raises:
        InputError: an n above the rows, a seed twice, no cells, arrays of different numbers of rows, a quality that is no number, a rule
            that matches nothing, a rank above the smaller dim.
    """
    fitting, mesh = fitting or Fitting(), mesh or sharding.make_mesh()
    fitting.validate()
    numbers: list[int] = np.asarray(samples).tolist()  # numpy's integers become Python's
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(np.asarray(seeds).tolist())
    check_seeds(chosen, seeds)
    rows = check_rows(data, len(chosen) if per_seed else None, classes)
    check_samples(numbers, rows)
    positive_integer("in_flight", in_flight)
    check_methods(methods, bases, init)
    cells = grid_cells(bases, numbers, chosen, {name: method.scratch for name, method in methods.items()})
    together = evenly_in_flight(in_flight, len(numbers) * len(chosen), mesh)
    programs = {
        name: GridProgram(loss, error, method, fitting, mesh, together, per_seed, init, keep is not None)
        for name, method in methods.items()
    }
    order = np.stack([row_order(rows, seed, classes) for seed in chosen])
    identity = {"fitting": to_json(fitting), "methods": {name: repr(method) for name, method in methods.items()}, "in_flight": in_flight}
    identity |= {"cells": [cell.name for cell in cells], "data": fingerprint({"data": data, "test": test, "order": order})}
    identity["bases"] = [None if callable(base) else fingerprint(base) for base in bases.values()]
    table = CellTable(cells)
    with _committed(out, identity, table) as (state, metrics):
        train_cells(table, programs, bases, Shared(None, data, test, order), chosen, mesh, state, metrics, keep, progress)
    return table.measured()


@contextlib.contextmanager
def _committed(out: Path | str | None, identity: Mapping[str, Any], table: CellTable) -> Iterator[tuple[Any, MetricsLog | None]]:
    """The state and the metrics in a directory, made where it is not there; nothing, and nowhere, without one."""
    if out is None:
        yield None, None
        return
    from perturbjax.runs.state import RunState

    out = Path(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"`out` {out}: is no directory; give a new one")
    out.mkdir(parents=True, exist_ok=True)
    with RunState.open(out / "state", identity, table.tree) as state:
        yield state, MetricsLog(out / "metrics.jsonl")


def check_samples(samples: Sequence[int], rows: int) -> None:
    """Raise ``InputError`` unless these are numbers of rows, each once, and there are as many rows."""
    for n in samples:
        positive_integer("samples", n)
        if n > rows:
            raise InputError(f"`samples` {n}: the target has {rows} rows to train on; ask for fewer")
    if not samples or list(samples) != sorted(set(samples)):
        raise InputError(f"`samples` {','.join(map(str, samples)) or 'none'}: growing numbers of rows are required")


def check_rows(data: Any, seeds: int | None, classes: np.ndarray | None) -> int:
    """The number of rows of all arrays; of ``seeds`` of them where each has rows of its own.

    Raises:
        InputError: the arrays, or ``classes``, have different numbers of rows, or there are none.
    """
    lead = 1 if seeds is None else 2
    shapes = {np.shape(leaf)[:lead] for leaf in jax.tree.leaves(data)}
    if len(shapes) != 1 or len(shape := shapes.pop()) < lead or (seeds is not None and shape[0] != seeds):
        leading = "(N, ...)" if seeds is None else f"({seeds}, N, ...), one set of rows a seed,"
        given = ", ".join(str(np.shape(leaf)) for leaf in jax.tree.leaves(data)) or "nothing"
        raise InputError(f"`data` {given}: arrays of shape {leading} with one N are required")
    if classes is not None and np.shape(classes) != shape[-1:]:
        raise InputError(f"`classes` {np.shape(classes)}: a label for each of the {shape[-1]} rows is required")
    return shape[-1]


def check_methods(methods: Mapping[str, Method], bases: Mapping[float, Any], init: Any) -> None:
    """Raise ``InputError`` unless they make cells: each base has a number, and what starts from scratch has an ``init``."""
    for name, method in methods.items():
        if method.scratch and init is None:
            raise InputError(f"`init` None: method {name} starts from scratch and needs key -> parameters")
    for quality in bases:
        if not isinstance(quality, int | float | np.number) or not np.isfinite(quality):
            raise InputError(f"`bases` {quality!r}: a number is required for each, the quality of its pretraining")
    if not any(method.scratch or bases for method in methods.values()):
        raise InputError("`methods`, `bases`: a method from scratch, or a method and a base, is required; there are no cells")


def check_seeds(chosen: Sequence[int], given: Any) -> None:
    """Raise ``InputError`` unless these are seeds, each once."""
    if not chosen or len(set(chosen)) < len(chosen):
        raise InputError(f"`seeds` {given}: at least one, and each once, is required")
    for seed in chosen:
        natural_number("seeds", seed)


def row_order(rows: int, seed: int, classes: np.ndarray | None = None) -> np.ndarray:
    """The order of the target's rows for a seed, (N,) int32: a permutation; with ``classes`` one in which they take turns."""
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), rows)
        order = np.asarray(jax.random.permutation(key, rows))
    if classes is not None:
        labels = np.asarray(classes)[order]
        turn = np.zeros(rows, np.int64)
        for label in np.unique(labels):
            turn[labels == label] = np.arange((labels == label).sum())
        order = order[np.argsort(turn, kind="stable")]
    return order.astype(np.int32)
