"""What a training is made of: loading its parts, checking them against each other, making its problem."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jax.sharding import Mesh

from perturbjax.cluster import on_main
from perturbjax.errors import InputError
from perturbjax.inference.fingerprint import task_fingerprint
from perturbjax.inference.prompts import encode_prompts
from perturbjax.ivl.byte_head import token_classes
from perturbjax.ivl.config import Config
from perturbjax.ivl.logits_files import LogitsFiles
from perturbjax.ivl.loss import value_loss
from perturbjax.ivl.results import Demonstrated
from perturbjax.ivl.tokens import token_table
from perturbjax.ivl.value import PROBES, ValueConfig, make_value
from perturbjax.pretrained import Model, load_model
from perturbjax.pretrained.params import DTYPES
from perturbjax.records import to_json
from perturbjax.runs.config import Machine, Run, absolute_if_there
from perturbjax.runs.identity import fields_of
from perturbjax.runs.machine import devices, resolve_dtype, versions
from perturbjax.sharding import MODEL
from perturbjax.tasks import load_task, template_by_name
from perturbjax.tasks.base import Example, Task, Template
from perturbjax.tasks.splits import make_splits
from perturbjax.train.demonstrations import (
    Demonstration,
    encode_demonstrations,
    is_task,
    load_demonstrations,
    task_demonstrations,
    without_questions,
)
from perturbjax.train.placement import check_batch, put_params
from perturbjax.train.problem import Problem
from perturbjax.train.rows import Rows, pack_rows
from perturbjax.tree import digest, fingerprint

CHAPTER = "ivl"


@dataclass(frozen=True)
class Parts:
    """Everything a training is made of, loaded and checked; nothing is written yet.

    Attributes:
        config: the settings they were made from.
        models: the bases that are trained on, the first one first; then the one held out, if there is one.
        task: asked at the end.
        template: of its prompts.
        test: the questions.
        train: demonstrations to train on; ``validation``: to measure on; ``removed``: how many ask a test question and are neither.
        dtype: of the bases' weights.
        fingerprint: of the first base's weights.
        vocabulary: of its tokenizer.
        identity: what makes two runs the same run.
    """

    config: Config
    models: tuple[Model, ...]
    task: Task
    template: Template
    test: tuple[Example, ...]
    train: tuple[Demonstration, ...]
    validation: tuple[Demonstration, ...]
    removed: int
    dtype: str
    fingerprint: str
    vocabulary: str
    identity: dict[str, Any]


@dataclass(frozen=True)
class Packed:
    """Packed demonstrations to train on and to measure on, and their figures."""

    rows: Rows
    validation: Rows
    demonstrated: Demonstrated


def load_parts(config: Config, note: Callable[[str], None]) -> Parts:
    """Loads data and models and makes everything that follows from them and the settings; data first, because they are read in a moment.

    Args:
        config: the settings.
        note: told what was loaded, a line each.

    Raises:
        InputError: any of it cannot be used.
    """
    config.validate()
    task, template, test, train, validation, removed = _split(config)
    dtype = resolve_dtype(config.bases.dtype)
    names = (config.bases.base, *config.bases.also, *([config.bases.held_out] if config.bases.held_out else []))
    # With logits in files a base is in memory only while they are written: its weights stay in their file, to be read when they are used.
    models = tuple(load_model(name, dtype, stored=config.bases.logits != "live") for name in names)
    for model in models:
        note(f"base {model.name}: {model.source}")
    vocabulary = token_table(models[0].tokenizer).vocabulary
    for name, model in zip(names[1:], models[1:], strict=True):
        if token_table(model.tokenizer).vocabulary != vocabulary or model.config.vocab_size != models[0].config.vocab_size:
            raise InputError(f"`also`, `held_out` {name}: its vocabulary is not that of {models[0].name}; bases of a training share one")
    layers, most = config.value.layers, models[0].config.num_layers
    if layers is not None and layers > most:
        raise InputError(f"`layers` {layers}: 1 to {most}, the number that the base has, is required")
    if (config.bases.kept or 1) > (size := models[0].config.vocab_size):
        raise InputError(f"`logits_k` {config.bases.kept}: 1 to {size}, the size of the base's vocabulary, is required")
    tokens = config.training.row_tokens
    if tokens > (longest := min(model.config.max_positions for model in models)):
        raise InputError(f"`row_tokens` {tokens}: the bases take at most {longest}; lower it")
    if removed:
        number = "1 demonstration asks" if removed == 1 else f"{removed} demonstrations ask"
        note(f"perturbjax: warning: {number} a test question, left out")
    base = on_main(lambda: fingerprint(models[0].params))
    identity = {
        "chapter": CHAPTER,
        **fields_of(config),
        "template": template.name,
        "max_new_tokens": task.max_new_tokens,
        "dtype": dtype,
        "model_fingerprint": base,
        "other_fingerprints": [on_main(lambda model=model: fingerprint(model.params)) for model in models[1:]],
        "task_fingerprint": task_fingerprint(task, test),
        "demonstration_texts": demonstration_texts(train, validation),
    }
    return Parts(config, models, task, template, test, train, validation, removed, dtype, base, vocabulary, identity)


def pack(parts: Parts, note: Callable[[str], None]) -> Packed:
    """Packs the demonstrations, once the prompts' date is known.

    Raises:
        InputError: no demonstration fits into a row, or a test prompt is longer than the base's context.
    """
    first, config = parts.models[0], parts.config
    encode_prompts(first, parts.task, parts.test, parts.template, parts.task.max_new_tokens)  # said now, not after hours of training
    tokens = config.training.row_tokens
    rows, held = (pack_rows(encode_demonstrations(some, first.tokenizer), tokens) for some in (parts.train, parts.validation))
    if too_long := (*rows.left_out, *held.left_out):
        shown = ", ".join(too_long[:3]) + (", ..." if len(too_long) > 3 else "")
        number = "1 demonstration is" if len(too_long) == 1 else f"{len(too_long)} demonstrations are"
        longest = min(model.config.max_positions for model in parts.models)
        more = f"; --row-tokens can be raised, to {longest}" if tokens < longest else ", as much as the bases take"
        note(f"perturbjax: warning: {number} longer than {tokens} tokens and left out ({shown}){more}")
    source = config.data.demonstrations
    figures = Demonstrated(source, rows.demonstrations, held.demonstrations, len(rows), len(too_long), parts.removed, rows.tokens)
    note(f"demonstrations {source}: {figures.train:,} in {len(rows):,} rows of {tokens} tokens, {figures.validation:,} for validation")
    return Packed(rows, held, figures)


def load_split(config: Config) -> tuple[Task, Template, tuple[Example, ...], tuple[Demonstration, ...], tuple[Demonstration, ...]]:
    """The task that is asked at the end, its template, the test questions; demonstrations to train on, and to validate with."""
    return _split(config)[:5]


def demonstration_texts(train: tuple[Demonstration, ...], validation: tuple[Demonstration, ...]) -> str:
    """What demonstrations are known by: the texts, not the tokens, because some chat templates write the date."""
    return digest([[to_json(each) for each in some] for some in (train, validation)])


def _split(config: Config) -> tuple[Task, Template, tuple[Example, ...], tuple[Demonstration, ...], tuple[Demonstration, ...], int]:
    """Task, template and test questions; demonstrations to train on and to validate with; how many were removed as test questions."""
    data, seed = config.data, config.value.seed
    own = is_task(data.demonstrations)
    if own and data.task in (None, data.demonstrations):
        task = load_task(data.demonstrations, data.max_new_tokens, "demonstrations")
        template = task.templates[0] if data.template is None else template_by_name(task, data.template)
        examples = task.examples()
        train = data.train_examples or max(1, len(examples) - data.validation_examples - data.test_examples)
        splits = _named(lambda: make_splits(examples, train, data.validation_examples, data.test_examples, seed))
        shown = [task_demonstrations(task, template.name, some) for some in (splits.search, splits.select)]
        return task, template, splits.test, shown[0], shown[1], 0
    if data.task is None:
        raise InputError("`task`: the demonstrations are no task; name the task whose questions are asked at the end")
    task = load_task(data.task, data.max_new_tokens)
    template = task.templates[0] if own or data.template is None else template_by_name(task, data.template)
    splits = _named(lambda: make_splits(task.examples(), 1, 1, data.test_examples, seed))
    found, removed = without_questions(load_demonstrations(data.demonstrations, data.template if own else None), splits.test)
    ordered = sorted(found, key=lambda each: digest([seed, each.id]))
    wanted = data.validation_examples + (data.train_examples or 1)
    if len(ordered) < wanted:
        asked = f"`train_examples` {data.train_examples or 1} + `validation_examples` {data.validation_examples}"
        raise InputError(f"{asked}: {data.demonstrations} has {len(ordered)} demonstrations that ask no test question; ask for fewer")
    held = tuple(ordered[: data.validation_examples])
    asked_there = {each.key for each in held}
    rest = [each for each in ordered[data.validation_examples :] if each.key not in asked_there]
    if len(rest) < (least := data.train_examples or 1):
        again = f"{len(ordered) - len(held) - len(rest)} of its demonstrations ask what one for validation asks"
        left = f"{data.demonstrations} leaves {len(rest)}, because {again}"
        raise InputError(f"`train_examples` {least}: {left}; lower it, or give other demonstrations")
    return task, template, splits.test, tuple(rest[: data.train_examples]), held, removed


def _named(split: Callable[[], Any]) -> Any:
    """A split, its errors in the words of this chapter's settings."""
    try:
        return split()
    except InputError as error:
        said = str(error).replace("search_examples", "train_examples").replace("select_examples", "validation_examples")
        raise InputError(said) from error


def check_layout(config: Config, mesh: Mesh) -> None:
    """Raises ``InputError`` unless the value network and the batches can be laid out on the mesh."""
    check_batch(config.training.batch_rows, config.training.accumulate, mesh)
    if config.value.connection in PROBES and mesh.shape[MODEL] > 1:
        raise InputError(f"`connection` {config.value.connection}: a probe is not sharded; use a `mesh` of DATAx1")


def make_problem(
    parts: Parts, packed: Packed, mesh: Mesh, logits: Sequence[LogitsFiles] = (), norm: bool = True
) -> tuple[ValueConfig, Problem]:
    """The value network to begin with, and what ``train.fit`` trains. With the bases' logits in files (of each that is trained on, then of
    the one that is validated with) no base is put on the mesh. Without ``norm`` it has no part in the loss."""
    value, training, first = parts.config.value, parts.config.training, parts.models[0]
    config, params = make_value(
        first.config, first.params, value.connection, value.layers, value.init == "base", value.head == "zero", value.seed, value.outputs
    )
    dtype = DTYPES[parts.dtype if training.compute == "auto" else training.compute]
    layout = config.partition(mesh.shape[MODEL])
    dims = layout.dims(config.decoder) if layout else {}
    form, losses = logits[0].form if logits else None, []
    classes = token_classes(first.tokenizer) if value.outputs == "bytes" else None
    penalty = value.penalty if norm else 0.0
    for model in parts.models:
        its = model.config.partition(mesh.shape[MODEL])
        arrays = () if logits else put_params(model.params, mesh, its.dims(model.config) if its else {})
        loss = value_loss(config, model.config, dtype, penalty, int(value.power), training.remat, form, classes)
        losses.append((loss, arrays))
    held_out = losses.pop() if parts.config.bases.held_out else None
    beside = {"beside": logits[:-1], "validation_beside": logits[-1]} if logits else {}
    return config, Problem(params, losses, packed.rows, packed.validation, held_out, dims, **beside)


def describe_run(parts: Parts) -> dict[str, Any]:
    """The record in config.json: resolved settings, what they were run with and on."""
    config = parts.config
    bases = dataclasses.replace(
        config.bases,
        base=absolute_if_there(config.bases.base),
        also=tuple(map(absolute_if_there, config.bases.also)),
        held_out=config.bases.held_out and absolute_if_there(config.bases.held_out),
        dtype=parts.dtype,
    )
    data = dataclasses.replace(
        config.data,
        demonstrations=absolute_if_there(config.data.demonstrations),
        task=config.data.task and absolute_if_there(config.data.task),
    )
    settings = dataclasses.replace(config, bases=bases, data=data, machine=Machine(), run=Run())
    return {
        "chapter": CHAPTER,
        "config": to_json(settings),
        "model": {"name": parts.models[0].name, "source": parts.models[0].source, "fingerprint": parts.fingerprint},
        "task": {"name": parts.task.name, "source": parts.task.source, "fingerprint": parts.identity["task_fingerprint"]},
        "prompt_clock": parts.models[0].tokenizer.clock,
        "versions": versions(),
        "devices": devices(),
    }
