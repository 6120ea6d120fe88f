"""What a grid on a language model is made of: loading its parts, checking them against each other, making bases and programs."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import Mesh

from perturbjax.caulking.cells import Cell, grid_cells
from perturbjax.caulking.config import KEPT, Config
from perturbjax.caulking.features import HeadFeatures, HeadProblem
from perturbjax.caulking.grid import row_order
from perturbjax.caulking.language import TEST_ROWS, ChoiceProblem, make_methods, random_params
from perturbjax.caulking.program import GridProgram, Method, evenly_in_flight
from perturbjax.caulking.questions import Layout, Questions, encode_questions
from perturbjax.cluster import on_main
from perturbjax.errors import InputError
from perturbjax.inference.fingerprint import task_fingerprint
from perturbjax.models.config import DecoderConfig
from perturbjax.noise import Noise, Population, perturb
from perturbjax.pretrained import Model, load_model
from perturbjax.pretrained.params import DTYPES
from perturbjax.records import to_json
from perturbjax.runs.config import Machine, Run, absolute_if_there
from perturbjax.runs.identity import fields_of
from perturbjax.runs.machine import devices, resolve_dtype, versions
from perturbjax.tasks import load_task, template_by_name
from perturbjax.tasks.base import Example, Task, Template
from perturbjax.tasks.splits import make_splits, same_question_key
from perturbjax.tree import fingerprint

CHAPTER = "caulking"
NOISE_SEED = 0
"""Of the direction in which bases are moved."""


@dataclass(frozen=True)
class Parts:
    """Everything a grid is made of, loaded and checked; nothing is written yet.

    Attributes:
        config: the settings they were made from.
        model: the base.
        task: the target, and ``template`` of its prompts.
        train: examples that cells draw from; ``test``: those that measure them.
        dtype: of the base's weights.
        fingerprint: of the base's weights.
        methods: name -> method.
        identity: what makes two runs the same run.
    """

    config: Config
    model: Model
    task: Task
    template: Template
    train: tuple[Example, ...]
    test: tuple[Example, ...]
    dtype: str
    fingerprint: str
    methods: dict[str, Method]
    identity: dict[str, Any]

    @property
    def cells(self) -> tuple[Cell, ...]:
        grid = self.config.grid
        methods = {name: method.scratch for name, method in self.methods.items()}
        return grid_cells(self.config.bases.sigmas, grid.samples, range(grid.seeds), methods)

    @property
    def classes(self) -> np.ndarray:
        """The number of each training example's answer among its choices."""
        return np.array([example.choices.index(example.answer) for example in self.train])


@dataclass(frozen=True)
class Encoded:
    """Training and test questions in one shape.

    Attributes:
        train: that cells draw from; ``test``: that measure them.
        layout: of the questions of a step; ``test_layout``: of ``TEST_ROWS`` test questions.
        feature_layout: of ``TEST_ROWS`` questions of both, whose features are made for a head.
        columns: token ids of both that a head is read at (``Questions.columns``).
    """

    train: Questions
    test: Questions
    layout: Layout
    test_layout: Layout
    feature_layout: Layout
    columns: np.ndarray | None

    def keeps(self, method: str) -> bool:
        """Whether what a cell of the method trained is written. Models are not, and no head of all tokens, most of a small model."""
        return method in KEPT and (method != "head" or self.columns is not None)


def load_parts(config: Config, note: Callable[[str], None]) -> Parts:
    """Loads data and the base and makes everything that follows from them and the settings; data first, because they are read in a moment.

    Args:
        config: the settings.
        note: told what was loaded, a line each.

    Raises:
        InputError: any of it cannot be used.
    """
    config.validate()
    if set(config.grid.methods) == {"scratch"} and len(sigmas := config.bases.sigmas) > 1:
        given = ",".join(f"{sigma:g}" for sigma in sigmas)
        raise InputError(f"`sigmas` {given}: scratch trains no base; leave them out, or add a method that does to `methods`")
    task, template, train, test = load_split(config)
    dtype = resolve_dtype(config.bases.dtype)
    model = load_model(config.bases.base, dtype)
    note(f"base {model.name}: {model.source}")
    base = on_main(lambda: fingerprint(model.params))
    if "adapter" in config.grid.methods and config.grid.bottleneck > (most := model.config.hidden_size):
        raise InputError(f"`bottleneck` {config.grid.bottleneck}: at most {most} is required, the hidden size of {model.name}; lower it")
    methods = make_methods(config.grid, model.config)
    for name, method in methods.items():
        if method.caulk is not None and name != "head":  # a rank above the smaller dim, a rule that matches nothing: said now
            method.caulk.init(model.params, 0)
    identity = {
        "chapter": CHAPTER,
        **fields_of(config),
        "template": template.name,
        "dtype": dtype,
        "model_fingerprint": base,
        "task_fingerprint": task_fingerprint(task, (*train, *test)),
    }
    return Parts(config, model, task, template, train, test, dtype, base, methods, identity)


def load_split(config: Config) -> tuple[Task, Template, tuple[Example, ...], tuple[Example, ...]]:
    """The task, its template, the examples to draw from, and the test examples: disjoint, the same for all seeds.

    Raises:
        InputError: the task has no given answers, or too few examples.
    """
    data, most = config.data, config.grid.samples[-1]
    task = load_task(data.target, argument="target")
    if task.kind != "choice":
        own = "give each of its rows choices" if data.target.endswith(".jsonl") else "give e.g. sst2, boolq, rte"
        raise InputError(f"`target` {task.name}: a task of given answers is required, this one generates text; {own}")
    template = task.templates[0] if data.template is None else template_by_name(task, data.template)
    examples = task.examples()
    left = len({same_question_key(example) for example in examples}) - data.test_examples - 1
    if left < most:
        has = f"{task.name} has {max(0, left)} different ones beside `test_examples` {data.test_examples}"
        raise InputError(f"`samples` {most}: {has}; ask for fewer of either")
    splits = make_splits(examples, left, 1, data.test_examples, 0)
    return task, template, (*splits.search, *splits.select), splits.test


def encode(parts: Parts) -> Encoded:
    """Both splits, once the prompts' date is known.

    Raises:
        InputError: as ``encode_questions``.
    """
    both = encode_questions(parts.model, parts.task, (*parts.train, *parts.test), parts.template)
    train, test = both[: len(parts.train)], both[len(parts.train) :]
    batch = parts.config.fitting.batch
    return Encoded(train, test, Layout.of(train, batch), Layout.of(test, TEST_ROWS), Layout.of(both, TEST_ROWS), both.columns)


def row_orders(parts: Parts) -> np.ndarray:
    """The order of the training examples for each seed, (S, N) int32."""
    return np.stack([row_order(len(parts.train), seed, parts.classes) for seed in range(parts.config.grid.seeds)])


def moved_base(params: Any, sigma: float) -> Any:
    """The base moved by noise of this sigma. Embeddings and norms move too, as in RandOpt with its default rules."""
    return perturb(params, Population(NOISE_SEED, 1, (sigma,))[0], Noise()) if sigma else params


def make_bases(parts: Parts) -> dict[float, Callable[[], Any]]:
    """sigma -> a function that makes the base moved by it."""
    return {sigma: (lambda sigma=sigma: moved_base(parts.model.params, sigma)) for sigma in parts.config.bases.sigmas}


def make_programs(parts: Parts, encoded: Encoded, mesh: Mesh) -> dict[str, GridProgram]:
    """One program a method. All parameters of several models do not fit beside each other, so those methods train cell by cell."""
    grid, shape, fitting = parts.config.grid, parts.model.config, parts.config.fitting
    problem = ChoiceProblem(shape, encoded.layout, encoded.test_layout, grid.remat)
    init = random_params(shape, DTYPES[parts.dtype])
    programs = {}
    for name, method in parts.methods.items():
        together, keep = in_flight(parts.config, name, mesh, shape), encoded.keeps(name)
        if name == "head":
            features = HeadFeatures(shape, encoded.feature_layout, encoded.columns, grid.samples[-1], mesh)
            programs[name] = GridProgram(HeadProblem.loss, HeadProblem.error, method, fitting, mesh, together, keep=keep, freeze=features)
        else:
            programs[name] = GridProgram(problem.loss_by_size, problem.error, method, fitting, mesh, together, init=init, keep=keep)
    return programs


def in_flight(config: Config, method: str, mesh: Mesh, decoder: DecoderConfig) -> int:
    """Cells of a method trained together on each device. Products of experts cannot be vmapped; a head alone has none."""
    grid, alone = config.grid, {"full", "scratch"} | ({*KEPT} - {"head"} if decoder.num_experts else set())
    return 1 if method in alone else evenly_in_flight(grid.in_flight, len(grid.samples) * grid.seeds, mesh)


def describe_run(parts: Parts) -> dict[str, Any]:
    """The record in config.json: resolved settings, what they were run with and on."""
    config = parts.config
    bases = dataclasses.replace(config.bases, base=absolute_if_there(config.bases.base), dtype=parts.dtype)
    data = dataclasses.replace(config.data, target=absolute_if_there(config.data.target))
    settings = dataclasses.replace(config, bases=bases, data=data, machine=Machine(), run=Run())
    return {
        "chapter": CHAPTER,
        "config": to_json(settings),
        "model": {"name": parts.model.name, "source": parts.model.source, "fingerprint": parts.fingerprint},
        "task": {"name": parts.task.name, "source": parts.task.source, "fingerprint": parts.identity["task_fingerprint"]},
        "prompt_clock": parts.model.tokenizer.clock,
        "versions": versions(),
        "devices": devices(),
    }
