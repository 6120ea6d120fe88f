"""The whole RandOpt run, from settings to report, stage by stage, resumable at every point."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from perturbjax.cluster import is_main, on_main
from perturbjax.cluster.peers import Peers
from perturbjax.errors import InputError
from perturbjax.inference import EncodedBatch, Engine
from perturbjax.randopt.auto_sigmas import keep_sigmas
from perturbjax.randopt.config import Config
from perturbjax.randopt.controls import Evaluation, evaluate_run
from perturbjax.randopt.ensemble import Ensemble
from perturbjax.randopt.flow import Flow, SearchRecord, run_base
from perturbjax.randopt.loop import search
from perturbjax.randopt.preflight import Preflight
from perturbjax.randopt.questions import write_question_scores
from perturbjax.randopt.results import Results, read_results, results_of
from perturbjax.randopt.screening import keep_screening, screen
from perturbjax.randopt.setup import Parts, describe_run, load_parts, make_engine
from perturbjax.randopt.table import ScoreTable, open_state, write_candidates
from perturbjax.records import to_json
from perturbjax.report import Source
from perturbjax.runs.console import SILENT, Progress
from perturbjax.runs.files import MetricsLog, write_json
from perturbjax.runs.identity import check_agreement, default_path, fields_of
from perturbjax.runs.machine import require
from perturbjax.runs.profile import check_profile, trace
from perturbjax.runs.rundir import RunDirectory


def run(config: Config, progress: Progress = SILENT, peers: Peers | None = None) -> Results:
    """Searches, evaluates on held-out questions, writes the run directory and its report.

    Everything is validated before the run directory is made, and no stage that is done is done again. In a run of several processes all of
    them call it; process 0 writes.

    Args:
        config: the settings; its process fields are those that ``cluster.preemption.cluster_run`` has joined by.
        progress: told what goes on, on process 0.
        peers: the other processes, if a command runs this: gets the advice and the ``freeze`` for the case that the run must end early.

    Returns:
        The content of results.json.

    Raises:
        InputError: the settings, or what they name, cannot be used; no directory was made or changed.
        Exception: anything else, with a note that says what is safe and how to go on.
    """
    started = time.perf_counter()
    config.validate()
    progress, peers = progress if is_main() else SILENT, peers or Peers(None, SILENT.note)
    on_main(lambda: _check(config))
    parts = load_parts(keep_sigmas(config), progress.note)
    config = parts.config
    defaults = fields_of(Config())
    check_agreement({**defaults, **parts.identity})
    directory = RunDirectory(config.run.out or default_path(parts.task.name, parts.model.name, parts.identity, config))
    # Prompts that show the date show the same one on all processes, and after a resume that of the first day.
    clock = parts.model.tokenizer.clock
    parts.model.tokenizer.clock, identity = directory.claim(parts.identity, clock, config.run.resume, defaults, progress.note)
    parts = replace(parts, identity=identity)
    parts = replace(parts, screening=keep_screening(parts, directory))
    engine = make_engine(parts)
    whole = prepare_all(parts, engine)
    slices = prepare_rounds(parts, engine, whole)
    progress.note(f"strategy {', '.join(dict.fromkeys(part.strategy for part in slices))}")
    on_main(lambda: None if directory.config.exists() else directory.create(parts.identity, describe_run(parts)))
    with directory.written("randopt", peers):
        if config.search.searcher == "screen" and parts.screening is None:
            parts = replace(parts, screening=screen(parts, engine, directory, progress))
        results = _stages(parts, engine, whole, slices, directory, progress, peers)
        if results is not None:
            content = to_json(replace(results, seconds=results.seconds | {"process": time.perf_counter() - started}))
            # Last, so that a run with results.json is a run with everything before it.
            on_main(lambda: write_json(directory.results, content))
        return results_of(on_main(lambda: _finish(directory, progress)), str(directory.results))


def _check(config: Config) -> None:
    """Refuses what would fail after hours, before anything is loaded."""
    if config.run.profile is not None:
        check_profile(config.run.profile)
    require("jinja2", "matplotlib")
    if config.run.out is not None:
        RunDirectory(config.run.out).check_usable(config.run.resume)


def _stages(
    parts: Parts,
    engine: Engine,
    whole: EncodedBatch,
    slices: Sequence[EncodedBatch],
    directory: RunDirectory,
    progress: Progress,
    peers: Peers,
) -> Results | None:
    """What is not done yet of: the base, the population, the choices and the test, each written when it is known. None: all was done."""
    finished = on_main(lambda: directory.results.exists() and directory.ensemble.exists())
    # Before the search, because it compiles the programs: what the chunks are timed at is scoring alone.
    base = None if finished else score_base(engine, whole, slices, progress)
    if parts.config.run.profile is not None:
        _trace(parts, engine, slices[0], parts.config.run.profile, progress)
    look = Preflight(parts.config.race, parts.config.run.require_reliability and not finished, progress.note)
    table = score_population(parts, engine, slices, directory, progress, peers, look)
    candidates = parts.candidates(table.scores)
    positions = np.arange(len(candidates))
    indices, sigmas = candidates.index_of(positions), candidates.sigma_of(positions)
    on_main(lambda: write_candidates(directory.candidates, sigmas, parts.config.race.filled(table.scores), indices))
    if base is None:
        return None
    evaluation = evaluate_population(parts, engine, base, table, progress)
    ensemble = Ensemble(parts.population, evaluation.members, parts.noise, parts.fingerprint, scores=evaluation.scores)
    on_main(lambda: write_question_scores(directory.test, parts.splits.test, evaluation.by_question))
    on_main(lambda: ensemble.save(directory.ensemble))
    return evaluation.results


def prepare_all(parts: Parts, engine: Engine) -> EncodedBatch:
    """The search split encoded, and the certainty that no prompt of any split and template is too long for the model."""
    examples = (*parts.splits.select, *parts.splits.test)
    for template in parts.task.templates:
        try:
            engine.prepare(examples, template)
        except InputError as error:
            if template == parts.template:
                raise
            raise InputError(f"{error}; whatever `template` says, a control asks the base under all of the task's") from error
    return engine.prepare(parts.splits.search, parts.template)


def prepare_rounds(parts: Parts, engine: Engine, whole: EncodedBatch) -> list[EncodedBatch]:
    """The search split encoded, one part for each round of the race; ``whole`` is all of it."""
    race = parts.config.race
    if len(race.ends) == 1:
        return [whole]
    return [engine.prepare(parts.splits.search[race.columns(number)], parts.template) for number in range(len(race.ends))]


def score_base(engine: Engine, whole: EncodedBatch, slices: Sequence[EncodedBatch], progress: Progress) -> tuple[np.ndarray, int]:
    """The unperturbed base on the search split, in the slices that the candidates get: its (D,) scores, and the tokens of all in one."""
    scores, generated = [], 0
    with progress.bar("compiling, base", len(slices), unit="slice") as bar:
        for number, part in enumerate(slices, start=1):
            outputs = run_base(engine, part)
            scores.append(outputs.scores[0])
            generated += int(outputs.tokens[0]) - part.prompt_tokens
            bar.update(number, score=f"{np.concatenate(scores).mean():.3f}")
    return np.concatenate(scores), whole.prompt_tokens + generated


def score_population(
    parts: Parts,
    engine: Engine,
    slices: Sequence[EncodedBatch],
    directory: RunDirectory,
    progress: Progress,
    peers: Peers,
    look: Preflight,
) -> ScoreTable:
    """Completes the rounds of the race, with a commit, a line of metrics.jsonl and a step of the progress bar per chunk."""
    race = parts.config.race
    # Rounds were prepared beforehand; which examples are dead is known only now.
    prepared = {tuple(range(*race.columns(number).indices(race.examples))): part for number, part in enumerate(slices)}

    def prepare(columns: np.ndarray) -> EncodedBatch:
        known = prepared.get(tuple(columns.tolist()))
        return known or engine.prepare([parts.splits.search[i] for i in columns], parts.template)

    with open_state(directory.state, race, parts.identity) as state:
        peers.freeze = state.freeze
        for warning in state.warnings:
            progress.note(f"perturbjax: warning: {warning}")
        if not state.step and on_main(lambda: directory.candidates.exists()):
            raise InputError(
                f"{directory.state}: the saved state is missing, candidates.parquet is not; restore it, or delete {directory.path}"
            )
        table = search(engine, parts.candidates, race, prepare, state, MetricsLog(directory.metrics), progress, look)
        if bad := sum(table.nonfinite):
            # One candidate may count once a round; it is the hint to lower sigma that matters.
            progress.note(f"perturbjax: warning: {bad} candidates gave NaN or infinite logits and score 0; lower the sigmas")
        return table


def evaluate_population(parts: Parts, engine: Engine, base: tuple[np.ndarray, int], table: ScoreTable, progress: Progress) -> Evaluation:
    """Chooses on the select split and measures on the test split, beside the controls; ``base`` as ``score_base`` gives it."""
    settings, record = parts.config.search, SearchRecord.of(parts.config.race, table, *base)
    flow = Flow(
        engine,
        parts.task,
        parts.splits,
        parts.candidates(table.scores),
        record,
        settings.top_k,
        parts.template,
        seed=settings.seed,
        progress=progress,
        screening=parts.screening,
        halving=settings.halving,
    )
    return evaluate_run(flow, Source(parts.model.name, parts.model.source))


def _trace(parts: Parts, engine: Engine, batch: EncodedBatch, directory: Path, progress: Progress) -> None:
    """Traces the scoring of as many candidates as are in flight at once; their scores are thrown away."""
    few = parts.population[: engine.mesh.size * engine.in_flight]
    engine.run(few, batch)  # compiles, if a finished run has left that to us
    if is_main():
        seconds = trace(directory, lambda: engine.run(few, batch))
        progress.note(f"traced {len(few.index)} candidates in {seconds:.1f} s; open the trace with: xprof --logdir {directory}")
    else:
        engine.run(few, batch)


def _finish(directory: RunDirectory, progress: Progress) -> Any:
    """On process 0: writes the report, shows the table, says where things are; returns the results as JSON."""
    from perturbjax.randopt.report import write_report
    from perturbjax.randopt.results_table import results_table

    report = write_report(directory.path)
    results = read_results(directory.results)
    progress.line(results_table(results))
    progress.line()
    progress.line(f"run directory  {directory.path.absolute()}")
    progress.line(f"report         {Path(report).absolute()}")
    return to_json(results)
