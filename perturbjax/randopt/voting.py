"""Majority votes: one answer out of the answers of several members, and the same at every number of members."""

from collections.abc import Sequence

import numpy as np

from perturbjax.errors import InputError

Answers = Sequence[str | None]
"""One answer per member, best-ranked member first; None is an abstention."""


def vote(answers: Answers, keys: Answers | None = None) -> str | None:
    """The answer that most members gave.

    Members are in rank order, best first. None abstains: it is counted for nobody. **Ties** go to the tied answer whose first supporter
    ranks best, so the result is a function of the list alone, and the vote of one member is that member's answer.

    Args:
        answers: (K,) the members' answers.
        keys: (K,) what makes two answers count as one (a task's ``vote_key``; "1,000" and "1000.0"); the answers themselves when None.

    Returns:
        The answer of the best-ranked member of the majority, or None when every member abstains.

    Raises:
        InputError: there are not as many keys as answers.

    >>> vote(["4", "5", None, "5"])
    '5'
    >>> vote(["4", "5", None])
    '4'
    """
    winner = vote_winners([answers], None if keys is None else [keys])[0, -1] if len(answers) else -1
    return None if winner < 0 else answers[winner]


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


def vote_winners(answers: Sequence[Answers], keys: Sequence[Answers] | None = None) -> np.ndarray:
    """For every example and every number of members, the member whose answer wins the vote of the first k members.

    A member instead of its answer, so that whatever is known of that reply (strict score, lenient score, text) is one indexing away.
    Costs O(1) per member and example: a new vote can only raise its own answer past the present winner.

    Args:
        answers: B sequences of K answers, **one sequence per example**, members best first.
        keys: the vote keys in the same layout; the answers themselves when None.

    Returns:
        (B, K) int64: entry (b, k - 1) is the best-ranked supporter of the answer that the first k members vote for, -1 if all k abstain.
    """
    keys = answers if keys is None else keys
    if len(keys) != len(answers):
        raise InputError(f"keys: {len(keys)} examples for {len(answers)} examples of answers: give one sequence of keys per example")
    members = len(answers[0]) if len(answers) else 0
    winners = np.full((len(answers), members), -1, np.int64)
    for b, (row, row_keys) in enumerate(zip(answers, keys, strict=True)):
        _check_lengths(row, row_keys)
        if len(row) != members:
            raise InputError(f"answers: {len(row)} members for example {b}, {members} for example 0: every example needs all members")
        counts: dict[str, int] = {}
        first: dict[str, int] = {}
        leader: str | None = None
        for k, (answer, key) in enumerate(zip(row, row_keys, strict=True)):
            if answer is not None and key is not None:
                first.setdefault(key, k)
                counts[key] = counts.get(key, 0) + 1
                if leader is None or (counts[key], -first[key]) > (counts[leader], -first[leader]):
                    leader = key
            winners[b, k] = -1 if leader is None else first[leader]
    return winners


def _check_lengths(answers: Answers, keys: Answers) -> None:
    if len(keys) != len(answers):
        raise InputError(f"keys: {len(keys)} keys for {len(answers)} answers: give one key per answer (None for an abstention)")
