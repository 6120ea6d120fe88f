"""What the studies of a language model ask it: settings, questions, engine."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from perturbjax.errors import InputError
from perturbjax.noise import Noise, Population
from perturbjax.noise.spec import check_noise
from perturbjax.runs.config import Base, Machine
from perturbjax.runs.console import Progress
from perturbjax.tasks import load_task, template_by_name
from perturbjax.tasks.base import Example, Task, Template
from perturbjax.tasks.splits import in_order
from perturbjax.tree import derived_seed

if TYPE_CHECKING:
    from perturbjax.inference.engine import Engine
    from perturbjax.pretrained import Model
    from perturbjax.randopt.setup import Parts


def load_questions(
    name: str, template: str | None, count: int, seed: int, argument: str = "task"
) -> tuple[Task, Template, Sequence[Example]]:
    """A task, its template and the last ``count`` questions of the seed's order, which a search of this seed asks last; ``argument`` as of
    ``load_task``.

    Raises:
        InputError: no such task or template, or too few questions.
    """
    task = load_task(name, argument=argument)
    chosen = task.templates[0] if template is None else template_by_name(task, template)
    examples = in_order(task.examples(), seed)
    if len(examples) < count:
        raise InputError(f"`questions` {count}: task {task.name} has {len(examples)} different ones; lower it")
    return task, chosen, examples[-count:]


def load_base(base: Base, machine: Machine, progress: Progress) -> Model:
    """The model of the settings."""
    from perturbjax.pretrained import load_model  # needs Flax, which reading settings does without
    from perturbjax.runs.machine import resolve_dtype, shares_a_model

    model = load_model(base.model, resolve_dtype(base.dtype), stored=shares_a_model(machine))
    progress.note(f"model {model.name}: {model.source}")
    return model


def reopen_search(run: Path, trusted: Collection[str], machine: Machine, progress: Progress) -> tuple[Parts, Engine]:
    """The parts of a search, and its engine on the mesh of these settings.

    Raises:
        InputError: no run there, it names code that is not ``trusted``, something it was made from has changed, its candidates are no
            random sample, or there is no such mesh.
    """
    from perturbjax.randopt import setup

    parts = setup.reopen(run, progress.note, trusted)
    if (searcher := parts.config.search.searcher) != "random":
        raise InputError(
            f"{run}: its candidates were chosen by searcher {searcher}; what studies say is of a random sample: give another run"
        )
    here = replace(parts.config, machine=replace(parts.config.machine, mesh=machine.mesh))
    return parts, setup.make_engine(replace(parts, config=here))


def make_engine(model: Model, task: Task, noise: Noise, machine: Machine) -> Engine:
    """An engine for this noise.

    Raises:
        InputError: the noise moves no parameter of this model, or matches none.
    """
    from perturbjax.inference import Engine
    from perturbjax.runs.machine import make_mesh

    if unused := check_noise(model.params, noise).unused_rules:
        raise InputError(f"`groups`: {unused[0].pattern!r} matches no parameter of {model.name}; leave that group out")
    return Engine(model, task, noise, make_mesh(machine))


def check_one_device(machine: Machine) -> None:
    """Raise ``InputError`` unless a study with a backward pass can run on this mesh."""
    if machine.coordinator is not None or (machine.axes or (1, 1))[1] > 1:
        raise InputError("`mesh`, `coordinator`: the backward pass of this study is made on one device; leave them out")


def population_of(size_name: str, purpose: str, seed: int, size: int, sigma: float) -> Population:
    """The candidates of a study, of seeds that serve this purpose alone.

    Raises:
        InputError: their number, the setting ``size_name``, or the noise scale ``sigma`` is out of range.
    """
    try:
        return Population(derived_seed(seed, purpose), size, (sigma,))
    except ValueError as error:
        name = size_name if str(error).startswith("size") else "sigma"
        raise InputError(f"`{name}`{str(error).removeprefix('sigmas').removeprefix('size')}") from error
