"""What several subcommands do before their own work: load the parts, check them against each other, reopen a run."""

import copy
import dataclasses
import importlib.metadata
import importlib.util
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perturbjax.errors import InputError
from perturbjax.noise import Noise, Population, coverage
from perturbjax.randopt.config import SearchConfig
from perturbjax.runs.console import Console
from perturbjax.runs.identity import make_identity
from perturbjax.runs.rundir import RunDirectory
from perturbjax.runs.share import KIND, Share
from perturbjax.tasks.base import Task, Template
from perturbjax.tree import fingerprint

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from perturbjax.inference import Engine
    from perturbjax.pretrained import Model
    from perturbjax.randopt.ensemble import Ensemble
    from perturbjax.tasks.splits import Splits


@dataclass(frozen=True)
class Parts:
    """Everything a search is made of, loaded and checked; nothing is written yet.

    Attributes:
        config: the settings they were made from.
        task: with the generation budget in use.
        template: the prompt of the candidates.
        splits: three disjoint sets of examples.
        model: the base, as loaded.
        fingerprint: of its parameters.
        identity: what makes two runs the same run.
    """

    config: SearchConfig
    task: Task
    template: Template
    splits: "Splits"
    model: "Model"
    noise: Noise
    population: Population
    dtype: str
    fingerprint: str
    identity: dict[str, Any]


def load_parts(config: SearchConfig, console: Console) -> Parts:
    """Load task and model and make everything that follows from them and the settings.

    The task comes first: it is read in a moment, so a mistake in it is reported before a large model is.

    Raises:
        InputError: any of it cannot be used.
    """
    from perturbjax.pretrained import load_model
    from perturbjax.tasks import template_by_name
    from perturbjax.tasks.splits import make_splits

    config.validate()
    task = load_task_with_budget(config.task, config.max_new_tokens)
    template = task.templates[0] if config.template is None else template_by_name(task, config.template)
    splits = make_splits(task.examples(), config.search_examples, config.select_examples, config.test_examples, config.seed)
    noise = make_noise(config)
    population = Population(seed=config.seed, size=config.population, sigmas=config.sigmas, antithetic=config.antithetic)
    dtype = resolve_dtype(config.dtype)
    model = load_model(config.model, dtype, stored=is_dealt(config))
    console.note(f"model {model.name}: {model.source}")
    console.note(f"task {task.name}: {task.source}")
    moved = coverage(model.params, noise)
    console.note(f"noise {noise.distribution}: moves {moved.share:.1%} of {moved.total:,} parameters")
    digest = fingerprint(model.params)
    identity = make_identity(
        config,
        model_fingerprint=digest,
        dtype=dtype,
        task=task,
        template=template.name,
        splits={"search": splits.search, "select": splits.select, "test": splits.test},
    )
    return Parts(config, task, template, splits, model, noise, population, dtype, digest, identity)


def make_engine(parts: Parts, task: Task | None = None) -> "Engine":
    """The scoring engine of a run, for its own task or for another one."""
    return _engine(parts.config, parts.model, task or parts.task, parts.noise)


def follow(config: SearchConfig) -> None:
    """On every process but the first: its share of the work of a search, until process 0 has finished.

    Raises:
        InputError: the task or the model cannot be loaded here.
    """
    from perturbjax.pretrained import load_model

    task = load_task_with_budget(config.task, config.max_new_tokens)
    model = load_model(config.model, resolve_dtype(config.dtype), stored=is_dealt(config))
    share = Share()
    _engine(config, model, task, make_noise(config)).follow({KIND: share.obey})


def _engine(config: SearchConfig, model: "Model", task: Task, noise: Noise) -> "Engine":
    from perturbjax.inference import Engine

    return Engine(model, task, noise, make_mesh(config), config.chunk, config.in_flight, strategy=config.strategy)


def make_mesh(config: SearchConfig) -> "Mesh":
    """The mesh that --mesh asks for, of all devices of all processes.

    Raises:
        InputError: there are more or fewer devices.
    """
    import jax

    from perturbjax import sharding

    devices = jax.device_count()
    candidates, model = _axes(config) or (devices, 1)
    if candidates * model != devices:
        raise InputError(f"--mesh {config.mesh}: {candidates * model} devices, there are {devices}; use e.g. --mesh {devices}x1")
    return sharding.make_mesh(model=model)


def is_dealt(config: SearchConfig) -> bool:
    """Whether a model is to be read by parts: several devices or processes share it."""
    import jax

    return jax.process_count() > 1 or (_axes(config) or (1, 1))[1] > 1


def _axes(config: SearchConfig) -> tuple[int, int] | None:
    if config.mesh is None:
        return None
    candidates, model = config.mesh.split("x")
    return int(candidates), int(model)


def make_noise(config: SearchConfig) -> Noise:
    """The noise specification of the settings."""
    return Noise(distribution=config.noise, rank=config.rank, scale=config.scale)


def load_task_with_budget(spec: str, max_new_tokens: int | None) -> Task:
    """Load a task; ``max_new_tokens`` replaces its generation budget.

    Raises:
        InputError: no such task, or a budget for a task that generates nothing.
    """
    from perturbjax.tasks import load_task

    task = load_task(spec)
    if max_new_tokens is not None:
        if task.kind != "generation":
            raise InputError(f"--max-new-tokens {max_new_tokens}: task {task.name} chooses between given answers; leave it out")
        # A copy: a user's task is an object of the user's module.
        task = copy.copy(task)
        task.max_new_tokens = max_new_tokens
    return task


def resolve_dtype(dtype: str) -> str:
    """``auto`` -> the type that this backend is fast in; XLA:CPU multiplies float32 faster than bfloat16 at every size tried."""
    if dtype != "auto":
        return dtype
    import jax

    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def describe_run(parts: Parts) -> dict[str, Any]:
    """The record in config.json: resolved settings, what they were run with and on."""
    import jax

    settings: dict[str, Any] = dataclasses.asdict(parts.config) | {"sigmas": list(parts.config.sigmas)}
    # Of the command that ran, not of the run.
    settings |= {"out": None, "resume": False, "profile": None, "compile_cache": "auto"}
    settings |= {"mesh": None, "coordinator": None, "num_processes": None, "process_id": None}
    # Absolute, so that the run can be reopened from any directory.
    for name in ("model", "task"):
        if (path := Path(settings[name]).expanduser()).exists():
            settings[name] = str(path.absolute())
    return {
        "config": settings | {"template": parts.template.name, "dtype": parts.dtype, "max_new_tokens": parts.config.max_new_tokens},
        "model": {"name": parts.model.name, "source": parts.model.source, "fingerprint": parts.fingerprint},
        "task": {"name": parts.task.name, "source": parts.task.source, "fingerprint": parts.identity["task_fingerprint"]},
        "prompt_clock": parts.model.tokenizer.clock,
        "versions": versions(),
        "devices": {
            "backend": jax.default_backend(),
            "kinds": sorted({device.device_kind for device in jax.devices()}),
            "count": jax.device_count(),
            "processes": jax.process_count(),
        },
    }


def versions() -> dict[str, str]:
    """Versions of everything that a figure may depend on."""
    packages = ("perturbjax", "jax", "jaxlib", "flax", "numpy", "orbax-checkpoint")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def reopen(run: Path, console: Console) -> Parts:
    """The parts of an existing run, from its config.json; refused unless model, task and splits are still the same.

    Raises:
        InputError: no run there, or something it was made from has changed.
    """
    directory = RunDirectory(run)
    saved = directory.read_config()["config"]
    try:
        config = SearchConfig(**(saved | {"sigmas": tuple(saved["sigmas"]), "out": None}))
    except (TypeError, KeyError) as error:
        raise InputError(f"{directory.config}: damaged ({error}); restore the file, or run the search anew") from error
    parts = load_parts(config, console)
    continue_run(directory, parts)
    return parts


def continue_run(directory: RunDirectory, parts: Parts) -> None:
    """Check that ``parts`` are those of the run, and let its prompts show the date that they showed when it began.

    Raises:
        InputError: another run, the differences named.
    """
    directory.check_identity(parts.identity)
    parts.model.tokenizer.clock = directory.read_config()["prompt_clock"]


def reopen_ensemble(run: Path, console: Console) -> "tuple[Parts, Ensemble]":
    """The parts and the saved ensemble of a finished run.

    Raises:
        InputError: no run there, its search has not finished, or something it was made from has changed.
    """
    from perturbjax.randopt.ensemble import Ensemble

    directory = RunDirectory(run)
    directory.read_config()
    if not directory.ensemble.exists():
        again = f"perturbjax search ... --out {run} --resume"
        raise InputError(f"{run}: no ensemble.json, the search has not finished; continue it with: {again}")
    ensemble = Ensemble.load(directory.ensemble)
    parts = reopen(run, console)
    if ensemble.fingerprint != parts.fingerprint:
        bases = f"{ensemble.fingerprint[:19]}, the run's is {parts.fingerprint[:19]}"
        raise InputError(f"{directory.ensemble}: was found around another base ({bases}); restore the file, or run the search anew")
    return parts, ensemble


def require(*modules: str) -> None:
    """Check that optional packages are installed, before hours are spent on what they would show.

    Raises:
        InputError: one is missing; what to install.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"{', '.join(missing)} not installed; pip install 'perturbjax[demo]'")
