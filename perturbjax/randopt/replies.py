"""What evaluation asks of the engine that runs models, and the votes of the answers that it gets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from perturbjax.inference.outputs import Outputs
from perturbjax.noise import Candidate, Population
from perturbjax.randopt.voting import BY_MAJORITY, Voting
from perturbjax.tasks.base import Example, Template

OnStage = Callable[[str, int, int], None]
"""``on_stage(name, done, total)``: called when a stage starts (done = 0), as it advances and when it ends (done = total)."""


def no_progress(name: str, done: int, total: int) -> None:
    """The ``OnStage`` that shows nothing."""


class Engine(Protocol):
    """Turns (candidates, examples) into answers; ``inference.Engine`` is the one that runs language models.

    ``sample`` counts tokens as they are spent: where one forward pass gives all samples (choice tasks), the first row carries its tokens
    and the others 0, so that the sum over the first k rows is what k samples cost.
    """

    @property
    def chunk(self) -> int: ...
    def prepare(self, examples: Sequence[Example], template: Template, /) -> Any: ...
    def run(self, candidates: Candidate, batch: Any, /) -> Outputs: ...
    def sample(self, batch: Any, num_samples: int, temperature: float, seed: int, /) -> Outputs: ...
    def reference(self, batch: Any, rounds: int, /) -> float: ...


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


def vote_curve(outputs: Outputs, voting: Voting = BY_MAJORITY) -> VoteCurve:
    """Votes of the models of ``outputs``, which stand in rank order, best first."""
    winners = voting.winners(outputs.answers, outputs.keys).T  # (K, B)
    spokesman = np.maximum(winners, 0)
    columns = np.arange(outputs.scores.shape[1])
    return VoteCurve(outputs.scores[spokesman, columns], outputs.lenient[spokesman, columns], np.cumsum(outputs.tokens))


def run_base(engine: Engine, prepared: Any) -> Outputs:
    """The unperturbed model on one prepared split."""
    return engine.run(Candidate.base(1), prepared)


def run_members(
    engine: Engine, population: Population, indices: np.ndarray, prepared: Any, stage: str, on_stage: OnStage = no_progress
) -> Outputs:
    """The candidates of these (R,) indices on one prepared split, a chunk of the engine at a time."""
    total, outputs = len(indices), []
    on_stage(stage, 0, total)
    for start in range(0, total, engine.chunk):
        chunk = indices[start : start + engine.chunk]
        outputs.append(engine.run(population[chunk], prepared))
        on_stage(stage, start + len(chunk), total)
    return Outputs.concatenate(outputs)
