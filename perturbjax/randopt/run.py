"""``perturbjax search``: the whole RandOpt run, from settings to report, resumable at every point."""

import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from perturbjax.cluster.distributed import Team, join
from perturbjax.cluster.peers import Peers
from perturbjax.cluster.preemption import Notice, exit_on_notice
from perturbjax.errors import InputError
from perturbjax.randopt.artifacts import write_candidates
from perturbjax.randopt.config import SearchConfig
from perturbjax.randopt.loop import ChunkReport, search
from perturbjax.randopt.setup import Parts, continue_run, describe_run, follow, load_parts, make_engine, require
from perturbjax.randopt.table import ScoreTable
from perturbjax.records import to_json
from perturbjax.report import Source
from perturbjax.runs.compile_cache import use_compile_cache
from perturbjax.runs.console import Console
from perturbjax.runs.files import write_json
from perturbjax.runs.metrics import MetricsLog
from perturbjax.runs.profile import check_profile, trace_candidates
from perturbjax.runs.rundir import RunDirectory, default_path
from perturbjax.runs.state import RunState

if TYPE_CHECKING:
    from perturbjax.inference import Engine, Prepared
    from perturbjax.randopt.controls import Evaluation


def run_search(config: SearchConfig, console: Console) -> None:
    """Search, evaluate, report. Everything is validated before the run directory is made; every stage that is done is not done again.

    Raises:
        InputError: the settings, or what they name, cannot be used; no directory was made or changed.
        Exception: anything else, with a note that says what is safe and how to go on.
    """
    config.validate()
    # Orbax logs a failed write with the tracebacks of all its threads; the error itself comes to us.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    host = None
    if config.coordinator is not None:
        host = join(config.coordinator, config.num_processes, config.process_id)
    use_compile_cache(config.compile_cache, console)
    with Peers(host, console.note) as peers, exit_on_notice(console, peers.advice, peers) as notice:
        if not peers.leads:
            follow(config)
            return
        with Team().leading():
            _lead(config, console, peers, notice)


def _lead(config: SearchConfig, console: Console, peers: Peers, notice: Notice) -> None:
    """The search, on the one process that decides, writes and prints."""
    started = time.perf_counter()
    if config.profile is not None:
        check_profile(config.profile)
    require("jinja2", "matplotlib")
    if config.out is not None:
        RunDirectory(config.out).check_usable(config.resume)
    parts = load_parts(config, console)
    directory = RunDirectory(config.out or default_path(parts.task.name, parts.model.name, parts.identity))
    if directory.check_usable(config.resume):
        continue_run(directory, parts)
        console.note(f"continuing the run in {directory.path}")
    engine = make_engine(parts)
    prepared = prepare_all(parts, engine)
    slices = prepare_rounds(parts, engine, prepared)
    console.note(f"strategy {', '.join(dict.fromkeys(part.strategy for part in slices))}")
    if not directory.config.exists():
        directory.create(parts.identity, describe_run(parts))
    again = f"what {directory.path} had committed is intact; continue with: perturbjax search ... --out {directory.path} --resume"
    peers.advice = notice.advice = again
    with directory.locked():
        try:
            finished = directory.results.exists() and directory.ensemble.exists()
            # Before the search, because it compiles the programs: what the chunks are timed at is scoring alone.
            base = None if finished else score_base(engine, prepared, slices, console)
            if config.profile is not None:
                trace_candidates(engine, parts.population, slices[0], config.profile, console)
            table = score_population(parts, engine, slices, directory, console, notice)
            write_candidates(directory.candidates, parts.population.sigma_of(np.arange(config.population)), table.scores)
            if base is not None:
                evaluation = evaluate_population(parts, engine, base, table, console)
                save_ensemble(parts, evaluation, directory)
                seconds = evaluation.results.seconds | {"process": time.perf_counter() - started}
                # Last, so that a run with results.json is a run with everything before it.
                write_json(directory.results, to_json(replace(evaluation.results, seconds=seconds)))
            finish(directory, console)
        except InputError:
            raise
        except BaseException as error:
            error.add_note(again)
            raise


def prepare_all(parts: Parts, engine: "Engine") -> "Prepared":
    """The search split as the engine wants it, and the certainty that no prompt of any split and template is too long for the model."""
    examples = (*parts.splits.select, *parts.splits.test)
    for template in parts.task.templates:
        engine.prepare(examples, template)
    return engine.prepare(parts.splits.search, parts.template)


def prepare_rounds(parts: Parts, engine: "Engine", prepared: "Prepared") -> list["Prepared"]:
    """The search split as the engine wants it, one part for each round of the race."""
    race = parts.config.race
    if len(race.ends) == 1:
        return [prepared]
    return [engine.prepare(parts.splits.search[race.columns(number)], parts.template) for number in range(len(race.ends))]


def score_base(engine: "Engine", prepared: "Prepared", slices: Sequence["Prepared"], console: Console) -> tuple[np.ndarray, int]:
    """The unperturbed base on the search split, in the slices that the candidates get: its (D,) scores, and the tokens of all in one."""
    from perturbjax.randopt.replies import run_base

    scores, generated = [], 0
    with console.progress("compiling, base", len(slices), unit="slice") as progress:
        for number, part in enumerate(slices, start=1):
            replies = run_base(engine, part)
            scores.append(replies.scores[0])
            generated += int(replies.tokens[0]) - part.prompt_tokens
            progress.update(number, score=f"{np.concatenate(scores).mean():.3f}")
    return np.concatenate(scores), prepared.prompt_tokens + generated


def score_population(
    parts: Parts,
    engine: "Engine",
    slices: Sequence["Prepared"],
    directory: RunDirectory,
    console: Console,
    notice: Notice,
) -> ScoreTable:
    """Complete the rounds of the race, with a commit, a line of metrics.jsonl and a step of the progress bar per chunk."""
    race = parts.config.race
    with (
        RunState.open(directory.state, race.candidates, race.examples, parts.identity, len(slices)) as state,
        contextlib.ExitStack() as bars,
    ):
        notice.flush = state.settle
        for warning in state.warnings:
            console.note(f"perturbjax: warning: {warning}")
        if not state.table.done.any() and directory.candidates.exists():
            raise InputError(
                f"{directory.state}: the saved state is missing, candidates.parquet is not; restore it, or delete {directory.path}"
            )
        progress: Any = None

        def on_round(number: int, done: int, total: int) -> None:
            nonlocal progress
            bars.close()
            label = "search" if len(slices) == 1 else f"search, round {number + 1} of {len(slices)}"
            progress = bars.enter_context(console.progress(label, total, done))

        def on_chunk(report: ChunkReport) -> None:
            figures = {"best": f"{report.best:.3f}", "mean": f"{report.mean:.3f}", "tokens/s": f"{report.tokens_per_s:.0f}"}
            progress.update(report.done, **figures)

        search(engine, parts.population, race, slices, state, MetricsLog(directory.metrics), on_round, on_chunk, notice.committing)
        if bad := sum(state.table.nonfinite):
            # One candidate may count once a round; it is the hint to lower sigma that matters.
            console.note(f"perturbjax: warning: {bad} candidates gave NaN or infinite logits and score 0; lower --sigmas")
        return state.table


def evaluate_population(parts: Parts, engine: "Engine", base: tuple[np.ndarray, int], table: ScoreTable, console: Console) -> "Evaluation":
    """Choose on the select split and measure on the test split, beside the controls; ``base`` as ``score_base`` gives it."""
    from perturbjax.randopt.controls import SearchRecord, evaluate_run

    record = SearchRecord(
        race=parts.config.race,
        scores=table.scores,
        base_scores=base[0],
        base_tokens=base[1],
        tokens=table.tokens,
        seconds=table.seconds,
        nonfinite=table.nonfinite,
    )
    with console.stages() as on_stage:
        return evaluate_run(
            engine,
            parts.task,
            parts.splits,
            parts.population,
            record,
            model=Source(parts.model.name, parts.model.source),
            top_k=parts.config.top_k,
            template=parts.template,
            seed=parts.config.seed,
            on_stage=on_stage,
        )


def save_ensemble(parts: Parts, evaluation: "Evaluation", directory: RunDirectory) -> None:
    """Write ensemble.json: the members that the select split chose."""
    from perturbjax.randopt.ensemble import Ensemble

    Ensemble(parts.population, evaluation.members, parts.noise, parts.fingerprint, scores=evaluation.scores).save(directory.ensemble)


def finish(directory: RunDirectory, console: Console) -> None:
    """Write the report, show the table, say where things are."""
    from perturbjax.randopt.report import write_report
    from perturbjax.randopt.results import read_results
    from perturbjax.randopt.results_table import results_table

    report = write_report(directory.path)
    console.line(results_table(read_results(directory.results)))
    console.line()
    console.line(f"run directory  {directory.path.absolute()}")
    console.line(f"report         {Path(report).absolute()}")
