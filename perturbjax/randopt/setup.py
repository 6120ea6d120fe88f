"""What a search is made of: loading its parts, checking them against each other, reopening a run."""

import dataclasses
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perturbjax.cluster import on_main
from perturbjax.errors import InputError
from perturbjax.inference import Engine
from perturbjax.inference.calibration import Calibration
from perturbjax.inference.fingerprint import task_fingerprint
from perturbjax.noise import Noise, Population, Subset
from perturbjax.noise.spec import check_noise
from perturbjax.pretrained import Model, load_model
from perturbjax.randopt.auto_sigmas import choose_sigmas, with_sigmas
from perturbjax.randopt.config import AUTO, Config, Machine, Run
from perturbjax.randopt.ensemble import Ensemble
from perturbjax.randopt.screened import Screening, read_screening, scored_candidates
from perturbjax.records import to_json
from perturbjax.runs.config import absolute_if_there
from perturbjax.runs.identity import fields_of
from perturbjax.runs.machine import devices, make_mesh, resolve_dtype, shares_a_model, versions
from perturbjax.runs.rundir import RunDirectory
from perturbjax.tasks import load_task, template_by_name
from perturbjax.tasks.base import Example, Task, Template
from perturbjax.tasks.splits import Splits, make_splits, same_question_key
from perturbjax.tree import digest, fingerprint


@dataclass(frozen=True)
class Questions:
    """What a search asks.

    Attributes:
        task: with the generation budget in use.
        template: the prompt of the candidates.
        splits: three disjoint sets of examples.
    """

    task: Task
    template: Template
    splits: Splits

    @property
    def identity(self) -> dict[str, Any]:
        """The part of a run's identity that follows from them."""
        parts = {name: list(examples) for name, examples in vars(self.splits).items()}
        return {
            "template": self.template.name,
            "max_new_tokens": self.task.max_new_tokens,
            "task_fingerprint": task_fingerprint(self.task, (example for part in parts.values() for example in part)),
            "split_ids": digest({name: [example.id for example in part] for name, part in parts.items()}),
        }


def load_questions(config: Config) -> Questions:
    """Loads the task and assigns its examples to the splits.

    Raises:
        InputError: it cannot be used, or has too few examples.
    """
    data = config.data
    task = load_task(data.task, data.max_new_tokens)
    template = task.templates[0] if data.template is None else template_by_name(task, data.template)
    splits = make_splits(task.examples(), data.search_examples, data.select_examples, data.test_examples, config.search.seed)
    return Questions(task, template, splits)


@dataclass(frozen=True)
class Parts:
    """Everything a search is made of, loaded and checked; nothing is written yet.

    Attributes:
        config: the settings they were made from, with the sigmas that were chosen.
        task: with the generation budget in use.
        template: the prompt of the candidates.
        splits: three disjoint sets of examples.
        model: the base, as loaded.
        population: the whole of it; ``candidates(scores)`` are those that are scored.
        fingerprint: of its parameters.
        identity: what makes two runs the same run.
        calibration: how the sigmas were chosen, if they were just now.
        screening: which candidates are scored, once that is known, where the searcher screens.
    """

    config: Config
    task: Task
    template: Template
    splits: Splits
    model: Model
    noise: Noise
    population: Population
    dtype: str
    fingerprint: str
    identity: dict[str, Any]
    calibration: Calibration | None = None
    screening: Screening | None = None

    def candidates(self, scores: np.ndarray) -> Population | Subset:
        """The candidates that are scored, counted from 0, as far as their choice is known.

        Args:
            scores: (N, D) of the search, NaN where a candidate was not asked.
        """
        return scored_candidates(self.config.search, self.screening, scores)


def load_parts(config: Config, note: Callable[[str], None]) -> Parts:
    """Load task and model and make everything that follows from them and the settings.

    The task comes first: it is read in a moment, so a mistake in it is reported before a large model is.

    Args:
        config: the settings.
        note: told what was loaded, a line each.

    Raises:
        InputError: any of it cannot be used.
    """
    config.validate()
    search, questions = config.search, load_questions(config)
    task = questions.task
    if search.searcher == "screen" and task.kind != "choice":
        raise InputError(
            f"`searcher` screen: task {task.name} has replies that are generated, whose log-odds have no gradient; give a multiple-choice "
            "`task`, or leave `searcher` out"
        )
    noise = search.to_noise()
    dtype = resolve_dtype(config.base.dtype)
    model = load_model(config.base.model, dtype, stored=shares_a_model(config.machine))
    note(f"model {model.name}: {model.source}")
    note(f"task {task.name}: {task.source}")
    covered = check_noise(model.params, noise)
    for rule in covered.unused_rules:
        note(f"perturbjax: warning: noise rule {rule.pattern!r} matches no parameter")
    note(f"noise {noise.distribution}: moves {covered.fraction:.1%} of {covered.total:,} parameters")
    base = on_main(lambda: fingerprint(model.params))  # reads all of the weights, of which the others read their part alone
    calibration = choose_sigmas(config, questions, model, noise, note) if search.sigmas == AUTO else None
    if calibration is not None:
        config = with_sigmas(config, calibration.sigmas)
    population, identity = config.search.to_population(), make_identity(config, base, dtype, questions)
    return Parts(config, task, questions.template, questions.splits, model, noise, population, dtype, base, identity, calibration)


_LATER = ("searcher", "screened")
"""Settings that an identity names only where they are not the default: without them a run is the run that it was before they existed."""


def make_identity(config: Config, base: str, dtype: str, questions: Questions) -> dict[str, Any]:
    """The identity of a run: the fields of ``Config.IDENTITY``, resolved, and fingerprints.

    Args:
        config: the settings, validated.
        base: ``fingerprint(params)`` of the base.
        dtype: the resolved type of the weights.
        questions: what is asked.
    """
    defaults = fields_of(Config())
    fields = {name: value for name, value in fields_of(config).items() if name not in _LATER or value != defaults[name]}
    return fields | questions.identity | {"dtype": dtype, "model_fingerprint": base}


def unused_rows(parts: Parts) -> list[Example]:
    """Rows of the run's own task that are in none of its splits, repeated ones once, in an order that depends on seed and ids alone."""
    splits = parts.splits
    seen = {same_question_key(example) for example in (*splits.search, *splits.select, *splits.test)}
    rows = []
    for example in sorted(parts.task.examples(), key=lambda e: digest([parts.config.search.seed, e.id])):
        if same_question_key(example) not in seen:
            seen.add(same_question_key(example))
            rows.append(example)
    return rows


def make_engine(parts: Parts, task: Task | None = None, mesh: str | None = None) -> Engine:
    """The engine of a run, for its own task or for another one, on its own mesh or on another one (DATAxMODEL)."""
    machine = dataclasses.replace(parts.config.machine, mesh=mesh or parts.config.machine.mesh)
    on, strategy = make_mesh(machine), parts.config.search.strategy
    return Engine(parts.model, task or parts.task, parts.noise, on, machine.chunk, machine.in_flight, strategy=strategy)


def describe_run(parts: Parts) -> dict[str, Any]:
    """The record in config.json: resolved settings, what they were run with and on."""
    config = parts.config

    settings = dataclasses.replace(
        config,
        base=dataclasses.replace(config.base, model=absolute_if_there(config.base.model), dtype=parts.dtype),
        data=dataclasses.replace(config.data, task=absolute_if_there(config.data.task), template=parts.template.name),
        # Of the command that ran, not of the run.
        machine=Machine(chunk=config.machine.chunk, in_flight=config.machine.in_flight),
        run=Run(),
    )
    return {
        "config": to_json(settings),
        "model": {"name": parts.model.name, "source": parts.model.source, "fingerprint": parts.fingerprint},
        "task": {"name": parts.task.name, "source": parts.task.source, "fingerprint": parts.identity["task_fingerprint"]},
        "prompt_clock": parts.model.tokenizer.clock,
        "versions": versions(),
        "devices": devices(),
        **({} if parts.calibration is None else {"calibration": to_json(parts.calibration)}),
    }


def reopen(run: Path, note: Callable[[str], None], trusted: Collection[str] = ()) -> Parts:
    """The parts of an existing run, from its config.json; refused unless model, task and splits are still the same.

    Raises:
        InputError: no run there, it names code that is not ``trusted``, or something it was made from has changed.
    """
    directory = RunDirectory(run)
    parts = load_parts(directory.read_settings(Config, trusted), note)
    identity = directory.check_identity(parts.identity, fields_of(Config()))
    parts.model.tokenizer.clock = directory.read_config()["prompt_clock"]  # prompts show the date that they showed when it began
    return dataclasses.replace(parts, identity=dict(identity))


def with_candidates(parts: Parts, run: Path) -> Parts:
    """The parts of an existing run, as ``reopen`` gives them, which then know their ``candidates``.

    Raises:
        InputError: as ``read_screening``.
    """
    return dataclasses.replace(parts, screening=read_screening(RunDirectory(run), parts.config.search))


def reopen_questions(run: Path, trusted: Collection[str] = ()) -> tuple[Config, Questions]:
    """The settings and the questions of an existing run, without its model; refused unless task and splits are still the same.

    Raises:
        InputError: no run there, it names code that is not ``trusted``, or its task has changed.
    """
    directory = RunDirectory(run)
    config = directory.read_settings(Config, trusted)
    questions = load_questions(config)
    directory.check_identity({**directory.read_config()["identity"], **questions.identity}, {})
    return config, questions


def reopen_ensemble(run: Path, note: Callable[[str], None], trusted: Collection[str] = ()) -> tuple[Parts, Ensemble]:
    """The parts and the saved ensemble of a finished run.

    Raises:
        InputError: no run there, its search has not finished, it names code that is not ``trusted``, or something it was made from has
            changed.
    """
    directory = RunDirectory(run)
    settings = directory.read_settings(Config, trusted)
    if not directory.ensemble.exists():
        again = f"perturbjax randopt ... --out {run} --resume"
        raise InputError(f"{run}: no ensemble.json, the search has not finished; continue it with: {again}")
    ensemble = Ensemble.load(directory.ensemble)
    search = settings.search
    for theirs, ours in ((ensemble.population, search.to_population()), (ensemble.noise, search.to_noise())):
        if theirs != ours:
            raise InputError(f"{directory.ensemble}: {theirs}: the settings of the run say {ours}; restore the file, or search anew")
    parts = reopen(run, note, trusted)
    if ensemble.fingerprint != parts.fingerprint:
        bases = f"{ensemble.fingerprint[:19]}, the run's is {parts.fingerprint[:19]}"
        raise InputError(f"{directory.ensemble}: was found around another base ({bases}); restore the file, or run the search anew")
    return parts, ensemble
