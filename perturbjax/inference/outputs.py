"""What the engine is asked and what it answers: examples encoded for a compiled program, and the graded answers of several models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np

from perturbjax.cluster import on_main
from perturbjax.inference.packing import Packing
from perturbjax.tasks.base import Example, Task, Template
from perturbjax.tasks.equality import AnswerGroups, pairwise

ProgramName = Literal["single_token", "multi_token", "generate"]
"""The compiled programs: logits of choices of one token each, log-probabilities of longer ones, and generation."""
Answers = tuple[tuple[str | None, ...], ...]


@dataclass(frozen=True)
class EncodedBatch:
    """Examples tokenized under one template and packed for a compiled program.

    Attributes:
        examples: E of them.
        template: of their prompts.
        program: which program runs on them.
        arrays: what it reads, for each of its calls: of a ``Packing``, or of ``batch_prompts``.
        packings: where the results of each call belong, for multiple-choice tasks.
        prompt_tokens: tokens of prefix and prompts, as run for one candidate.
        strategy: how candidates will be perturbed on them.
        worths: of each example, what its replies so far were worth, filled as they are graded: chunks of candidates repeat each other.
    """

    examples: tuple[Example, ...]
    template: Template
    program: ProgramName
    arrays: tuple[dict[str, np.ndarray], ...]
    packings: tuple[Packing, ...]
    prompt_tokens: int
    strategy: str
    worths: Sequence[dict[str | None, Any]] = ()


@dataclass(frozen=True)
class Outputs:
    """Answers of n models to E examples.

    Attributes:
        answers: (n, E) extracted answers (strict), None where there is none.
        keys: (n, E) their vote keys: answers with one key count as one in a vote; None where there is no answer. A task that compares
            answers two by two may find more of them the same: ``grouped``.
        scores: (n, E) float32 strict task scores; lenient: the same with lenient extraction (equal for multiple choice).
        tokens: (n,) int64 tokens put through the model, padding not counted.
        seconds: wall time, host work included.
        nonfinite: models with NaN or infinite logits; they score 0 everywhere.
        log_probs: (n, E, C) of each choice, for multiple-choice tasks.
        row_steps: (n, 2) int64, for generation tasks: rows decoded, summed over the steps, as run and as a batch that keeps its stopped
            rows would have run them.
        reply_tokens: (n, E, W) int32, for generation tasks: what was generated, the stop token included, NO_TOKEN after it.
    """

    answers: Answers
    keys: Answers
    scores: np.ndarray
    lenient: np.ndarray
    tokens: np.ndarray
    seconds: float
    nonfinite: int
    log_probs: np.ndarray | None = None
    row_steps: np.ndarray | None = None
    reply_tokens: np.ndarray | None = None

    def take(self, models: Sequence[int] | np.ndarray) -> Outputs:
        """The given models, in the given order; ``seconds`` and ``nonfinite`` stay those of the whole."""
        index = np.asarray(models, np.int64)
        arrays: dict[str, Any] = {name: None if (array := getattr(self, name)) is None else array[index] for name in _PER_MODEL}
        texts = {name: tuple(getattr(self, name)[model] for model in index) for name in ("answers", "keys")}
        return replace(self, **texts, **arrays)

    @classmethod
    def concatenate(cls, parts: Sequence[Outputs]) -> Outputs:
        """The models of several outputs on the same examples, one after the other."""
        columns = {name: [getattr(part, name) for part in parts] for name in _PER_MODEL}
        arrays: dict[str, Any] = {name: np.concatenate(column) for name, column in columns.items() if column[0] is not None}
        texts = {name: tuple(model for part in parts for model in getattr(part, name)) for name in ("answers", "keys")}
        return cls(**texts, **arrays, seconds=sum(p.seconds for p in parts), nonfinite=sum(p.nonfinite for p in parts))


@dataclass(frozen=True)
class Graded:
    """What is kept of one model or vote on E examples.

    Attributes:
        scores: (E,) strict; ``lenient``: (E,) with lenient extraction.
        tokens: put through the models, padding not counted.
    """

    scores: tuple[float, ...]
    lenient: tuple[float, ...]
    tokens: int

    @classmethod
    def of(cls, outputs: Any, index: int = 0) -> Graded:
        """One row of what has (n, E) ``scores`` and ``lenient`` and (n,) ``tokens``: ``Outputs``, or the votes of an ensemble."""
        scores, lenient = (tuple(map(float, array[index])) for array in (outputs.scores, outputs.lenient))
        return cls(scores, lenient, int(outputs.tokens[index]))

    @property
    def accuracy(self) -> float:
        return float(np.mean(self.scores, dtype=np.float64))


@dataclass(frozen=True)
class Running:
    """Candidates on the devices.

    Attributes:
        wait: returns when their results are on the host.
        graded: waits too, and gives their graded answers. On all processes, once.
    """

    wait: Callable[[], Any]
    graded: Callable[[], Outputs]


_PER_MODEL = ("scores", "lenient", "tokens", "log_probs", "row_steps", "reply_tokens")


REMEMBERED = 1000
"""Replies to an example whose worth is kept from one chunk to the next: 128 MB for 64 examples and replies of 2,000 characters."""


def grade(
    task: Task,
    examples: Sequence[Example],
    texts: Sequence[Sequence[str]],
    finite: np.ndarray,
    worths: Sequence[dict[str | None, Any]] = (),
) -> tuple[list[list[str | None]], list[list[str | None]], np.ndarray]:
    """Extracts answers and scores them, by the task's own code, which sees each distinct reply to an example once.

    Args:
        task: says what an answer is and what it is worth.
        examples: E of them.
        texts: (n, E) replies; for multiple-choice tasks the chosen answers themselves.
        finite: (n,) bool; a model that had NaN or infinite logits has no answers.
        worths: of each example, what earlier replies were worth; up to ``REMEMBERED`` are added. Empty remembers nothing.

    Returns:
        (n, E) answers and vote keys, and (2, n, E) float32 strict and lenient scores.
    """
    rows = [[text if ok else None for text in replies] for replies, ok in zip(texts, finite, strict=True)]
    # Candidates are close relatives of one base and mostly say the same; a task's own code may take long.
    found: list[dict[str | None, _Worth]] = [dict(worth) for worth in worths] or [{} for _ in examples]
    for replies in rows:
        for example, worth, text in zip(examples, found, replies, strict=True):
            if text not in worth:
                worth[text] = _worth(task, example, text)
    for kept, worth in zip(worths, found, strict=bool(worths)):
        kept.update(islice(worth.items(), REMEMBERED))
    table = [[worth[text] for worth, text in zip(found, replies, strict=True)] for replies in rows]
    answers, keys = ([[getattr(each, name) for each in row] for row in table] for name in ("answer", "key"))
    return (
        answers,
        keys,
        np.array([[[each.strict for each in row] for row in table], [[each.lenient for each in row] for row in table]], np.float32),
    )


def grouped(outputs: Outputs, examples: Sequence[Example], groups: AnswerGroups) -> Outputs:
    """The outputs of models that vote, with one key for all answers that the task finds the same.

    Process 0 asks the task, in the order of the models; all processes call it. ``groups`` are those of earlier models of the same vote, and
    are added to. Outputs of a task without ``same`` stay as they are.

    Raises:
        InputError: the task's ``same`` fails.
    """
    if pairwise(groups.task) is None:
        return outputs

    def keys() -> list[list[str | None]]:
        rows = zip(outputs.answers, outputs.keys, strict=True)
        return [[groups.key(*each) for each in zip(answers, keys, examples, strict=True)] for answers, keys in rows]

    return replace(outputs, keys=tuple(map(tuple, on_main(keys))))


class _Worth(NamedTuple):
    """What the task says of one reply."""

    answer: str | None
    key: str | None
    strict: float
    lenient: float


def _worth(task: Task, example: Example, text: str | None) -> _Worth:
    """``text`` is None where the model had no finite logits."""

    def extracted(strict: bool) -> str | None:
        return text if text is None or task.kind == "choice" else task.extract(text, example, strict)

    answer = extracted(strict=True)
    key = None if answer is None else task.vote_key(answer, example)
    score = task.score(answer, example)
    return _Worth(answer, key, score, score if task.kind == "choice" else task.score(extracted(strict=False), example))
