"""A value network on bases of other vocabularies: which map loses how much, beside a head of bytes that needs none.

    python scripts/recipes/ivl/vocabularies.py --out /tmp/vocabularies

Two decoders are pretrained here on one text with two tokenizers: WORDS, a byte-level BPE of 2,048 tokens, and LETTERS, whose tokens are
single bytes. A value network V learns beside each of them to ask questions about passages, as in ``family.py``, and is added to the other
one by the exact-first map, by dynamic time warping (the paper's), and through a head of bytes. Reported are nats a question of the base, of
each sum, and of the same V on its own base, with a paired bootstrap over questions.

Before that, two checks of the maps alone: a tokenizer whose ids are permuted is recovered from the texts that both tokenize, and what
becomes of numbers of several digits.
"""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from questions import Passages, nats, packed
from small_models import END, ROW, Size, begin, byte_level, pretrained, random_model, stories, trained

from perturbjax.ivl.alignment import dtw_alignment, exact_first
from perturbjax.ivl.byte_head import token_classes
from perturbjax.ivl.combined import combine
from perturbjax.ivl.loss import value_loss
from perturbjax.ivl.map_statistics import Matches, statistics
from perturbjax.ivl.value import Outputs, make_value
from perturbjax.ivl.vocabulary import VocabularyMap
from perturbjax.pretrained import Model
from perturbjax.pretrained.tokenizer import Tokenizer
from perturbjax.report.accounting import paired_bootstrap
from perturbjax.train import Training
from perturbjax.train.problem import Problem

SIZE = Size(96, 256, 3)
LETTER_ROW = 4 * ROW
"""A letter is a quarter of a word's token, so rows of letters are four times as long."""
WARPED_TEXTS = 150
"""Texts that dynamic time warping reads."""


@dataclass(frozen=True)
class Sizes:
    """Tokens of WORDS, steps of pretraining and of V, questions of each part."""

    vocab_size: int = 2048
    steps: int = 400
    steps_shown: int = 300
    shown: int = 800
    validation: int = 150
    test: int = 400


def permuted(tokenizer: Tokenizer, order: np.ndarray) -> Tokenizer:
    """The same tokenizer with id i renamed to order[i]."""
    content = json.loads(tokenizer.to_files()["tokenizer.json"])
    content["model"]["vocab"] = {token: int(order[index]) for token, index in content["model"]["vocab"].items()}
    for token in content["added_tokens"]:
        token["id"] = int(order[token["id"]])
    backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    return Tokenizer(backend, special_tokens={"eos_token": END}, eos_ids=[int(order[0])], chat_template=None, name="permuted")


def recovered(found: VocabularyMap, order: np.ndarray, seen: np.ndarray) -> tuple[float, float]:
    """Of a map onto permuted ids: share of the seen tokens whose one partner is themselves, and the largest |W - 1| of those."""
    renamed = np.argsort(order)  # token of the permuted tokenizer -> the original one
    best = found.weights.argmax(axis=1)
    rows = np.arange(len(renamed))
    right = (found.indices[rows, best] == renamed) & found.matched
    off = np.abs(found.weights[rows, best] - 1)
    here = order[seen]
    return float(right[here].mean()), float(off[here][right[here]].max())


class Experiment:
    """Both decoders and the value networks of one seed."""

    def __init__(self, sizes: Sizes, seed: int, out: Path, say: Callable[[str], None]):
        self.sizes, self.seed, self.out, self.say = sizes, seed, out, say
        self.passages = Passages.draw(sizes.shown, sizes.validation, sizes.test, seed)
        self.texts = stories()
        self.words, self.letters = (byte_level([*self.texts, *self.passages.text], size) for size in (sizes.vocab_size, 257))

    def maps_alone(self) -> dict[str, dict[str, Any]]:
        """Kind of map -> what it recovers of a permutation, and what numbers become from WORDS to LETTERS and back."""
        order = np.random.default_rng(self.seed).permutation(self.words.vocab_size)
        renamed, texts = permuted(self.words, order), self.texts[:WARPED_TEXTS]
        seen = np.unique([token for text in texts for token in self.words.encode(text)])
        found: dict[str, dict[str, Any]] = {}
        for kind, build in self._builders().items():
            share, off = recovered(build(self.words, renamed), order, seen)
            digits = statistics(build(self.letters, self.words), self.letters, self.words).numbers
            found[kind] = {"recovered": share, "off": off, "numbers": dataclasses.asdict(digits)}
        return found

    def _builders(self) -> dict[str, Callable[[Tokenizer, Tokenizer], VocabularyMap]]:
        return {"exact_first": exact_first, "dtw": lambda value, base: dtw_alignment(value, base, self.texts[:WARPED_TEXTS])}

    def base(self, name: str) -> Model:
        tokenizer = getattr(self, name)
        start = random_model(name, SIZE, tokenizer, self.seed)
        tokens = ROW if name == "words" else LETTER_ROW
        return pretrained(start, self.texts, self.sizes.steps, 2e-3, self.seed, self.out / name, self.say, tokens)

    def value(self, base: Model, outputs: Outputs) -> tuple[Any, Any]:
        """V beside a base, of the lowest validation loss."""
        tokens = ROW if base.name == "words" else LETTER_ROW
        rows, held = (packed(part, base.tokenizer, tokens) for part in (self.passages.shown, self.passages.validation))
        config, start = make_value(base.config, base.params, seed=self.seed, outputs=outputs)
        classes = token_classes(base.tokenizer) if outputs == "bytes" else None
        loss = value_loss(config, base.config, jnp.float32, classes=classes)
        training = Training(
            steps=self.sizes.steps_shown, batch_rows=16, row_tokens=tokens, every=20, learning_rate=1e-3, warmup=0.05, patience=4
        )
        problem = Problem(start, [(loss, jax.tree.map(jnp.asarray, base.params))], rows, held)
        return config, trained(problem, training, self.seed, self.out / f"V-{base.name}-{outputs}", self.say).params

    def rows(self) -> dict[str, dict[str, np.ndarray]]:
        """Base -> system -> nats of each test question."""
        bases = {name: self.base(name) for name in ("words", "letters")}
        values = {(name, outputs): self.value(base, outputs) for name, base in bases.items() for outputs in ("tokens", "bytes")}
        found: dict[str, dict[str, np.ndarray]] = {}
        for name, other in (("letters", "words"), ("words", "letters")):
            base, trained_on = bases[name], bases[other]
            rows = packed(self.passages.test, base.tokenizer, ROW if name == "words" else LETTER_ROW)
            systems = {"alone": base} | {
                f"+ its own V of {outputs}": combine(base, *values[name, outputs]) for outputs in ("tokens", "bytes")
            }
            for kind, build in self._builders().items():
                table = build(trained_on.tokenizer, base.tokenizer)
                systems[f"+ V of {other}, {kind}"] = combine(base, *values[other, "tokens"], vocabulary=table)
            reads = exact_first(trained_on.tokenizer, base.tokenizer)
            systems[f"+ V of {other}, of bytes"] = combine(base, *values[other, "bytes"], vocabulary=reads)
            found[name] = {}
            for system, model in systems.items():
                self.say(f"measuring {name} {system}")
                found[name][system] = nats(model, rows)[0]
        return found


def report(alone: dict[str, dict[str, Any]], found: dict[str, dict[str, np.ndarray]], seed: int) -> None:
    print("map            permutation recovered   largest |change|   numbers of several digits: exact, in pieces, lost")
    for kind, row in alone.items():
        numbers = Matches(**row["numbers"])
        print(f"{kind:15}{row['recovered']:21.4f}{row['off']:19.4f}   {numbers.exact}, {numbers.partial}, {numbers.none}")
    print(f"\n{'base':10}{'':28}{'nats a question':>16}{'gain':>9}   95 % interval")
    for base, systems in found.items():
        before = systems["alone"]
        for system, nats_of in systems.items():
            low, high = paired_bootstrap(before, nats_of, seed)
            gain = "" if system == "alone" else f"{(before - nats_of).mean():9.2f}   {low:.2f} to {high:.2f}"
            print(f"{base:10}{system:28}{nats_of.mean():16.2f}{gain}")


def main() -> None:
    arguments, say = begin(__doc__ or "", Sizes.steps)
    experiment = Experiment(Sizes(steps=arguments.steps), arguments.seed, arguments.out, say)
    alone = experiment.maps_alone()
    say("maps built")
    report(alone, experiment.rows(), arguments.seed)


if __name__ == "__main__":
    main()
