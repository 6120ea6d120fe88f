"""Votes: one answer out of the answers of several members, and the same at every number of members.

A vote rule says how much the vote of each member weighs. A new one is a record in ``VOTE_RULES``; everyone else passes a ``Voting`` along
and knows no rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from perturbjax.errors import InputError

Answers = Sequence[str | None]
"""One answer per member, best-ranked member first; None is an abstention."""

MAJORITY, WEIGHTED = "majority", "weighted"


@dataclass(frozen=True)
class VoteRule:
    """How much the vote of a member weighs.

    Attributes:
        help: one phrase for people.
        weights: (K,) search scores of the members to (K,) weights of their votes, elementwise: what a member weighs follows from its own
            score, whoever votes beside it, because votes of the first k members, and of members in another order, are compared. Scores are
            NaN where nobody knows them; weights that are not finite, or below 0, are refused.
    """

    help: str
    weights: Callable[[np.ndarray], np.ndarray]


VOTE_RULES: dict[str, VoteRule] = {
    MAJORITY: VoteRule("all votes weigh the same", np.ones_like),
    WEIGHTED: VoteRule("a vote weighs its member's search score", np.copy),
}
"""Name -> rule, in the order in which they are offered; the first is the default."""


@dataclass(frozen=True)
class Voting:
    """How members vote: a rule, and what it may weigh them by.

    Attributes:
        rule: one of ``VOTE_RULES``.
        scores: (K,) search scores of the members, best first; None where they have none, as samples of the base.
    """

    rule: str
    scores: np.ndarray | None = None

    def winners(self, answers: Sequence[Answers], keys: Sequence[Answers]) -> np.ndarray:
        """``vote_winners`` by this rule, of the answers and vote keys of K members to B examples, **one sequence per member**.

        Raises:
            InputError: the rule gives no weights for these scores.
        """
        return vote_winners(list(zip(*answers, strict=True)), list(zip(*keys, strict=True)), self.weights(len(answers)))

    def weights(self, members: int) -> np.ndarray:
        """(K,) what the vote of each of the K members weighs. Raises as ``winners``."""
        weights = VOTE_RULES[self.rule].weights(np.full(members, np.nan) if self.scores is None else self.scores)
        if not (np.isfinite(weights) & (weights >= 0)).all():
            raise InputError(f"scores: vote rule {self.rule} has no weights for them; give the ensemble scores, or another rule")
        return weights

    def of(self, members: np.ndarray) -> Voting:
        """How these of the members vote, in the given order."""
        return Voting(self.rule, None if self.scores is None else self.scores[members])


BY_MAJORITY = Voting(MAJORITY)


@overload
def vote(answers: jax.Array | np.ndarray) -> jax.Array: ...
@overload
def vote(answers: Answers, keys: Answers | None = None) -> str | None: ...
def vote(answers: Answers | jax.Array | np.ndarray, keys: Answers | None = None) -> str | jax.Array | None:
    """The answer that most members gave.

    Members are in rank order, best first. **Ties** go to the tied answer whose first supporter ranks best, so the result is a function of
    the answers alone, and the vote of one member is that member's answer. Of texts None abstains: it is counted for nobody.

    Args:
        answers: an array (K,) or (K, B), as ``Ensemble.apply`` gives them, voted on column by column; or K texts.
        keys: of texts, (K,) what makes two answers count as one (a task's ``vote_key``; "1,000" and "1000.0"); the answers themselves when
            None.

    Returns:
        Of an array, the winners () or (B,), of its dtype. Of texts, the answer of the best-ranked member of the majority, or None when
        every member abstains.

    Raises:
        ValueError: an array of another rank, or of no members.
        InputError: there are not as many keys as answers.

    >>> vote(np.array([[0, 1], [2, 1], [2, 0]])).tolist()
    [2, 1]

    >>> vote(["4", "5", None, "5"])
    '5'
    >>> vote(["4", "5", None])
    '4'
    """
    if isinstance(answers, jax.Array | np.ndarray):
        return _vote_of_arrays(jnp.asarray(answers))
    winner = vote_winners([answers], None if keys is None else [keys])[0, -1] if len(answers) else -1
    return None if winner < 0 else answers[winner]


def _vote_of_arrays(answers: Shaped[Array, " K *B"]) -> Shaped[Array, " *B"]:
    if answers.ndim not in (1, 2) or not len(answers):
        raise ValueError(f"answers of shape {answers.shape}: (K,) or (K, B) with K members is required")
    votes = jax.lax.map(lambda answer: (answers == answer[None]).sum(axis=0), answers)
    first = jnp.argmax(votes, axis=0)  # of equal counts the first, which is the best-ranked member's
    return jnp.take_along_axis(answers, first[None], axis=0)[0]


def tally(answers: Answers, keys: Answers | None = None) -> dict[str, int]:
    """Votes of each answer, most votes first (ties as in ``vote``), named by its best-ranked supporter. Abstentions are left out."""
    keys = answers if keys is None else keys
    _check_lengths(answers, keys)
    names: dict[str, str] = {}
    counts: dict[str, int] = {}
    for answer, key in zip(answers, keys, strict=True):
        if answer is not None and key is not None:
            names.setdefault(key, answer)
            counts[key] = counts.get(key, 0) + 1
    # sorted() is stable and a dict keeps insertion order, so ties stay in the order of their first supporter.
    return {names[key]: counts[key] for key in sorted(counts, key=lambda key: -counts[key])}


def vote_winners(answers: Sequence[Answers], keys: Sequence[Answers] | None = None, weights: np.ndarray | None = None) -> np.ndarray:
    """For every example and every number of members, the member whose answer wins the vote of the first k members.

    A member instead of its answer, so that whatever is known of that reply (strict score, lenient score, text) is one indexing away.
    Costs O(1) per member and example: a new vote can only raise its own answer past the present winner.

    Args:
        answers: B sequences of K answers, **one sequence per example**, members best first.
        keys: the vote keys in the same layout; the answers themselves when None.
        weights: (K,) of the members' votes, not negative; all 1 when None.

    Returns:
        (B, K) int64: entry (b, k - 1) is the best-ranked supporter of the answer that the first k members vote for, -1 if all k abstain.
    """
    keys = answers if keys is None else keys
    if len(keys) != len(answers):
        raise InputError(f"keys: {len(keys)} examples for {len(answers)} examples of answers: give one sequence of keys per example")
    members = len(answers[0]) if len(answers) else 0
    weights = np.ones(members) if weights is None else weights
    winners = np.full((len(answers), members), -1, np.int64)
    for b, (given, given_keys) in enumerate(zip(answers, keys, strict=True)):
        _check_lengths(given, given_keys)
        if len(given) != members:
            raise InputError(f"answers: {len(given)} members for example {b}, {members} for example 0: every example needs all members")
        totals: dict[str, float] = {}
        first: dict[str, int] = {}
        leader: str | None = None
        for k, (answer, key) in enumerate(zip(given, given_keys, strict=True)):
            if answer is not None and key is not None:
                first.setdefault(key, k)
                totals[key] = totals.get(key, 0) + weights[k]
                if leader is None or (totals[key], -first[key]) > (totals[leader], -first[leader]):
                    leader = key
            winners[b, k] = -1 if leader is None else first[leader]
    return winners


def _check_lengths(answers: Answers, keys: Answers) -> None:
    if len(keys) != len(answers):
        raise InputError(f"keys: {len(keys)} keys for {len(answers)} answers: give one key per answer (None for an abstention)")
