"""A task for small models: ask a question about a passage (BoolQ), and how what a model says is measured."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from small_models import BOOLQ

from perturbjax import sharding
from perturbjax.inference import Engine
from perturbjax.models.language_model import ModelConfig
from perturbjax.noise import Noise
from perturbjax.pretrained import Model
from perturbjax.pretrained.tokenizer import Tokenizer
from perturbjax.tasks.base import Example, Prompt, Template
from perturbjax.tasks.layout import GenerationTask
from perturbjax.tasks.splits import make_splits
from perturbjax.train.demonstrations import encode_demonstrations, task_demonstrations
from perturbjax.train.rows import Rows, at_queries, pack_rows, segment_mask
from perturbjax.train.step import cross_entropy

PASSAGE_WORDS = 32
"""A passage's first words are the prompt, so that prompt and question fit the context of a small model."""
QUERY_ROWS = 32


class AskAbout(GenerationTask):
    """A passage in, a question about it out; the score is F1 of words, 1 for all words of the real question and no other."""

    name, max_new_tokens, source = "ask", 20, str(BOOLQ)
    templates = (Template("passage", ""),)

    def __init__(self, examples: Sequence[Example]):
        self.load = lambda: examples

    def prompt(self, example: Example, template: Template) -> Prompt:
        return Prompt((), f"{' '.join(example.fields['passage'].split()[:PASSAGE_WORDS])} ...\nQuestion:")

    def extract(self, text: str, example: Example, strict: bool = True) -> str | None:
        return text.strip().partition("\n")[0] or None

    def score(self, answer: str | None, example: Example) -> float:
        written, real = Counter((answer or "").lower().split()), Counter(example.answer.lower().split())
        return 2 * (written & real).total() / max(1, written.total() + real.total())


@dataclass(frozen=True)
class Passages:
    """BoolQ's rows, shared out by passage: no passage is in two parts. ``text`` are passages to read, the others questions to ask."""

    text: tuple[str, ...]
    shown: AskAbout
    validation: AskAbout
    test: AskAbout

    @classmethod
    def draw(cls, shown: int, validation: int, test: int, seed: int) -> "Passages":
        """One question of each passage; what the three parts leave is ``text``."""
        rows = {row["passage"]: row for row in BOOLQ.rows()}
        examples = [
            Example(f"boolq-{number}", passage[:200], row["question"].strip(), fields={"passage": passage})
            for number, (passage, row) in enumerate(rows.items())
        ]
        splits = make_splits(examples, shown, validation, test, seed)
        used = {example.fields["passage"] for part in (splits.search, splits.select, splits.test) for example in part}
        text = tuple(passage for passage in rows if passage not in used)
        return cls(text, AskAbout(splits.search), AskAbout(splits.select), AskAbout(splits.test))


def packed(task: AskAbout, tokenizer: Tokenizer, row_tokens: int) -> Rows:
    return pack_rows(encode_demonstrations(task_demonstrations(task), tokenizer), row_tokens)


def nats(model: Model, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Of each packed question: -log-probability, summed over its tokens, and how many tokens it has. Same rows, same order."""
    summed, counts = [], []
    forward = _losses(model.config)
    for start in range(0, len(rows), QUERY_ROWS):
        numbers = np.minimum(np.arange(start, start + QUERY_ROWS), len(rows) - 1)
        batch = rows.batch(numbers)
        losses = np.asarray(forward(model.params, batch))[: len(rows) - start]
        batch = {name: array[: len(losses)] for name, array in batch.items()}
        segments = np.take_along_axis(batch["segments"], batch["query"], axis=1)
        for row, loss in enumerate(losses):
            weights, ours = batch["weights"][row], segments[row]
            for segment in range(batch["segments"][row].max() + 1):
                here = weights * (ours == segment)
                summed.append(float((loss * here).sum()))
                counts.append(float(here.sum()))
    return np.array(summed), np.array(counts)


@lru_cache
def _losses(config: ModelConfig) -> Any:
    def losses(params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        model = config.build(params)
        hidden, _ = model(batch["tokens"], batch["positions"], segment_mask(batch["segments"]))
        return cross_entropy(model.logits(jax.tree.map(lambda h: at_queries(h, batch["query"]), hidden)), batch["labels"])

    return jax.jit(losses)


def word_overlap(model: Model, task: AskAbout) -> np.ndarray:
    """F1 of the words of each question that the model writes, greedily."""
    engine = Engine(model, task, Noise(), sharding.make_mesh(), chunk=1)
    return engine.run_plain(engine.prepare(task.examples(), task.templates[0])).scores[0]
