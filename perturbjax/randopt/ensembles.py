"""A saved ensemble put to work: how its members vote, and its accuracy beside the base's on any split."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from perturbjax.randopt.early_exit import check_early_exit, decided, random_order
from perturbjax.randopt.ensemble import Ensemble
from perturbjax.randopt.entries import VoteEntry
from perturbjax.randopt.flow import Engine, run_base, run_voters, vote_curve
from perturbjax.randopt.questions import BASE, RANDOPT
from perturbjax.randopt.selection import k_curve
from perturbjax.randopt.summaries import vote_entry
from perturbjax.randopt.voting import tally
from perturbjax.report import Entry, entry
from perturbjax.runs.console import SILENT, Progress
from perturbjax.tasks.base import Example
from perturbjax.tasks.equality import AnswerGroups
from perturbjax.tree import derived_seed


@dataclass(frozen=True)
class Prediction:
    """The vote on one example.

    Attributes:
        example: what was asked.
        answer: the voted answer, None when every member abstained.
        votes: answer -> number of members, most first.
        share: fraction, the votes for ``answer`` divided by all members asked, abstaining ones included; 0.0 without an answer.
        asked: how many members were asked: all K, or fewer with early exit.
    """

    example: Example
    answer: str | None
    votes: dict[str, int]
    share: float
    asked: int


@dataclass(frozen=True)
class BaseComparison:
    """Base and ensemble on one split: ``randopt`` is keyed by the number of votes."""

    base: Entry
    randopt: dict[str, VoteEntry]


def predict(
    engine: Engine, ensemble: Ensemble, prepared: Any, progress: Progress = SILENT, early_exit: float | None = None
) -> tuple[Prediction, ...]:
    """Let the members vote on prepared examples. Gold answers are not needed.

    ``early_exit``: None asks every member everything. A probability asks as many at a time as run at once, in random order, and each
    question only until its vote is ``early_exit.decided``.

    Raises:
        InputError: ``early_exit`` is no probability, or the ensemble does not vote by majority.
    """
    members, examples = len(ensemble), prepared.examples
    order, group = np.arange(members), engine.chunk
    if early_exit is not None:
        check_early_exit(early_exit, ensemble.voting)
        order, group = random_order(ensemble.population, members), engine.width
    cast: list[list[Ballot]] = [[] for _ in examples]
    rest, groups = list(range(len(examples))), AnswerGroups(engine.task)
    with progress.bar("votes", members * len(examples)) as bar:
        for start in range(0, members, group):
            ranks = order[start : start + group]
            outputs = run_voters(engine, ensemble.population, ensemble.members[ranks], prepared, "members", groups=groups)
            for rank, answers, keys in zip(ranks, outputs.answers, outputs.keys, strict=True):
                for b, answer, key in zip(rest, answers, keys, strict=True):
                    cast[b].append(Ballot(int(rank), answer, key))
            if early_exit is not None:
                rest = [b for b in rest if not decided([ballot.key for ballot in cast[b]], members, early_exit)]
                prepared = engine.prepare([examples[b] for b in rest], prepared.template) if rest else prepared
            bar.update(members * len(examples) - len(rest) * (members - start - len(ranks)))
            if not rest:
                break
    return tuple(_counted(ensemble, example, sorted(ballots)) for example, ballots in zip(examples, cast, strict=True))


class Ballot(NamedTuple):
    """What the member of a rank (0 for the best) answered, and the key that it is counted by."""

    rank: int
    answer: str | None
    key: str | None


def _counted(ensemble: Ensemble, example: Example, ballots: list[Ballot]) -> Prediction:
    """The vote of those who were asked, best-ranked first."""
    ranks = np.array([ballot.rank for ballot in ballots])
    winner = ensemble.voting.of(ranks).winners([[ballot.answer] for ballot in ballots], [[ballot.key] for ballot in ballots])[0, -1]
    votes = tally([ballot.answer for ballot in ballots], [ballot.key for ballot in ballots])
    answer = None if winner < 0 else ballots[winner].answer
    return Prediction(example, answer, votes, 0.0 if answer is None else votes[answer] / len(ballots), len(ballots))


def compare_to_base(
    engine: Engine, ensemble: Ensemble, prepared: Any, seed: int = 0, progress: Progress = SILENT
) -> tuple[BaseComparison, dict[str, np.ndarray]]:
    """Base and ensemble on one prepared split with gold answers: entries as in results.json, and the (B,) scores of both by question."""
    outputs = run_voters(engine, ensemble.population, ensemble.members, prepared, "members", progress)
    curve = vote_curve(outputs, ensemble.voting)
    base = run_base(engine, prepared)
    bootstrap = derived_seed(seed, "bootstrap")
    compared = BaseComparison(
        base=entry(base.scores[0], base.lenient[0], base.tokens[0]),
        randopt={str(k): vote_entry(curve, k, base.scores[0], bootstrap) for k in k_curve(len(ensemble))},
    )
    return compared, {BASE: base.scores[0], RANDOPT: curve.scores[-1]}
