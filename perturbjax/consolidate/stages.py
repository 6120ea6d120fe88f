"""A whole consolidation: arms, their options on select, the gate, one look at test, the model. What is done is not done again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import chain, zip_longest
from pathlib import Path

import jax
import numpy as np

from perturbjax.cluster.peers import Peers
from perturbjax.consolidate.config import Config
from perturbjax.consolidate.evolving import evolve_arms
from perturbjax.consolidate.gate import best_of, choose
from perturbjax.consolidate.iterating import iterate_arms
from perturbjax.consolidate.measuring import Arm, Asker, Option
from perturbjax.consolidate.merging import merge_arms
from perturbjax.consolidate.results import BASE, CONSOLIDATED, VERSION, VOTE, Gate, OverControl, Results, Row, Tried, read_results
from perturbjax.consolidate.results_table import results_table
from perturbjax.consolidate.rounds import population_of
from perturbjax.consolidate.setup import describe, make_identity, open_run
from perturbjax.errors import InputError
from perturbjax.inference.outputs import Graded
from perturbjax.pretrained import Model
from perturbjax.pretrained.export import export_safetensors
from perturbjax.randopt.ensemble import Ensemble
from perturbjax.randopt.setup import Parts, make_engine
from perturbjax.records import to_json
from perturbjax.report import Comparison, Source, compared_entry, comparison, entry
from perturbjax.runs.console import SILENT, Progress
from perturbjax.runs.files import new_directory, read_json, write_json
from perturbjax.runs.identity import Identity
from perturbjax.runs.machine import require
from perturbjax.runs.rundir import RunDirectory
from perturbjax.runs.state import RunState
from perturbjax.tree import derived_seed

Made = tuple[tuple[Arm, ...], tuple[str, ...]]
"""Arms, and notes on how they were made."""
MODEL, ADAPTER = "model", "adapter"
"""Folders of what was made."""


def run(config: Config, progress: Progress = SILENT, peers: Peers | None = None) -> Results:
    """Makes one model of the members of a run, measures it, writes the directory; as ``consolidate.run``.

    Raises:
        InputError: the settings, or the run that they name, cannot be used; no directory was made or changed.
        Exception: anything else, with a note that says what is safe and how to go on.
    """
    started = time.perf_counter()
    config.validate()
    require("safetensors", *(("optax", "grain") if config.by == "distill" else ()))
    peers = peers or Peers(None, SILENT.note)
    its = config.run.resolve()
    directory = RunDirectory(config.out or its.with_name(f"{its.name}-{config.by}"))
    if directory.path.resolve().is_relative_to(its):
        raise InputError(f"`out` {directory.path}: lies in the run directory, which is not changed; give another place")
    directory.check_usable(config.resume)
    parts, ensemble = open_run(config.run, config.trust, progress, of_members=config.by != "evolve")
    make_arms = _plan(config, parts, ensemble)
    _, identity = directory.claim(make_identity(config, parts, ensemble), None, config.resume, {}, progress.note)
    asker = Asker(parts, ensemble, make_engine(parts), directory.path / "measured", progress)
    run_identity = read_json(RunDirectory(config.run).config)["identity_digest"]
    if not directory.config.exists():
        directory.create(identity, describe(config, parts, run_identity))
    with directory.written("consolidate", peers):
        if not directory.results.exists():
            arms, notes = make_arms(asker, identity, peers)
            gate, rows, taken = measure(asker, arms, parts.config.search.seed)
            if taken is not None:
                save(parts.model, taken, directory.path)
            made = _results(config, asker, run_identity, gate, rows, notes, time.perf_counter() - started)
            # Last, so that what has results.json has its model.
            write_json(directory.results, to_json(made))
        results = read_results(directory.results)
    progress.line(results_table(results, directory.path))
    return results


def _results(
    config: Config, asker: Asker, run_identity: str, gate: Gate, rows: tuple[Row, ...], notes: tuple[str, ...], seconds: float
) -> Results:
    parts = asker.parts
    return Results(
        version=VERSION,
        by=config.by,
        settings=config.settings,
        run=str(config.run.resolve()),
        identity=run_identity,
        model=Source(parts.model.name, parts.model.source),
        task=Source(parts.task.name, parts.task.source),
        members=len(asker.ensemble),
        select=len(parts.splits.select),
        gate=gate,
        rows=rows,
        notes=notes,
        saved=gate.taken,
        seconds=seconds,
    )


def _plan(config: Config, parts: Parts, ensemble: Ensemble) -> Callable[[Asker, Identity, Peers], Made]:
    """How the arms will be made, everything checked that can be before a directory is."""
    seed, lengths = parts.config.search.seed, config.lengths_of(len(ensemble))
    if config.by == "merge":
        return lambda asker, identity, peers: merge_arms(asker, lengths, seed)
    if config.by == "distill":
        from perturbjax.consolidate.distilling import check_rank, distill_arms
        from perturbjax.consolidate.labels import rows_to_label

        rows = rows_to_label(config, parts)
        check_rank(config, parts.model)
        return lambda asker, identity, peers: distill_arms(asker, config, rows, identity, freezing(peers))
    population_of(config, ensemble, parts.config.search, 1)
    make = iterate_arms if config.by == "iterate" else evolve_arms
    return lambda asker, identity, peers: make(asker, config, lengths, identity, freezing(peers))


def freezing(peers: Peers) -> Callable[[RunState], None]:
    """Lets SIGTERM wait for the commits of whatever state is open."""

    def opened(state: RunState) -> None:
        peers.freeze = state.freeze

    return opened


def measure(asker: Asker, arms: tuple[Arm, ...], seed: int) -> tuple[Gate, tuple[Row, ...], Option | None]:
    """Chooses on select, then answers the test questions with what was chosen.

    Args:
        asker: of the run.
        arms: at least one that is no control.
        seed: of the bootstrap.

    Returns:
        What the gate says, the rows, and the option that it took, None where that is the base.
    """
    on_select = asker.base("select")
    options = [(arm, option) for arm in arms for option in arm.options]
    answers = asker.several("select", [(f"{arm.name}, {option.label}", option.make) for arm, option in options])
    found = {(arm.name, option.label): measured for (arm, option), measured in zip(options, answers, strict=True)}
    # Options of one rank change the base alike: those that change it less come first, whichever arm they are of.
    ranks = zip_longest(*([(arm, option) for option in arm.options] for arm in arms if not arm.control))
    pool = [each for each in chain.from_iterable(ranks) if each is not None]
    choice = choose(np.array(on_select.scores), np.array([found[arm.name, o.label].scores for arm, o in pool]))
    arm, option = pool[choice.best]
    tried = tuple(Tried(each.name, o.label, found[each.name, o.label].accuracy, each.control) for each, o in options)
    gate = Gate(choice.gain, choice.taken, on_select.accuracy, arm.name, option.label, tried)

    best = {each.name: each.options[best_of(np.array([found[each.name, o.label].scores for o in each.options]))] for each in arms}
    spent = {each.name: _spent(each, [found[each.name, o.label] for o in each.options]) for each in arms}
    base, vote = asker.base("test"), asker.vote("test")
    answers = asker.several("test", [(f"{name}, {option.label}", option.make) for name, option in best.items()])
    tests = dict(zip(best, answers, strict=True))
    bootstrap = derived_seed(seed, "bootstrap")
    controls = [each.name for each in arms if each.control]

    def over(measured: Graded, other: Graded) -> Comparison:
        return comparison(np.array(measured.scores), np.array(other.scores), bootstrap)

    def row(name: str, what: str, measured: Graded, models: int = 1, tokens: int = 0, beside: Sequence[str] = ()) -> Row:
        scores = np.array(measured.scores)
        figures = compared_entry(
            entry(scores, np.array(measured.lenient), measured.tokens, tokens), scores, np.array(base.scores), bootstrap
        )
        over_controls = tuple(OverControl(**vars(over(measured, tests[control])), name=control) for control in beside)
        return Row(**vars(figures), name=name, option=what, models=models, over_vote=over(measured, vote), over_controls=over_controls)

    rows = [row(BASE, "", base), row(VOTE, f"of {len(asker.ensemble)}", vote, len(asker.ensemble))]
    for each in arms:
        rows.append(row(each.name, best[each.name].label, tests[each.name], 1, spent[each.name], () if each.control else controls))
    total = on_select.tokens + sum(spent[each.name] for each in arms if not each.control)
    # The option with the best accuracy of all is the best of its arm too, so it has been tested.
    chosen = (f"{arm.name}, {option.label}", tests[arm.name]) if gate.taken else ("the base", base)
    rows.append(row(CONSOLIDATED, *chosen, tokens=total, beside=controls))
    return gate, tuple(rows), option if gate.taken else None


def _spent(arm: Arm, on_select: list[Graded]) -> int:
    return max(option.tokens for option in arm.options) + sum(each.tokens for each in on_select)


def save(model: Model, option: Option, directory: Path) -> None:
    """Writes what was made, each folder whole or not at all."""
    if option.write is not None and not (directory / ADAPTER).exists():
        with new_directory(directory / ADAPTER) as folder:
            option.write(folder)
    if not (directory / MODEL).exists():
        params = jax.tree.map(lambda leaf, base: np.asarray(leaf).astype(base.dtype, copy=False), option.make(), model.params)
        export_safetensors(model, params, directory / MODEL)
