"""A saved ensemble put to work: its votes with their shares, and its accuracy beside the base's on any split."""

from dataclasses import dataclass
from typing import Any

from perturbjax.randopt.ensemble import Ensemble
from perturbjax.randopt.replies import Engine, OnStage, Prepared, Replies, run_base, run_members, vote_curve, vote_keys
from perturbjax.randopt.selection import k_curve
from perturbjax.randopt.voting import tally, vote
from perturbjax.report.accounting import comparison, derived_seed, entry
from perturbjax.tasks.base import Example, Task


@dataclass(frozen=True)
class Prediction:
    """The vote on one example.

    Attributes:
        example: what was asked.
        answer: the voted answer, None when every member abstained.
        votes: answer -> number of members, most first.
        share: votes for ``answer`` divided by all K members, abstaining ones included; 0.0 without an answer.
    """

    example: Example
    answer: str | None
    votes: dict[str, int]
    share: float


@dataclass(frozen=True)
class EnsembleEvaluation:
    """Votes of an ensemble on a split: ``predictions`` per example, and the members' ``replies``, best member first."""

    predictions: tuple[Prediction, ...]
    replies: Replies


def evaluate_ensemble(
    engine: Engine, task: Task, ensemble: Ensemble, prepared: Prepared, on_stage: OnStage | None = None
) -> EnsembleEvaluation:
    """Run every member once on prepared examples and let them vote. Gold answers are not needed; without them the scores mean nothing."""
    replies = run_members(engine, ensemble.population, ensemble.members, prepared, "members", on_stage)
    keys = vote_keys(task, prepared.examples, replies.answers)
    predictions = []
    for b, example in enumerate(prepared.examples):
        answers, votes_for = [row[b] for row in replies.answers], [row[b] for row in keys]
        answer, votes = vote(answers, votes_for), tally(answers, votes_for)
        predictions.append(Prediction(example, answer, votes, 0.0 if answer is None else votes[answer] / len(ensemble)))
    return EnsembleEvaluation(tuple(predictions), replies)


def compare_to_base(
    engine: Engine, task: Task, ensemble: Ensemble, prepared: Prepared, seed: int = 0, on_stage: OnStage | None = None
) -> dict[str, Any]:
    """Base and ensemble on one prepared split with gold answers: ``{"base": entry, "randopt": {K: entry}}`` as in results.json.

    Entries carry n, accuracy, interval, lenient_accuracy and tokens; those of the ensemble also the paired difference to the base.
    """
    curve = vote_curve(task, prepared.examples, evaluate_ensemble(engine, task, ensemble, prepared, on_stage).replies)
    base = run_base(engine, prepared)
    return {
        "base": entry(base.scores[0], base.lenient[0], base.tokens[0]),
        "randopt": {
            str(k): {
                "K": k,
                **entry(curve.scores[k - 1], curve.lenient[k - 1], curve.tokens[k - 1]),
                **comparison(curve.scores[k - 1], base.scores[0], derived_seed(seed, "bootstrap")),
            }
            for k in k_curve(len(ensemble))
        },
    }
