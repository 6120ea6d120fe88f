"""One base with and without a value network, on the same questions."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from jax.sharding import Mesh

from perturbjax.inference import Engine
from perturbjax.inference.outputs import Outputs
from perturbjax.ivl.changes import token_changes
from perturbjax.ivl.combined import CombinedConfig
from perturbjax.ivl.map_statistics import statistics
from perturbjax.ivl.results import VALUE_ALONE, WITH_VALUE, BaseEntries
from perturbjax.ivl.value import ValueConfig
from perturbjax.ivl.vocabulary import VocabularyMap
from perturbjax.noise import Noise
from perturbjax.pretrained import Model
from perturbjax.pretrained.tokenizer import Tokenizer
from perturbjax.report import Source, compared_entry, entry
from perturbjax.tasks.base import Example, Task, Template
from perturbjax.tree import derived_seed


def combine(
    base: Model,
    value: ValueConfig,
    params: Any,
    alpha: float = 1.0,
    gate: float | None = None,
    vocabulary: VocabularyMap | None = None,
) -> Model:
    """A base with a value network's logits added to its own, as a model that every task, engine and search takes.

    Args:
        base: the model B; it is not copied and never changed.
        value: the value network's shape.
        params: its parameters.
        alpha: weight of its logits.
        gate: entropy of B's distribution in nats above which they count; None: always.
        vocabulary: from the value network's vocabulary to B's; None where they are one.

    Raises:
        ValueError: without a map, vocabularies of different sizes; or a map and a connection that reads the base's logits, which are those
            of other tokens.
    """
    if vocabulary is None and value.decoder.vocab_size != base.config.vocab_size:
        sizes = f"{value.decoder.vocab_size} and {base.config.vocab_size} tokens"
        raise ValueError(f"vocabulary None: the value network and the base have {sizes}; give a map between them")
    config = CombinedConfig("value", base.config, (value,), alpha, gate, vocabulary=vocabulary)
    return replace(base, name=f"{base.name}+value", config=config, params={"base": base.params, "value": params})


def measure_base(
    base: Model,
    value: ValueConfig,
    params: Any,
    vocabulary: VocabularyMap | None,
    value_tokenizer: Tokenizer,
    task: Task,
    template: Template,
    questions: Sequence[Example],
    mesh: Mesh,
    seed: int,
    alpha: float = 1.0,
    gate: float | None = None,
    on_stage: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> BaseEntries:
    """The base, the base with the value network, and the value network alone, by the same prompts and grading.

    Of a generation task, also which tokens of its replies the value network chose.
    """
    models = {"": base, WITH_VALUE: combine(base, value, params, alpha, gate, vocabulary)}
    if vocabulary is None and not value.needs_base_logits and value.connection != "multiplicative":
        models[VALUE_ALONE] = replace(base, name="value alone", config=value.decoder, params=params)
    outputs: dict[str, Outputs] = {}
    for number, (name, model) in enumerate(models.items()):
        on_stage("test questions", number, len(models))
        engine = Engine(model, task, Noise(), mesh, chunk=1)
        outputs[name] = engine.run_plain(engine.prepare(questions, template))
    on_stage("test questions", len(models), len(models))
    changes, written = None, outputs[WITH_VALUE].reply_tokens
    if written is not None:
        prompts = [base.tokenizer.encode_prompt(task.prompt(question, template)) for question in questions]
        changes = token_changes(models[WITH_VALUE], prompts, written[0].tolist(), mesh)

    def scored(name: str) -> Any:
        found = outputs[name]
        return entry(found.scores[0], found.lenient[0], int(found.tokens[0]))

    bootstrap = derived_seed(seed, "bootstrap")
    systems = {name: compared_entry(scored(name), outputs[name].scores[0], outputs[""].scores[0], bootstrap) for name in models if name}
    found = statistics(vocabulary, value_tokenizer, base.tokenizer) if vocabulary is not None else None
    return BaseEntries(Source(base.name, base.source), scored(""), systems, changes, found)
