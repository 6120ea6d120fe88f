"""What the engine is asked and what it answers: examples laid out for a compiled program, and the replies of several models, judged."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from perturbjax.inference.generation import GenerationBatch
from perturbjax.inference.packing import Packing
from perturbjax.tasks.base import Example, Task, Template


@dataclass(frozen=True)
class Prepared:
    """Examples tokenised under one template and laid out for the compiled program.

    ``layout`` is a tuple of packings (choice tasks) or a GenerationBatch; ``prompt_tokens`` counts prefix and prompts, as run for one
    candidate; ``strategy`` is how candidates will be perturbed on them.
    """

    examples: tuple[Example, ...]
    template: Template
    layout: tuple[Packing, ...] | GenerationBatch
    prompt_tokens: int
    strategy: str


@dataclass(frozen=True)
class Outputs:
    """Answers of n models to E examples.

    Attributes:
        answers: (n, E) extracted answers (strict), None where there is none.
        scores: (n, E) float32 strict task scores; lenient: the same with lenient extraction (equal for choice tasks).
        tokens: (n,) int64 tokens put through the model, padding not counted.
        seconds: wall time, host work included.
        nonfinite: models with NaN or infinite logits; they score 0 everywhere.
        log_probs: (n, E, C) of each choice, for choice tasks.
        row_steps: (n, 2) int64, for generation tasks: rows decoded, summed over the steps, as run and as a batch that keeps its stopped
            rows would have run them.
    """

    answers: tuple[tuple[str | None, ...], ...]
    scores: np.ndarray
    lenient: np.ndarray
    tokens: np.ndarray
    seconds: float
    nonfinite: int
    log_probs: np.ndarray | None = None
    row_steps: np.ndarray | None = None

    def take(self, rows: Sequence[int] | np.ndarray) -> Outputs:
        """The given models, in the given order; ``seconds`` and ``nonfinite`` stay those of the whole."""
        index = np.asarray(rows, np.int64)
        arrays: dict[str, Any] = {name: None if (array := getattr(self, name)) is None else array[index] for name in _PER_MODEL}
        return replace(self, answers=tuple(self.answers[row] for row in index), **arrays)

    @classmethod
    def concatenate(cls, parts: Sequence[Outputs]) -> Outputs:
        """The models of several outputs on the same examples, one after the other."""
        columns = {name: [getattr(part, name) for part in parts] for name in _PER_MODEL}
        arrays: dict[str, Any] = {name: np.concatenate(column) for name, column in columns.items() if column[0] is not None}
        answers = tuple(row for part in parts for row in part.answers)
        return cls(answers=answers, seconds=sum(p.seconds for p in parts), nonfinite=sum(p.nonfinite for p in parts), **arrays)


_PER_MODEL = ("scores", "lenient", "tokens", "log_probs", "row_steps")


def judge(
    task: Task,
    texts: list[list[str]],
    prepared: Prepared,
    finite: np.ndarray,
    tokens: np.ndarray,
    started: float,
    log_probs: np.ndarray | None = None,
) -> Outputs:
    """Extracts answers and scores them.

    Args:
        task: which says what an answer is and what it is worth.
        texts: n replies to each of E examples; of choice tasks the chosen answers themselves.
        prepared: the examples.
        finite: (n,) bool; a model that had NaN or infinite logits has no answers.
        tokens: (n,) put through the model.
        started: when the work began, on the clock of ``time.perf_counter``.
        log_probs: of choice tasks.
    """
    choice = task.kind == "choice"

    def judged(strict: bool) -> tuple[list[list[str | None]], np.ndarray]:
        answers: list[list[str | None]] = [
            [(text if choice else task.extract(text, e, strict)) if ok else None for text, e in zip(row, prepared.examples, strict=True)]
            for row, ok in zip(texts, finite, strict=True)
        ]
        scores = [[task.score(a, e) for a, e in zip(row, prepared.examples, strict=True)] for row in answers]
        return answers, np.array(scores, np.float32)

    answers, scores = judged(strict=True)
    lenient = scores if choice else judged(strict=False)[1]
    seconds = time.perf_counter() - started
    return Outputs(tuple(map(tuple, answers)), scores, lenient, tokens, seconds, int((~finite).sum()), log_probs)
