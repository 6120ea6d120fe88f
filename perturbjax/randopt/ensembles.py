"""A saved ensemble put to work: how its members vote, and its accuracy beside the base's on any split."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from perturbjax.randopt.ensemble import Ensemble
from perturbjax.randopt.entries import VoteEntry
from perturbjax.randopt.flow import Engine, run_base, run_members, vote_curve
from perturbjax.randopt.questions import BASE, RANDOPT
from perturbjax.randopt.selection import k_curve
from perturbjax.randopt.summaries import vote_entry
from perturbjax.randopt.voting import tally
from perturbjax.report import Entry, entry
from perturbjax.runs.console import SILENT, Progress
from perturbjax.tasks.base import Example
from perturbjax.tree import derived_seed


@dataclass(frozen=True)
class Prediction:
    """The vote on one example.

    Attributes:
        example: what was asked.
        answer: the voted answer, None when every member abstained.
        votes: answer -> number of members, most first.
        share: fraction, the votes for ``answer`` divided by all K members, abstaining ones included; 0.0 without an answer.
    """

    example: Example
    answer: str | None
    votes: dict[str, int]
    share: float


@dataclass(frozen=True)
class BaseComparison:
    """Base and ensemble on one split: ``randopt`` is keyed by the number of votes."""

    base: Entry
    randopt: dict[str, VoteEntry]


def predict(engine: Engine, ensemble: Ensemble, prepared: Any, progress: Progress = SILENT) -> tuple[Prediction, ...]:
    """Run every member once on prepared examples and let them vote. Gold answers are not needed."""
    outputs = run_members(engine, ensemble.population, ensemble.members, prepared, "members", progress)
    winners = ensemble.voting.winners(outputs.answers, outputs.keys)[:, -1]
    predictions = []
    for b, (example, winner) in enumerate(zip(prepared.examples, winners, strict=True)):
        votes = tally([answers[b] for answers in outputs.answers], [keys[b] for keys in outputs.keys])
        answer = None if winner < 0 else outputs.answers[winner][b]
        predictions.append(Prediction(example, answer, votes, 0.0 if answer is None else votes[answer] / len(ensemble)))
    return tuple(predictions)


def compare_to_base(
    engine: Engine, ensemble: Ensemble, prepared: Any, seed: int = 0, progress: Progress = SILENT
) -> tuple[BaseComparison, dict[str, np.ndarray]]:
    """Base and ensemble on one prepared split with gold answers: entries as in results.json, and the (B,) scores of both by question."""
    outputs = run_members(engine, ensemble.population, ensemble.members, prepared, "members", progress)
    curve = vote_curve(outputs, ensemble.voting)
    base = run_base(engine, prepared)
    bootstrap = derived_seed(seed, "bootstrap")
    compared = BaseComparison(
        base=entry(base.scores[0], base.lenient[0], base.tokens[0]),
        randopt={str(k): vote_entry(curve, k, base.scores[0], bootstrap) for k in k_curve(len(ensemble))},
    )
    return compared, {BASE: base.scores[0], RANDOPT: curve.scores[-1]}
