"""What the members say about questions that no split holds: the labels of a distillation. Gold answers are not read for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from perturbjax.consolidate.config import EXAMPLES, Config
from perturbjax.consolidate.measuring import Asker
from perturbjax.errors import InputError
from perturbjax.inference.decode import NO_TOKEN
from perturbjax.inference.outputs import Outputs
from perturbjax.inference.prompts import encode_prompts
from perturbjax.randopt.flow import run_base
from perturbjax.randopt.setup import Parts, unused_rows
from perturbjax.report.words import percent
from perturbjax.tasks.base import Example
from perturbjax.train.demonstrations import EncodedDemonstration, encode_demonstrations, task_demonstrations

BLOCK = 64
"""Questions that are asked, and whose labels are kept, together."""


@dataclass(frozen=True)
class Label:
    """What was said of one question.

    Attributes:
        id: of the example.
        voted: the vote's answer, None where every member abstained; ``base``: the base's.
        shares: of a multiple-choice task, choice -> the weight of its votes, 1 together.
        hard: members differ, or the base is not with the vote.
        reply: token ids of the reply whose answer was voted, for generation tasks; ``base_reply``: of the base's.
        right: (vote, base) strict scores, which are shown and teach nothing.
    """

    id: str
    voted: str | None
    base: str | None
    shares: dict[str, float]
    hard: bool
    reply: tuple[int, ...]
    base_reply: tuple[int, ...]
    right: tuple[float, float]


@dataclass(frozen=True)
class Labels:
    """Of several questions, in their order, and the tokens that they took."""

    rows: tuple[Label, ...]
    tokens: int


def rows_to_label(config: Config, parts: Parts) -> list[Example]:
    """Questions of the run's task that are in none of its splits, by the rule that keeps these disjoint (``same_question_key``).

    Raises:
        InputError: there are none, or fewer than were asked for; or the settings do not fit the task.
    """
    if config.targets == "shares" and parts.task.kind != "choice":
        raise InputError(f"`targets` shares: the answers of {parts.task.name} are generated; only choices have shares, so leave it out")
    rows = unused_rows(parts)
    if not rows:
        used = sum(parts.splits.sizes().values())
        fewer = "search again with smaller splits, or on a task with more rows"
        raise InputError(f"{config.run}: its splits hold all {used} questions of {parts.task.name}, none is left to distill on; {fewer}")
    if config.examples is not None and config.examples > len(rows):
        left = f"{len(rows)} questions of {parts.task.name} are in no split of the run"
        raise InputError(f"`examples` {config.examples}: {left}; ask for fewer")
    return rows[: config.examples or EXAMPLES]


def label(asker: Asker, rows: Sequence[Example]) -> Labels:
    """Members and base on the questions, block by block, each kept."""
    found = []
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        ids = [example.id for example in block]
        make, fits = partial(_label, asker, block), lambda labels, ids=ids: [each.id for each in labels.rows] == ids
        found.append(asker.kept(f"labels {start}", Labels, make, fits))
    return Labels(tuple(each for labels in found for each in labels.rows), sum(labels.tokens for labels in found))


def _label(asker: Asker, rows: Sequence[Example]) -> Labels:
    batch, ensemble = asker.engine.prepare(rows, asker.parts.template), asker.ensemble
    members = asker.members(batch, "labels: members")
    base = run_base(asker.engine, batch)
    winners, weights = ensemble.voting.winners(members.answers, members.keys)[:, -1], ensemble.voting.weights(len(ensemble))

    def one(b: int) -> Label:
        winner = int(winners[b])
        spoke = max(winner, 0)  # where all abstain the vote scores as an absent answer, which is then everyone's
        keys = {row[b] for row in members.keys}
        shares: dict[str, float] = {}
        if asker.parts.task.kind == "choice":
            for weight, row in zip(weights, members.answers, strict=True):
                if (answer := row[b]) is not None:
                    shares[answer] = shares.get(answer, 0.0) + float(weight)
        return Label(
            id=rows[b].id,
            voted=None if winner < 0 else members.answers[winner][b],
            base=base.answers[0][b],
            shares={answer: share / sum(shares.values()) for answer, share in shares.items()},
            hard=len(keys) > 1 or base.keys[0][b] not in keys,
            reply=_reply(members, spoke, b),
            base_reply=_reply(base, 0, b),
            right=(float(members.scores[spoke, b]), float(base.scores[0, b])),
        )

    return Labels(tuple(map(one, range(len(rows)))), int(members.tokens.sum() + base.tokens.sum()))


def _reply(outputs: Outputs, model: int, example: int) -> tuple[int, ...]:
    if outputs.reply_tokens is None:
        return ()
    tokens = outputs.reply_tokens[model, example]
    return tuple(int(token) for token in tokens[tokens != NO_TOKEN])


@dataclass(frozen=True)
class Lessons:
    """The same questions with three kinds of answers."""

    vote: list[EncodedDemonstration]
    base: list[EncodedDemonstration]
    gold: list[EncodedDemonstration]


def lessons(asker: Asker, rows: Sequence[Example], labels: Sequence[Label], shares: bool) -> Lessons:
    """Token ids to learn: the prompt of the search, and as the response exactly what is scored, a choice's tokens, or what was generated.

    Args:
        asker: of the run.
        rows: questions; ``labels``: of them, each with a vote.
        shares: learn every choice that has votes, weighed by its share: the cross-entropy of the vote's shares.
    """
    task, template = asker.parts.task, asker.parts.template
    prompts, choices = encode_prompts(asker.model, task, rows, template, asker.engine.max_new_tokens)

    def told(b: int, answer: str | None, reply: tuple[int, ...], weight: float = 1.0) -> list[EncodedDemonstration]:
        if task.kind == "choice":
            reply = () if answer is None else tuple(choices[b][rows[b].choices.index(answer)])
        # A reply may be empty, and a base whose logits are not finite has no answer.
        return [EncodedDemonstration(rows[b].id, tuple(prompts[b]), reply, weight)] if reply else []

    def all_of(one: list[list[EncodedDemonstration]]) -> list[EncodedDemonstration]:
        return [demonstration for each in one for demonstration in each]

    voted = [
        all_of([told(b, answer, (), share) for answer, share in each.shares.items()]) if shares else told(b, each.voted, each.reply)
        for b, each in enumerate(labels)
    ]
    if task.kind == "choice":
        gold = all_of([told(b, row.answer, ()) for b, row in enumerate(rows)])
    else:
        gold = encode_demonstrations(task_demonstrations(task, template.name, rows), asker.model.tokenizer)
    return Lessons(all_of(voted), all_of([told(b, each.base, each.base_reply) for b, each in enumerate(labels)]), gold)


def label_words(asked: int, learned: Sequence[Label], everything: bool) -> tuple[str, str]:
    """What was asked, and what is learned, in words."""
    vote, base = np.mean([each.right for each in learned], axis=0, dtype=np.float64)
    which = "all that have a vote" if everything else "where members differ or the base is not with the vote"
    right = f"the vote is right on {percent(vote)}, the base on {percent(base)} (by gold answers, which are not learned)"
    return f"{asked} unlabeled questions asked, {len(learned)} learned, {which}", f"of those learned {right}"
