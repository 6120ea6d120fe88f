"""What a steered pretraining is made of: its parts, loaded and checked against each other, and its rows, packed."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from perturbjax.cluster import on_main
from perturbjax.errors import InputError
from perturbjax.models.adapters import LoRA, of_decoder
from perturbjax.models.config import DecoderConfig
from perturbjax.pretrained import Model, load_model
from perturbjax.records import to_json
from perturbjax.runs.config import Machine, Run, absolute_if_there
from perturbjax.runs.identity import fields_of
from perturbjax.runs.machine import devices, resolve_dtype, versions
from perturbjax.train.placement import check_batch
from perturbjax.train.rows import Rows, pack_rows
from perturbjax.tree import digest, fingerprint
from perturbjax.vpretrain.arms import STEERED
from perturbjax.vpretrain.artifacts import load_designer, vocabulary_of
from perturbjax.vpretrain.config import Config
from perturbjax.vpretrain.corpus import encode_corpus, load_corpus
from perturbjax.vpretrain.designer import TopKDesigner
from perturbjax.vpretrain.domains import corpus_domains, rows_by_domain
from perturbjax.vpretrain.feedback import FeedbackSet, feedback_digest, load_feedback
from perturbjax.vpretrain.overlap import Overlap, check_overlaps
from perturbjax.vpretrain.value import make_subset

CHAPTER = "vpretrain"
LATER = ("validation",)
"""Digests that the identity of an older run does not have; there, nothing is compared with them."""
MOST_DESIGNED = 2**31
"""Parameters of a designer at most."""


@dataclass(frozen=True)
class Parts:
    """Everything a run is made of, loaded and checked; nothing is written yet.

    Attributes:
        config: the settings they were made from.
        model: the learner at step 0.
        domains: of each demonstration of the corpus; empty where feedback steers all of them.
        corpus: what it is trained on, and ``general`` what it is measured on besides; as demonstrations.
        feedback: name -> its divided rows.
        overlaps: pair of sets -> rows that they share.
        designer: its shape, and ``designer_params`` those it begins with.
        dtype: of the learner's weights.
        fingerprint: of them.
        identity: what makes two runs the same run.
    """

    config: Config
    model: Model
    corpus: tuple[Any, ...]
    domains: tuple[str, ...]
    general: tuple[Any, ...]
    feedback: Mapping[str, FeedbackSet]
    overlaps: dict[str, Overlap]
    designer: TopKDesigner
    designer_params: Any
    dtype: str
    fingerprint: str
    identity: dict[str, Any]


@dataclass(frozen=True)
class Packed:
    """Packed rows: of the corpus, of each feedback set's parts by name, and of the text of another domain."""

    corpus: Rows
    feedback: dict[str, Rows]
    validation: dict[str, Rows]
    test: dict[str, Rows]
    general: Rows | None


def load_parts(config: Config, note: Callable[[str], None]) -> Parts:
    """Loads data and model and makes everything that follows from them and the settings; data first, because they are read in a moment.

    Raises:
        InputError: any of it cannot be used.
    """
    config.validate()
    data, steer = config.data, config.steer
    corpus = load_corpus(data.corpus)
    domains = corpus_domains(data.corpus, corpus, data.domain_names) if data.domains else ()
    general = load_corpus(data.general, "general") if data.general else ()
    sizes = data.feedback_examples, data.validation_examples, data.test_examples
    feedback = {name: load_feedback(name, *sizes, steer.seed) for name in data.feedback}
    parts = ("steer", "validation", "test")
    steering, validation, tested = (tuple(row for each in feedback.values() for row in getattr(each, part)) for part in parts)
    sets = {"corpus": corpus, "feedback": steering + validation, "test": tested, "general": general}
    if data.accuracy_questions and not any(each.task is not None for each in feedback.values()):
        raise InputError(
            f"`accuracy_questions` {data.accuracy_questions}: no feedback is a task, whose questions could be asked; leave it out"
        )
    overlaps = check_overlaps(sets, data.allow_overlap)
    for pair, found in overlaps.items():
        if found.normalized:
            note(f"perturbjax: warning: {pair} share {found.normalized} of {found.rows} rows ({found.exact} exactly); that was allowed")
    dtype = resolve_dtype(config.base.dtype)
    model = load_model(config.base.model, dtype)
    note(f"model {model.name}: {model.source}")
    size = model.config.vocab_size
    if steer.candidates > size:
        raise InputError(f"`candidates` {steer.candidates}: at most {size}, the vocabulary of {model.name}, is required")
    if config.training.row_tokens > model.config.max_positions:
        raise InputError(f"`row_tokens` {config.training.row_tokens}: {model.name} takes at most {model.config.max_positions}; lower it")
    adapter = adapter_of(config, model.config)
    start = model.params if adapter is None else jax.eval_shape(lambda: adapter.init(model.params, steer.seed))
    make_subset(start, steer.subset_layers, steer.subset_rules)
    designer = TopKDesigner(
        size, steer.candidates, steer.designer_hidden, steer.designer_layers, 4, steer.alpha_max, steer.designer_log_probs
    )
    if designer.parameters > MOST_DESIGNED:
        given = f"`designer_hidden` {steer.designer_hidden}, `designer_layers` {steer.designer_layers}"
        raise InputError(f"{given}: a designer of {designer.parameters} parameters; at most {MOST_DESIGNED} are required")
    designer_params = designer.init(steer.seed)
    if steer.designer is not None:
        designer_params = load_designer(steer.designer / "designer", designer, vocabulary_of(model.tokenizer))
    found = on_main(lambda: fingerprint(model.params))
    identity = {
        "chapter": CHAPTER,
        **fields_of(config),
        "dtype": dtype,
        "model_fingerprint": found,
        "designer_fingerprint": fingerprint(designer_params),
        # The texts, not the tokens: some chat templates write the date.
        "texts": digest([[to_json(each) for each in some] for some in (corpus, general, steering, tested)]),
        "validation": digest([to_json(row) for row in validation]),
        **({"domains": digest(list(domains))} if domains else {}),
    }
    return Parts(config, model, corpus, domains, general, feedback, overlaps, designer, designer_params, dtype, found, identity)


def pack(parts: Parts, note: Callable[[str], None]) -> Packed:
    """Packs all texts into rows, once the prompts' date is known.

    Raises:
        InputError: nothing of a set fits into a row, feedback that says one token alone, or a corpus that is smaller than the steps need.
    """
    training, tokenizer = parts.config.training, parts.model.tokenizer

    def rows(texts: Any, name: str) -> Rows:
        encoded = encode_corpus(texts, tokenizer, training.row_tokens)
        try:
            found = pack_rows(encoded, training.row_tokens, per_demonstration=True)
        except InputError as error:
            raise InputError(f"{error} ({name})") from None
        if found.left_out:
            note(f"perturbjax: warning: {name}: {len(found.left_out)} are longer than {training.row_tokens} tokens and left out")
        return found

    names = parts.config.data.domain_names
    corpus = rows_by_domain(parts.corpus, parts.domains, names, rows) if names else rows(parts.corpus, "corpus")
    needed = training.total_steps(len(corpus)) * training.batch_rows
    # The last batch of an epoch may begin the next one.
    if not parts.config.data.repeat and (needed >= len(corpus) + training.batch_rows or len(corpus) < training.batch_rows):
        have = f"it has {len(corpus)} rows of {training.row_tokens} tokens, the steps need {needed}"
        raise InputError(f"`corpus` {parts.config.data.corpus}: {have}; give more text, lower `steps`, or let it `repeat`")
    total, steered = training.total_steps(len(corpus)), {*parts.config.steer.arms} & {*STEERED}
    if steered and parts.config.steer.burn_in >= total:
        given = f"`burn_in` {parts.config.steer.burn_in}: the training has {total} steps"
        raise InputError(f"{given}, so {', '.join(sorted(steered))} would be plain pretraining; lower it")
    sets = {part: {n: rows(getattr(s, part), n) for n, s in parts.feedback.items()} for part in ("steer", "validation", "test")}
    for name, each in sets["steer"].items():
        arrays = each.arrays
        learned = set(arrays["labels"][arrays["weights"] > 0].tolist()) - {tokenizer.turn_end}
        if len(learned) < 2:
            raise InputError(f"`feedback` {name}: its answers say one token alone; give feedback whose answers differ")
    general = rows(parts.general, "general") if parts.general else None
    note(f"corpus {parts.config.data.corpus}: {corpus.demonstrations:,} in {len(corpus):,} rows of {training.row_tokens} tokens")
    return Packed(corpus, sets["steer"], sets["validation"], sets["test"], general)


def adapter_of(config: Config, decoder: DecoderConfig) -> LoRA | None:
    """What is trained in place of all parameters; None where all are."""
    if config.adapt.train == "full":
        return None
    return LoRA(config.adapt.lora_rank or 8, config.adapt.lora_alpha, of_decoder(decoder))


def check_layout(config: Config, mesh: Mesh) -> None:
    """Raises ``InputError`` unless batches fit the mesh."""
    check_batch(config.training.batch_rows, config.training.accumulate, mesh)
    devices_along = mesh.devices.shape[0]
    if config.data.feedback_rows % devices_along:
        raise InputError(f"`feedback_rows` {config.data.feedback_rows}: a multiple of {devices_along}, the devices along data, is required")


def describe_run(parts: Parts) -> dict[str, Any]:
    """The record in config.json: resolved settings, what they were run with and on."""
    config = parts.config
    base = dataclasses.replace(config.base, model=absolute_if_there(config.base.model), dtype=parts.dtype)
    data = dataclasses.replace(
        config.data,
        corpus=absolute_if_there(config.data.corpus),
        feedback=tuple(map(absolute_if_there, config.data.feedback)),
        general=config.data.general and absolute_if_there(config.data.general),
    )
    settings = dataclasses.replace(config, base=base, data=data, machine=Machine(), run=Run())
    return {
        "chapter": CHAPTER,
        "config": to_json(settings),
        "model": {"name": parts.model.name, "source": parts.model.source, "fingerprint": parts.fingerprint},
        "feedback_digest": feedback_digest(parts.feedback.values()),
        "prompt_clock": parts.model.tokenizer.clock,
        "versions": versions(),
        "devices": devices(),
    }
