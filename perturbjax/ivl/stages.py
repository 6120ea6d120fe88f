"""A whole training of a value network, from settings to report, stage by stage, resumable at every commit."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from jax.sharding import Mesh

from perturbjax.cluster import is_main, on_main
from perturbjax.cluster.peers import Peers
from perturbjax.ivl.artifacts import save_value
from perturbjax.ivl.combined import combine
from perturbjax.ivl.config import Config
from perturbjax.ivl.evaluation import measure_base
from perturbjax.ivl.logits_stage import BaseLogits, bases_logits, check_room, write_logits
from perturbjax.ivl.loss import pass_flops
from perturbjax.ivl.report import write_report
from perturbjax.ivl.results import VERSION, Results
from perturbjax.ivl.results_table import results_table
from perturbjax.ivl.rivals import Rivals
from perturbjax.ivl.setup import (
    CHAPTER,
    Packed,
    Parts,
    check_layout,
    describe_run,
    load_parts,
    make_problem,
    pack,
)
from perturbjax.models.adapters import trainable_count
from perturbjax.records import from_json, to_json
from perturbjax.report import Source
from perturbjax.runs.console import SILENT, Progress
from perturbjax.runs.files import MetricsLog, read_json, write_json
from perturbjax.runs.identity import check_agreement, default_path, fields_of
from perturbjax.runs.machine import make_mesh, require
from perturbjax.runs.rundir import RunDirectory
from perturbjax.runs.state import RunState
from perturbjax.train.loop import fit
from perturbjax.train.placement import to_host
from perturbjax.train.problem import Fitted, Look, Problem


def run(config: Config, progress: Progress = SILENT, peers: Peers | None = None) -> Results:
    """Trains a value network, measures it beside its base on held-out questions, writes the run directory.

    Everything is validated before the run directory is made, and no stage that is done is done again. In a run of several processes all of
    them call it; process 0 writes.

    Args:
        config: the settings.
        progress: told what goes on, on process 0.
        peers: the other processes, if a command runs this.

    Returns:
        The content of results.json.

    Raises:
        InputError: the settings, or what they name, cannot be used; no directory was made or changed.
        FloatingPointError: the loss is not finite; what was committed before is intact.
        Exception: anything else, with a note that says what is safe and how to go on.
    """
    config.validate()
    progress, peers = progress if is_main() else SILENT, peers or Peers(None, SILENT.note)
    on_main(lambda: _check(config))
    parts = load_parts(config, progress.note)
    check_agreement(parts.identity)
    mesh = make_mesh(config.machine)
    check_layout(config, mesh)
    directory = RunDirectory(config.run.out or default_path(f"{CHAPTER}-{parts.task.name}", parts.models[0].name, parts.identity, config))
    first, defaults = parts.models[0], fields_of(Config())
    clock, identity = directory.claim(parts.identity, first.tokenizer.clock, config.run.resume, defaults, progress.note)
    parts = replace(parts, identity=identity)
    for model in parts.models:
        model.tokenizer.clock = clock
    packed = pack(parts, progress.note)
    logits = bases_logits(parts, packed, directory.path / "logits")
    on_main(lambda: None if directory.results.exists() else check_room(logits, progress.note))
    on_main(lambda: None if directory.config.exists() else directory.create(parts.identity, describe_run(parts)))
    with directory.written("ivl", peers):
        if not on_main(lambda: directory.results.exists()):
            _stages(parts, packed, logits, mesh, directory, progress, peers)
        results = from_json(Results, on_main(lambda: read_json(directory.results)), str(directory.results))
        on_main(lambda: _finish(directory, results, progress))
        return results


def _check(config: Config) -> None:
    """Refuses what would fail after hours, before anything is loaded."""
    require("grain", "jinja2", "matplotlib", "optax", "safetensors")
    if config.run.out is not None:
        RunDirectory(config.run.out).check_usable(config.run.resume)


def _stages(
    parts: Parts,
    packed: Packed,
    logits: Sequence[BaseLogits],
    mesh: Mesh,
    directory: RunDirectory,
    progress: Progress,
    peers: Peers,
) -> None:
    """The bases' logits if they are to be written, training, the value network's files, and the test, each written when it is known."""
    first, seed = parts.models[0], parts.config.value.seed
    stored = write_logits(parts, logits, mesh, progress)
    value, problem = make_problem(parts, packed, mesh, [each.files for each in logits])
    fitted = _train(parts, problem, directory, mesh, progress, peers)
    params = to_host(fitted.params, mesh)
    on_main(lambda: save_value(directory.path / "value", value, params, first.name, parts.fingerprint, parts.vocabulary))
    without: tuple[Look, ...] = ()
    if parts.config.value.without_norm:
        _, problem = make_problem(parts, packed, mesh, [each.files for each in logits], norm=False)
        place = RunDirectory(directory.path / "without_norm")
        on_main(lambda: place.path.mkdir(exist_ok=True))
        without = _train(parts, problem, place, mesh, progress, peers, "training without the norm").looks
    combined, on_state = combine(first, value, params), partial(_hold, peers=peers)
    rivals = Rivals(directory.path, parts.config, first, parts.train, parts.validation, mesh, progress, on_state)
    beside = rivals.beside(first, parts.config.data.rivals, one_vocabulary=True)
    entries = measure_base(first, combined, first.tokenizer, parts.task, parts.template, parts.test, mesh, seed, progress, beside)
    trained = parts.models[: 1 + len(parts.config.bases.also)]
    results = Results(
        VERSION,
        Source(parts.task.name, parts.task.source),
        parts.template.name,
        packed.demonstrated,
        trainable_count(params),
        fitted.looks,
        fitted.step,
        fitted.stopped_early,
        entries,
        stored,
        without,
        pass_flops(value, [] if logits else [model.config for model in trained], packed.rows),
    )
    on_main(lambda: write_json(directory.results, to_json(results)))


def _train(
    parts: Parts, problem: Problem, directory: RunDirectory, mesh: Mesh, progress: Progress, peers: Peers, label: str = "training"
) -> Fitted:
    training = parts.config.training
    bar: Any = None

    def on_state(state: RunState) -> None:
        _hold(state, peers)
        for warning in state.warnings:
            progress.note(f"perturbjax: warning: {warning}")

    def on_step(step: int, steps: int, look: Look | None) -> None:
        nonlocal bar
        if bar is None:
            bar = progress.bar(label, steps, step)
        bar.update(step, **(_figures(look) if look is not None else {}))

    try:
        return fit(
            problem,
            training,
            parts.config.value.seed,
            directory.state,
            parts.identity,
            mesh,
            MetricsLog(directory.metrics),
            on_step,
            on_state,
        )
    finally:
        if bar is not None:
            bar.close()


def _hold(state: RunState, peers: Peers) -> None:
    """A process that must end waits for the commit that is being written."""
    peers.freeze = state.freeze


def _figures(look: Look) -> dict[str, str]:
    figures = {"loss": f"{look.losses['cross_entropy']:.3f}"}
    if look.validation:
        figures["validation"] = f"{look.validation['cross_entropy']:.3f}"
    if look.tokens_per_s is not None:
        figures["tokens/s"] = f"{look.tokens_per_s:.0f}"
    return figures


def _finish(directory: RunDirectory, results: Results, progress: Progress) -> None:
    """On process 0: writes the report, shows the table, says where things are."""
    report = write_report(directory.path)
    progress.line(results_table(results))
    progress.line()
    progress.line(f"run directory  {directory.path.absolute()}")
    progress.line(f"report         {report.absolute()}")
