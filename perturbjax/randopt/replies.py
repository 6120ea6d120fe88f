"""What evaluation needs from the thing that runs models, and the replies it collects from it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from perturbjax.noise.population import Candidate, Population
from perturbjax.randopt.voting import vote_winners
from perturbjax.tasks.base import Example, Task, Template

OnStage = Callable[[str, int, int], None]
"""``on_stage(name, done, total)``: called when a stage starts (done = 0), as it advances and when it ends (done = total)."""


class Prepared(Protocol):
    """Tokenised examples under one prompt template; opaque but for these two."""

    @property
    def examples(self) -> Sequence[Example]: ...
    @property
    def template(self) -> Template: ...


class Outputs(Protocol):
    """Replies of n models to B examples, as an engine returns them (``scoring.Outputs``)."""

    @property
    def answers(self) -> Sequence[Sequence[str | None]]: ...
    @property
    def scores(self) -> np.ndarray: ...
    @property
    def lenient(self) -> np.ndarray: ...
    @property
    def tokens(self) -> np.ndarray: ...
    @property
    def seconds(self) -> float: ...
    @property
    def nonfinite(self) -> int: ...


class Engine(Protocol):
    """Turns (candidates, examples) into replies; ``scoring.Engine`` is the one that runs language models.

    ``sample`` counts tokens as they are spent: where one forward pass gives all samples (choice tasks), the first row carries its tokens
    and the others 0, so that the sum over the first k rows is what k samples cost.
    """

    @property
    def chunk(self) -> int: ...
    def prepare(self, examples: Sequence[Example], template: Template) -> Any: ...
    def run(self, candidates: Candidate, prepared: Any) -> Outputs: ...
    def sample(self, prepared: Any, num_samples: int, temperature: float, seed: int) -> Outputs: ...
    def reference(self, prepared: Any, rounds: int) -> float: ...


@dataclass(frozen=True)
class Replies:
    """What R models answered to the B examples of a split.

    Attributes:
        answers: R rows of B extracted answers, None where there is none.
        scores: (R, B) float32, strict scores.
        lenient: (R, B) float32, lenient scores.
        tokens: (R,) int64, tokens put through the model for each row.
        seconds: wall time.
    """

    answers: tuple[tuple[str | None, ...], ...]
    scores: np.ndarray
    lenient: np.ndarray
    tokens: np.ndarray
    seconds: float

    def take(self, rows: Sequence[int]) -> "Replies":
        """The given rows, in the given order; ``seconds`` stays that of the whole."""
        index = np.asarray(rows, np.int64)
        answers = tuple(self.answers[row] for row in index)
        return Replies(answers, self.scores[index], self.lenient[index], self.tokens[index], self.seconds)


@dataclass(frozen=True)
class VoteCurve:
    """The vote of the first k of K members, for k = 1 ... K.

    Attributes:
        scores: (K, B) strict score of the voted answer. Where all abstain it is that of an absent answer.
        lenient: (K, B) lenient score of the reply whose answer was voted (the best-ranked supporter's; the best member's if all abstain).
        tokens: (K,) int64 tokens of the first k members together.
    """

    scores: np.ndarray
    lenient: np.ndarray
    tokens: np.ndarray

    @property
    def accuracies(self) -> np.ndarray:
        """(K,) mean strict score."""
        return self.scores.mean(axis=1, dtype=np.float64)


def vote_keys(task: Task, examples: Sequence[Example], answers: Sequence[Sequence[str | None]]) -> list[list[str | None]]:
    """R rows of B answers -> R rows of B vote keys; None stays None."""
    return [[None if a is None else task.vote_key(a, e) for a, e in zip(row, examples, strict=True)] for row in answers]


def vote_curve(task: Task, examples: Sequence[Example], replies: Replies) -> VoteCurve:
    """Votes of the rows of ``replies``, which stand in rank order, best first."""
    keys = vote_keys(task, examples, replies.answers)
    winners = vote_winners(list(zip(*replies.answers, strict=True)), list(zip(*keys, strict=True))).T  # (K, B)
    spokesman = np.maximum(winners, 0)
    columns = np.arange(len(examples))
    return VoteCurve(replies.scores[spokesman, columns], replies.lenient[spokesman, columns], np.cumsum(replies.tokens))


def run_base(engine: Engine, prepared: Any) -> Replies:
    """The unperturbed model on one prepared split: R = 1."""
    return _replies([engine.run(Candidate.base(1), prepared)])


def run_members(
    engine: Engine, population: Population, indices: np.ndarray, prepared: Any, stage: str, on_stage: OnStage | None = None
) -> Replies:
    """The candidates of these (R,) indices of the whole population on one prepared split, a chunk of the engine at a time."""
    total, outputs = len(indices), []
    report = on_stage or (lambda name, done, total: None)
    report(stage, 0, total)
    for start in range(0, total, engine.chunk):
        part = indices[start : start + engine.chunk]
        outputs.append(engine.run(population.candidates(part), prepared))
        report(stage, start + len(part), total)
    return _replies(outputs)


def run_samples(engine: Engine, prepared: Any, num_samples: int, temperature: float, seed: int) -> Replies:
    """R = ``num_samples`` samples of the base at one temperature."""
    return _replies([engine.sample(prepared, num_samples, temperature, seed)])


def _replies(outputs: Sequence[Outputs]) -> Replies:
    return Replies(
        answers=tuple(tuple(row) for output in outputs for row in output.answers),
        scores=np.concatenate([np.asarray(output.scores, np.float32) for output in outputs]),
        lenient=np.concatenate([np.asarray(output.lenient, np.float32) for output in outputs]),
        tokens=np.concatenate([np.asarray(output.tokens, np.int64) for output in outputs]),
        seconds=float(sum(output.seconds for output in outputs)),
    )
