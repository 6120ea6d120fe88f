"""What a candidate of a benchmark has to do: real prompts, of a size that can be asked for."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

from perturbjax.errors import InputError
from perturbjax.inference import Engine
from perturbjax.inference.engine import SLOT_TOKENS
from perturbjax.inference.packing import ROW_BUCKETS, ScoringExample, common_prefix, pack
from perturbjax.pretrained import Model
from perturbjax.pretrained.tokenizer import Tokenizer
from perturbjax.tasks import load_task
from perturbjax.tasks.base import Example, Prompt, Task, Template
from perturbjax.tasks.layout import GenerationTask, Layout

Kind = Literal["teacher-forced", "generation", "early stopping"]

GENERATION_PROMPTS = 32
PROMPT_TOKENS = 64
NEW_TOKENS = 32


@dataclass(frozen=True)
class Workload:
    """One row of the benchmark.

    Attributes:
        kind: teacher-forced (choices), generation (replies of one length) or early stopping (replies that end where they end).
        label: for people.
        model: the base, for ``generation`` with a tokenizer of its own.
        task: what is asked.
        examples: those of one candidate.
        tokens: put through the model for one candidate; with early stopping the most it can be.
    """

    kind: Kind
    label: str
    model: Model
    task: Task
    examples: tuple[Example, ...]
    tokens: int

    def engine(self, noise: Any, strategy: str, chunk: int, in_flight: int) -> Engine:
        return Engine(self.model, self.task, noise, chunk=chunk, in_flight=in_flight, strategy=strategy)


def teacher_forced(model: Model, tokens: int) -> Workload:
    """SST-2 prompts that make, with the prefix that they share, as many tokens as fit into ``tokens``.

    Raises:
        InputError: not even one prompt fits, or all of the task's do and leave room.
    """
    task = load_task("sst2")
    examples = task.examples()
    prompts = model.tokenizer.encode_prompts([task.prompt(example, task.templates[0]) for example in examples])
    prefix = common_prefix(prompts)
    choices = [task.prompt(example, task.templates[0]).choices for example in examples]
    given = [sum(len(model.tokenizer.encode(choice)) - 1 for choice in each) for each in choices]
    own = [len(prompt) - prefix + more for prompt, more in zip(prompts, given, strict=True)]
    # Every pass runs the prefix anew.
    prefix *= math.ceil(tokens / SLOT_TOKENS)
    if prefix + min(own) > tokens:
        raise InputError(f"--tokens {tokens}: the shortest prompt of {task.name} has {prefix + min(own)}; ask for more")
    if prefix + sum(own) < tokens:
        raise InputError(f"--tokens {tokens}: all prompts of {task.name} together have {prefix + sum(own)}; ask for fewer")
    picked = _fill(own, tokens - prefix)
    # Rows are not full to the last token. What is measured is the noise, not that, so a candidate gets what the rows for its tokens hold.
    most = -(-tokens // ROW_BUCKETS[0]) * ROW_BUCKETS[0]
    shared = prompts[0][: common_prefix(prompts)]
    while _computed(shared, [own[i] for i in picked]) > most:
        picked.pop()
    return Workload("teacher-forced", f"{tokens} tokens a candidate", model, task, tuple(examples[i] for i in picked), tokens)


def _computed(prefix: Sequence[int], sizes: Sequence[int]) -> int:
    """Tokens that a forward pass over prompts of these sizes computes, padding included."""
    packings = pack(prefix, [ScoringExample([0] * size, ((0,), (1,))) for size in sizes], SLOT_TOKENS)
    return sum(int(arrays["num_valid"]) * math.prod(arrays["tokens"].shape[1:]) for arrays in (packing.arrays for packing in packings))


def _fill(sizes: Sequence[int], room: int) -> list[int]:
    """Numbers of sizes, first come first served until the room is nearly used, and then the one that fits best into what is left."""
    picked: list[int] = []
    for i, size in enumerate(sizes):
        if size <= room:
            picked.append(i)
            room -= size
        if room < max(sizes):
            break
    fitting = [i for i, size in enumerate(sizes) if size <= room and i not in picked]
    return [*picked, max(fitting, key=lambda i: sizes[i])] if fitting else picked


def fixed_generation(model: Model) -> Workload:
    """Prompts of one length and replies of one length: the first ``PROMPT_TOKENS`` tokens of GSM8K questions, no token that stops."""
    tokenizer = _FixedLength(model.tokenizer)
    long = (e for e in load_task("gsm8k").examples() if len(tokenizer.encode(e.question)) >= PROMPT_TOKENS)
    task = _Continuation(tuple(itertools.islice(long, GENERATION_PROMPTS)))
    label = f"{GENERATION_PROMPTS} prompts of {PROMPT_TOKENS} tokens, {NEW_TOKENS} new tokens"
    fixed = dataclasses.replace(model, tokenizer=cast(Tokenizer, tokenizer))
    return Workload("generation", label, fixed, task, tuple(task.examples()), GENERATION_PROMPTS * (PROMPT_TOKENS + NEW_TOKENS))


class _FixedLength:
    """A tokenizer that cuts prompts to one length and names no token that ends a reply."""

    stop_ids: tuple[int, ...] = ()

    def __init__(self, tokenizer: Tokenizer):
        self.encode, self.decode = tokenizer.encode, tokenizer.decode

    def encode_prompts(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        return [self.encode(prompt.text)[:PROMPT_TOKENS] for prompt in prompts]


class _Continuation(GenerationTask):
    """Texts to continue; what the replies are worth is not asked."""

    name, source, max_new_tokens = "continuation", "the first tokens of GSM8K questions", NEW_TOKENS
    templates = (Template("text", ""),)
    layouts: ClassVar = {"": Layout(body="", cue="{question}", chat=False)}

    def __init__(self, examples: tuple[Example, ...]):
        self.load = lambda: examples

    def extract(self, text: str, example: Example, strict: bool = True) -> str | None:
        return text


def early_stopping(model: Model) -> Workload:
    """Countdown as a search would run it: replies end at their stop token."""
    task = load_task("countdown")
    examples = tuple(task.examples()[:GENERATION_PROMPTS])
    prompts = model.tokenizer.encode_prompts([task.prompt(example, task.templates[0]) for example in examples])
    tokens = sum(map(len, prompts)) + len(prompts) * task.max_new_tokens
    return Workload("early stopping", f"{len(examples)} countdown puzzles, replies end by themselves", model, task, examples, tokens)
