"""A finished training of a value network, opened again: on any base, for evaluation, answers and export."""

import contextlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perturbjax.errors import InputError
from perturbjax.inference.fingerprint import task_fingerprint
from perturbjax.ivl.alignment import dtw_alignment, exact_first
from perturbjax.ivl.artifacts import ValueRecord, load_value
from perturbjax.ivl.combined import combine
from perturbjax.ivl.config import Config, VocabularyName
from perturbjax.ivl.map_files import load_map, save_map
from perturbjax.ivl.setup import demonstration_texts, load_split
from perturbjax.ivl.tokens import token_table
from perturbjax.ivl.vocabulary import VocabularyMap
from perturbjax.pretrained import Model, load_model
from perturbjax.runs.rundir import RunDirectory
from perturbjax.tasks.base import Example, Task, Template
from perturbjax.train.demonstrations import Demonstration, load_demonstrations
from perturbjax.tree import fingerprint

MAPS = "maps"
"""Folder of a run: the vocabulary maps that its value network was used with, each in a folder of its own."""


@dataclass(frozen=True)
class ValueRun:
    """A value network with what it was trained on.

    Attributes:
        path: of the run; ``config``: its settings.
        record: what the value network is.
        params: its parameters.
        task: of the run, and ``template`` of its prompts; ``test``: its test questions.
        train: its demonstrations, and ``validation``: those that were only measured.
        trained: the base that it was trained beside, whose tokenizer is its own.
    """

    path: Path
    config: Config
    record: ValueRecord
    params: Any
    task: Task
    template: Template
    test: tuple[Example, ...]
    train: tuple[Demonstration, ...]
    validation: tuple[Demonstration, ...]
    trained: Model

    def on(self, base: str | None, vocabulary: VocabularyName | None, alpha: float, gate: float | None, stored: bool = False) -> "OnBase":
        """The value network on a base: its own when none is named. ``stored`` leaves another one's weights in their files.

        Raises:
            InputError: the base cannot be loaded, or has another vocabulary and no map was asked for, or the connection allows none.
        """
        model = self.trained if base is None else load_model(base, self.config.bases.dtype, stored)
        model.tokenizer.clock = self.trained.tokenizer.clock
        of_bytes = self.record.outputs == "bytes"
        reads = self._vocabulary(model, vocabulary or ("exact_first" if of_bytes else None))
        return OnBase(model, combine(model, self.record, self.params, alpha, gate, reads), reads)

    def _vocabulary(self, base: Model, asked: VocabularyName | None) -> VocabularyMap | None:
        sizes = base.config.vocab_size, self.record.decoder.vocab_size
        if token_table(base.tokenizer).vocabulary == self.record.vocabulary and sizes[0] == sizes[1]:
            return None
        if asked is None:
            ours = f"that of {self.record.base}, which the value network speaks"
            raise InputError(f"`base` {base.name}: its vocabulary is not {ours}; ask for a map between them with `vocabulary` exact_first")
        if self.record.config.is_bound_to_vocabulary:
            reads = f"a {self.record.connection} value network reads or scales the base's own logits"
            raise InputError(f"`vocabulary` {asked}: {reads}; use a base of its vocabulary")
        return self._kept(base, asked)

    def _kept(self, base: Model, asked: VocabularyName) -> VocabularyMap:
        """The map between two tokenizers, from ``maps/`` of the run if it was built before."""
        ours, theirs = self.trained.tokenizer, base.tokenizer
        folder = self.path / MAPS / f"{asked}-{token_table(theirs).fingerprint.removeprefix('sha256:')[:12]}"
        # What is missing, damaged or of other tokenizers is built anew; who may only read the run gets a map all the same.
        with contextlib.suppress(InputError):
            return load_map(folder, ours, theirs)[0]
        made = self._built(base, asked)
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            save_map(made, folder)
        return made

    def _built(self, base: Model, asked: VocabularyName) -> VocabularyMap:
        if asked == "exact_first":
            return exact_first(self.trained.tokenizer, base.tokenizer)
        shown = load_demonstrations(self.config.data.demonstrations)
        texts = [text for d in shown for text in (*(turn["content"] for turn in d.prompt.messages), d.prompt.text, d.response)]
        return dtw_alignment(self.trained.tokenizer, base.tokenizer, texts)


@dataclass(frozen=True)
class OnBase:
    """A base, the same with the value network beside it, and the map between their vocabularies, None where they are one. A value network
    of bytes reads by it; how its outputs count needs none."""

    base: Model
    combined: Model
    vocabulary: VocabularyMap | None


def reopen(run: Path, note: Callable[[str], None], trusted: Collection[str] = ()) -> ValueRun:
    """The value network of a run, refused unless its base is still the same.

    Raises:
        InputError: no run there, it names code that is not ``trusted``, its training has not finished, or something it was made from has
            changed.
    """
    directory = RunDirectory(run)
    content = directory.read_config()
    config = directory.read_settings(Config, trusted)
    record, params = load_value(directory.path / "value")
    task, template, test, train, validation = load_split(config)
    if task_fingerprint(task, test) != content["identity"].get("task_fingerprint"):
        raise InputError(
            f"{directory.path}: the test questions of {task.name} are not those of the run; restore the file that they came from"
        )
    if demonstration_texts(train, validation) != content["identity"].get("demonstration_texts"):
        source = config.data.demonstrations
        raise InputError(f"{directory.path}: the demonstrations of {source} are not those of the run; restore the file that they came from")
    trained = load_model(config.bases.base, config.bases.dtype)
    note(f"base {trained.name}: {trained.source}")
    if fingerprint(trained.params) != record.base_fingerprint:
        raise InputError(f"{directory.path}: its value network was trained beside another {trained.name}; restore that model")
    trained.tokenizer.clock = content["prompt_clock"]
    return ValueRun(directory.path, config, record, params, task, template, test, train, validation, trained)
