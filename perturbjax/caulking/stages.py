"""A whole grid on a language model, from settings to report, stage by stage, resumable at every chunk of cells."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from perturbjax import sharding
from perturbjax.caulking.cells import CELLS, Cell, CellTable, Measured, read_cells, write_cells
from perturbjax.caulking.chunks import train_cells
from perturbjax.caulking.config import Config
from perturbjax.caulking.features import head_shapes
from perturbjax.caulking.files import CAULKS, is_lost, write_caulk
from perturbjax.caulking.language import ChoiceProblem
from perturbjax.caulking.plan import Tokens, missing_classes, plan_lines, trainable
from perturbjax.caulking.program import Shared
from perturbjax.caulking.report import write_report
from perturbjax.caulking.results import VERSION, BaseAlone, Results, base_alone, make_curves, make_slopes, read_results
from perturbjax.caulking.results_table import results_table
from perturbjax.caulking.setup import CHAPTER, Encoded, Parts, describe_run, encode, load_parts, make_bases, make_programs, row_orders
from perturbjax.cluster import is_main, on_main
from perturbjax.cluster.peers import Peers
from perturbjax.errors import InputError
from perturbjax.records import from_json, to_json
from perturbjax.report import Source
from perturbjax.report.words import plural
from perturbjax.runs.console import SILENT, Progress
from perturbjax.runs.files import MetricsLog, read_json, write_json
from perturbjax.runs.identity import check_agreement, default_path, fields_of
from perturbjax.runs.machine import make_mesh, require
from perturbjax.runs.rundir import RunDirectory
from perturbjax.runs.state import RunState


def run(config: Config, progress: Progress = SILENT, peers: Peers | None = None) -> Results:
    """Trains and measures every cell, writes the run directory.

    Everything is validated before the run directory is made, and no cell that is done is done again. In a run of several processes all of
    them call it; process 0 writes.

    Args:
        config: the settings.
        progress: told what goes on, on process 0.
        peers: the other processes, if a command runs this.

    Returns:
        The content of results.json.

    Raises:
        InputError: the settings, or what they name, cannot be used; no directory was made or changed.
        Exception: anything else, with a note that says what is safe and how to go on.
    """
    config.validate()
    progress, peers = progress if is_main() else SILENT, peers or Peers(None, SILENT.note)
    on_main(lambda: _check(config))
    parts = load_parts(config, progress.note)
    check_agreement(parts.identity)
    mesh = make_mesh(config.machine)
    directory = RunDirectory(config.run.out or default_path(f"{CHAPTER}-{parts.task.name}", parts.model.name, parts.identity, config))
    clock, identity = directory.claim(parts.identity, parts.model.tokenizer.clock, config.run.resume, fields_of(Config()), progress.note)
    parts = replace(parts, identity=identity)
    parts.model.tokenizer.clock = clock
    encoded = encode(parts)
    on_main(lambda: None if directory.config.exists() else directory.create(parts.identity, describe_run(parts)))
    with directory.written("caulking", peers):
        if not on_main(lambda: _is_finished(parts, encoded, directory)):
            _stages(parts, encoded, mesh, directory, progress, peers)
        results = from_json(Results, on_main(lambda: read_json(directory.results)), str(directory.results))
        on_main(lambda: _finish(directory, results, progress))
        return results


def _check(config: Config) -> None:
    """Refuses what would fail after hours, before anything is loaded."""
    require("jinja2", "matplotlib", "optax", "safetensors")
    if config.run.out is not None:
        RunDirectory(config.run.out).check_usable(config.run.resume)


def _is_finished(parts: Parts, encoded: Encoded, directory: RunDirectory) -> bool:
    """Whether cells, caulks and the results for these accuracies are there. What is lost, damaged or of another version is made again."""
    try:
        cells, results = read_cells(directory.path / CELLS), read_results(directory.results)
    except InputError:
        return False
    return results.accuracies == parts.config.data.accuracies and not _lost(parts, encoded, directory, cells)


def _lost(parts: Parts, encoded: Encoded, directory: RunDirectory, cells: Sequence[Measured]) -> list[str]:
    """Names of the trained cells whose caulk's file is missing or damaged."""
    base, key = parts.model.params, jax.random.key(0)
    kept = {name: method for name, method in parts.methods.items() if encoded.keeps(name)}
    shapes = {name: jax.eval_shape(partial(method.init, base), key) for name, method in kept.items() if name != "head"}
    shapes |= {"head": head_shapes(parts.model.config, encoded.columns)} if "head" in kept else {}
    folder = directory.path / CAULKS
    return [cell.name for cell in cells if cell.method in shapes and is_lost(folder, cell, shapes[cell.method])]


def _stages(parts: Parts, encoded: Encoded, mesh: Mesh, directory: RunDirectory, progress: Progress, peers: Peers) -> None:
    """The plan, the cells, the bases alone, and the results, each written when it is known."""
    config, table = parts.config, CellTable(parts.cells)
    with RunState.open(directory.state, parts.identity, table.tree) as state:
        peers.freeze = state.freeze
        for warning in state.warnings:
            progress.note(f"perturbjax: warning: {warning}")
        if state.step:
            table.load(state.tree, state.record)
        lost = set(on_main(lambda: _lost(parts, encoded, directory, table.measured())))
        again = {number for number, cell in enumerate(parts.cells) if cell.name in lost}
        if again:
            which = f"{plural(len(again), 'caulk')}, e.g. {parts.cells[min(again)].name}"
            progress.note(f"perturbjax: warning: lost or damaged are the files of {which}; what was trained with them is trained again")
        left = [cell for number, cell in enumerate(parts.cells) if not table.done[number] or number in again]
        for line in on_main(lambda: plan_lines(parts, encoded, left, mesh.shape[sharding.DATA])) if left else ():
            progress.note(line)
        if missing := missing_classes(parts):
            numbers = ", ".join(map(str, missing))
            progress.note(f"perturbjax: warning: with {numbers} examples some answer of {parts.task.name} is never seen in training")
        shared = Shared(None, encoded.train.arrays, encoded.test.arrays, row_orders(parts))
        programs, bases = make_programs(parts, encoded, mesh), make_bases(parts)
        keep = partial(_keep, directory)
        seeds, metrics = tuple(range(config.grid.seeds)), MetricsLog(directory.metrics)
        train_cells(table, programs, bases, shared, seeds, mesh, state, metrics, keep, progress, again)
    cells = table.measured()
    on_main(lambda: write_cells(directory.path / CELLS, cells))
    known = on_main(lambda: _measured_bases(directory))
    alone = bases_alone(parts, encoded) if known is None else tuple(from_json(BaseAlone, base, str(directory.results)) for base in known)
    on_main(lambda: write_json(directory.results, to_json(_results(parts, encoded, cells, alone, table.seconds))))


def _keep(directory: RunDirectory, cell: Cell, trained: Any) -> None:
    on_main(lambda: write_caulk(directory.path / CAULKS, cell, trained))


def _measured_bases(directory: RunDirectory) -> list[Any] | None:
    """The bases of results that were written before, for other accuracies."""
    try:
        return to_json(read_results(directory.results).bases)
    except InputError:
        return None


def bases_alone(parts: Parts, encoded: Encoded) -> tuple[BaseAlone, ...]:
    """Every base without a caulk, on the test questions."""
    error = jax.jit(ChoiceProblem(parts.model.config, encoded.layout, encoded.test_layout).error)
    bases = make_bases(parts)
    return tuple(base_alone(sigma, float(error(make(), encoded.test.arrays)), len(parts.test)) for sigma, make in bases.items())


def _results(parts: Parts, encoded: Encoded, cells: tuple[Measured, ...], alone: tuple[BaseAlone, ...], seconds: float) -> Results:
    config, accuracies = parts.config, parts.config.data.accuracies
    curves, held_out = make_curves(cells, accuracies)
    tokens, test_tokens = Tokens.of(parts, encoded).total(cells)
    return Results(
        VERSION,
        Source(parts.task.name, parts.task.source),
        Source(parts.model.name, parts.model.source),
        parts.template.name,
        config.grid.seeds,
        len(parts.test),
        len(parts.train),
        alone,
        curves,
        make_slopes(cells, alone, accuracies, len(parts.test)),
        trainable(parts, encoded),
        len(cells),
        sum(not np.isfinite(cell.error) for cell in cells),
        tokens,
        test_tokens,
        tuple(missing_classes(parts)),
        round(seconds, 3),
        held_out,
    )


def _finish(directory: RunDirectory, results: Results, progress: Progress) -> None:
    """On process 0: writes the report, shows the table, says where things are."""
    report = write_report(directory.path)
    progress.line(results_table(results))
    progress.line()
    progress.line(f"run directory  {directory.path.absolute()}")
    progress.line(f"report         {report.absolute()}")
