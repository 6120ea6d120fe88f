"""What the two halves of an evaluation work from: the finished search, and what it was made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from perturbjax.inference.outputs import Outputs
from perturbjax.noise import Population
from perturbjax.randopt.racing import Race
from perturbjax.randopt.replies import Engine, OnStage, no_progress
from perturbjax.randopt.voting import MAJORITY, Voting
from perturbjax.tasks.base import Task, Template
from perturbjax.tasks.splits import Splits
from perturbjax.tree import derived_seed


@dataclass(frozen=True)
class SearchRecord:
    """What a finished search hands over.

    Attributes:
        race: its rule and rounds.
        scores: (N, D) strict scores on the search split, NaN where the race did not ask.
        base_scores: (D,) of the unperturbed model there, under the same template.
        base_tokens: tokens that this put through the model.
        tokens: (N, R) tokens that scoring put through the model, by candidate and round.
        seconds: wall time of that scoring, compilation left out.
        nonfinite: candidates with NaN or inf in their outputs, by round.
    """

    race: Race
    scores: np.ndarray
    base_scores: np.ndarray
    base_tokens: int
    tokens: np.ndarray
    seconds: float
    nonfinite: Sequence[int]

    @property
    def total_tokens(self) -> int:
        return int(self.tokens.sum())

    @property
    def mean_scores(self) -> np.ndarray:
        """(N,) float64, NaN where a candidate did not reach the end of the race."""
        return self.scores.mean(axis=1, dtype=np.float64)


@dataclass(frozen=True)
class Flow:
    """What an evaluation works from.

    Attributes:
        engine, task: run the models; grade the replies.
        splits: disjoint examples; only ``search`` was seen by the search.
        population, record: the N candidates searched, and their search scores.
        top_k: most members of an ensemble, 1 <= top_k <= N.
        template: the prompt of the search.
        rule: by which the members vote, one of ``VOTE_RULES``.
        seed: of the random ensemble, the samples and the bootstrap.
        on_stage: progress callback.

    Raises:
        ValueError: ``record.scores`` is not (N, D), or ``top_k`` is out of range.
    """

    engine: Engine
    task: Task
    splits: Splits
    population: Population
    record: SearchRecord
    top_k: int
    template: Template
    rule: str = MAJORITY
    seed: int = 0
    on_stage: OnStage = no_progress

    def __post_init__(self) -> None:
        if self.record.scores.shape != (len(self.population), len(self.splits.search)):
            expected = f"{len(self.population)} candidates x {len(self.splits.search)} examples"
            raise ValueError(f"record.scores has shape {self.record.scores.shape}; {expected} are required")
        if not 1 <= self.top_k <= len(self.population):
            raise ValueError(f"top_k {self.top_k}: between 1 and the population's {len(self.population)} is required")

    def samples(self, prepared: Any, count: int, temperature: float, purpose: str) -> Outputs:
        """``count`` samples of the base."""
        return self.engine.sample(prepared, count, temperature, derived_seed(self.seed, purpose))

    def voting(self, members: Sequence[int] | np.ndarray) -> Voting:
        """How candidates vote that were chosen by their scores; controls vote by majority."""
        return Voting(self.rule, self.record.mean_scores[np.asarray(members)])

    @property
    def bootstrap(self) -> int:
        """The seed of every bootstrap."""
        return derived_seed(self.seed, "bootstrap")
