"""A finished grid on a language model, opened again: one of its caulks on its base, for answers and export."""

import dataclasses
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from perturbjax.caulking.cells import CELLS, Cell, read_cells
from perturbjax.caulking.config import KEPT, Config
from perturbjax.caulking.features import head_shapes, with_head
from perturbjax.caulking.files import CAULKS, read_caulk
from perturbjax.caulking.language import make_methods
from perturbjax.caulking.program import Method
from perturbjax.caulking.questions import encode_questions
from perturbjax.caulking.setup import load_split, moved_base
from perturbjax.errors import InputError
from perturbjax.inference.fingerprint import task_fingerprint
from perturbjax.pretrained import Model, load_model
from perturbjax.runs.rundir import RunDirectory
from perturbjax.tasks.base import Example, Task, Template
from perturbjax.tree import fingerprint


@dataclass(frozen=True)
class Caulked:
    """One caulk of a run.

    Attributes:
        cell: which.
        task: the target, and ``template`` of its prompts; ``known``: its examples.
        base: the model that it was trained on, moved if its sigma is not 0.
        method: how; ``trained``: the caulk.
        columns: token ids of a caulk that is a head.
    """

    cell: Cell
    task: Task
    template: Template
    known: tuple[Example, ...]
    base: Model
    method: Method
    trained: Any
    columns: np.ndarray | None

    @property
    def model(self) -> Model:
        """The adapted model; LoRA is merged. With a head, a decoder whose head was its embedding has one of its own."""
        trained, base = self.trained["caulk"], dataclasses.replace(self.base, name=f"{self.base.name}, {self.cell.name}")
        if self.columns is not None:
            return with_head(base, trained["head"]["kernel"], self.columns)
        return dataclasses.replace(base, params=jax.tree.map(np.asarray, self.method.adapter.apply(base.params, trained)))


def reopen(run: Path, name: str | None, note: Callable[[str], None], trusted: Collection[str] = ()) -> Caulked:
    """A caulk of a run, refused unless its base is still the same.

    Args:
        run: its directory.
        name: of the cell; the first method's, on the first base, with the most examples and seed 0, when left out.
        note: told what was loaded.
        trusted: each ``module:attribute`` that the person who opens the run named.

    Raises:
        InputError: no run there, it names code that is not ``trusted``, it has not finished, it has no such cell or no file of it, its
            training diverged, or something it was made from has changed.
    """
    directory = RunDirectory(run)
    content = directory.read_config()
    config = directory.read_settings(Config, trusted)
    if not directory.results.exists():
        raise InputError(f"{directory.path}: the run has not finished; continue it with `resume`")
    task, template, train, test = load_split(config)
    if task_fingerprint(task, (*train, *test)) != content["identity"].get("task_fingerprint"):
        raise InputError(f"{directory.path}: the examples of {task.name} are not those of the run; restore the file that they came from")
    base = load_model(config.bases.base, config.bases.dtype)
    note(f"base {base.name}: {base.source}")
    if fingerprint(base.params) != content["identity"].get("model_fingerprint"):
        raise InputError(f"{directory.path}: its caulks were trained on another {base.name}; restore that model")
    base.tokenizer.clock = content["prompt_clock"]
    columns = encode_questions(base, task, (*train, *test), template).columns if "head" in config.grid.methods else None
    cell = _cell(directory.path, config, name, {*KEPT} - ({"head"} if columns is None else set()))
    method = make_methods(config.grid, base.config)[cell.method]
    assert cell.quality is not None
    moved = dataclasses.replace(base, params=moved_base(base.params, cell.quality))
    columns = columns if cell.method == "head" else None
    shapes = jax.eval_shape(lambda: method.init(moved.params, jax.random.key(0))) if columns is None else head_shapes(base.config, columns)
    trained = read_caulk(directory.path / CAULKS, cell, shapes)
    return Caulked(cell, task, template, (*train, *test), moved, method, trained, columns)


def _cell(run: Path, config: Config, name: str | None, kept: Collection[str]) -> Cell:
    methods, sigmas = {*kept} & {*config.grid.methods}, config.bases.sigmas
    cells = [cell for cell in read_cells(run / CELLS) if cell.method in methods and cell.quality in sigmas]
    if not cells:
        raise InputError(f"{run}: caulks of {', '.join(config.grid.methods)} are not kept; train some of {', '.join(sorted(kept))}")
    if name is None:
        first = [cell for cell in cells if (cell.method, cell.quality, cell.seed) == (cells[0].method, cells[0].quality, cells[0].seed)]
        found = max(first, key=lambda cell: cell.samples)
    else:
        found = next((cell for cell in cells if cell.name == name), None)
    if found is None:
        raise InputError(f"`cell` {name}: the run keeps no such caulk; give e.g. {cells[0].name} or {cells[-1].name}")
    if not math.isfinite(found.error):
        finite = next((f"; give e.g. {cell.name}" for cell in cells if math.isfinite(cell.error)), ", as all others that are kept did")
        raise InputError(f"`cell` {found.name}: its training diverged{finite}")
    return found
