"""One base with and without a value network, on the same questions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from jax.sharding import Mesh

from perturbjax.inference import Engine
from perturbjax.inference.next_token import NextToken
from perturbjax.inference.outputs import Outputs
from perturbjax.ivl.changes import token_changes
from perturbjax.ivl.combined import CombinedConfig
from perturbjax.ivl.map_statistics import statistics
from perturbjax.ivl.results import VALUE_ALONE, WITH_VALUE, BaseEntries, Tuning
from perturbjax.ivl.value import ValueConfig
from perturbjax.noise import Noise
from perturbjax.pretrained import Model
from perturbjax.pretrained.tokenizer import Tokenizer
from perturbjax.report import ComparedEntry, Source, compared_entry, entry
from perturbjax.runs.console import SILENT, Progress
from perturbjax.tasks.base import Example, Task, Template
from perturbjax.tree import derived_seed

MAP_PROMPTS = 64
"""Questions after which the base's distributions are taken, to say how much probability a map between vocabularies loses."""


def measure_base(
    base: Model,
    combined: Model,
    value_tokenizer: Tokenizer,
    task: Task,
    template: Template,
    questions: Sequence[Example],
    mesh: Mesh,
    seed: int,
    progress: Progress = SILENT,
    rivals: Mapping[str, Callable[[], tuple[Model, Tuning] | None]] | None = None,
) -> BaseEntries:
    """The base, the base with the value network, the value network alone, and its rivals, by the same prompts and grading.

    Of a generation task, also which tokens of its replies the value network chose.

    Args:
        base: alone.
        combined: the same with a value network beside it (``combined.combine``).
        value_tokenizer: of the value network, for the statistics of a map between vocabularies.
        task, template, questions: what is asked.
        mesh: (data, model).
        seed: of the run; the bootstrap's comes from it.
        progress: told how far it is.
        rivals: label -> a function that makes the model, and what its training was (``rivals.Rivals``), or None if that diverged. One is in
            memory at a time.
    """
    config = combined.config
    assert isinstance(config, CombinedConfig)
    (value,), vocabulary = config.others, config.reads
    assert isinstance(value, ValueConfig)
    models = {"": base, WITH_VALUE: combined}
    if vocabulary is None and not value.is_bound_to_vocabulary and value.outputs == "tokens":
        models[VALUE_ALONE] = replace(base, name="value alone", config=value.decoder, params=combined.params["value"])

    def asked(model: Model) -> Outputs:
        engine = Engine(model, task, Noise(), mesh, chunk=1)
        return engine.run_plain(engine.prepare(questions, template))

    outputs, tunings = _ask_all(asked, models, rivals or {}, progress)
    changes, written = None, outputs[WITH_VALUE].reply_tokens
    if written is not None:
        prompts = base.tokenizer.encode_prompts([task.prompt(question, template) for question in questions])
        changes = token_changes(combined, prompts, written[0].tolist(), mesh)

    found = None
    if vocabulary is not None:
        probs = NextToken(base, task, questions[:MAP_PROMPTS], template, mesh).base_probs()
        found = statistics(vocabulary, value_tokenizer, base.tokenizer, base_probs=probs)
    bootstrap = derived_seed(seed, "bootstrap")
    systems = {name: _compared(outputs, name, "", bootstrap) for name in outputs if name}
    against = {name: _compared(outputs, WITH_VALUE, name, bootstrap) for name in tunings}
    return BaseEntries(Source(base.name, base.source), _scored(outputs[""]), systems, changes, found, tunings, against)


def _ask_all(
    asked: Callable[[Model], Outputs],
    models: Mapping[str, Model],
    rivals: Mapping[str, Callable[[], tuple[Model, Tuning] | None]],
    progress: Progress,
) -> tuple[dict[str, Outputs], dict[str, Tuning]]:
    """Outputs of all, and the trainings of the rivals that did not diverge, which are made one after the other."""
    outputs: dict[str, Outputs] = {}
    with progress.bar("test questions", len(models)) as bar:
        for number, (name, model) in enumerate(models.items(), start=1):
            outputs[name] = asked(model)
            bar.update(number)
    tunings: dict[str, Tuning] = {}
    for name, make in rivals.items():
        if (made := make()) is not None:
            progress.note(f"test questions, {name}")
            outputs[name], tunings[name] = asked(made[0]), made[1]
        del made
    return outputs, tunings


def _scored(found: Outputs) -> Any:
    return entry(found.scores[0], found.lenient[0], int(found.tokens[0]))


def _compared(outputs: Mapping[str, Outputs], name: str, other: str, seed: int) -> ComparedEntry:
    return compared_entry(_scored(outputs[name]), outputs[name].scores[0], outputs[other].scores[0], seed)
