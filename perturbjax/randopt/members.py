"""Rules by which candidates become members: the best by their search scores, or those that vote best together on the select split.

A new rule is a record in ``MEMBER_RULES``; everyone else passes its name along.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from perturbjax.errors import InputError
from perturbjax.inference.outputs import Outputs
from perturbjax.noise import Population, Subset
from perturbjax.randopt.flow import vote_curve
from perturbjax.randopt.pools import ALL, finalists, pools
from perturbjax.randopt.voting import Voting
from perturbjax.scoring import top_k

BEST, GREEDY = "best", "greedy"
GREEDY_POOL = 2
"""``greedy`` picks K members from this many times K candidates."""


@dataclass(frozen=True)
class MemberRule:
    """How members are chosen.

    Attributes:
        pools: (population, (N, D) search scores, K) -> by sigma, or ``"all"``, the candidates that are run on select, best first.
        order: (their outputs there, how they vote, K) -> (K,) positions among them, in the order in which they vote, and (K,) the accuracy
            that the vote of the first k is expected to have.
    """

    pools: Callable[[Population | Subset, np.ndarray, int], Mapping[str | float, np.ndarray]]
    order: Callable[[Outputs, Voting, int], tuple[np.ndarray, np.ndarray]]


def _best(outputs: Outputs, voting: Voting, count: int) -> tuple[np.ndarray, np.ndarray]:
    first = np.arange(count)
    return first, vote_curve(outputs.take(first), voting.of(first)).accuracies


def _wide_pool(population: Population | Subset, scores: np.ndarray, k: int) -> dict[str | float, np.ndarray]:
    mine = finalists(scores)
    return {ALL: mine[top_k(scores[mine], min(GREEDY_POOL * k, len(mine)))]}


def _greedy(outputs: Outputs, voting: Voting, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The order that all examples give, and the accuracies of orders that half of them give, on the other half."""
    examples = outputs.scores.shape[1]
    if examples < 2:
        raise InputError("`members` greedy: at least 2 select questions are required, one to pick by and one to measure on; leave it out")
    halves, scores = (np.arange(0, examples, 2), np.arange(1, examples, 2)), []
    for here, there in (halves, halves[::-1]):
        order = greedy_order(_on(outputs, here), voting, count)
        scores.append(vote_curve(_on(outputs, there).take(order), voting.of(order)).scores)
    return greedy_order(outputs, voting, count), np.concatenate(scores, axis=1).mean(axis=1, dtype=np.float64)


MEMBER_RULES: dict[str, MemberRule] = {BEST: MemberRule(pools, _best), GREEDY: MemberRule(_wide_pool, _greedy)}
"""Rule -> how it chooses."""


def greedy_order(outputs: Outputs, voting: Voting, count: int) -> np.ndarray:
    """Picks members one by one, each the one with which the vote of those picked so far gets the highest score.

    A candidate that is right where the others are wrong comes before a better one that is wrong with them. The accuracy of the picked on
    the examples that picked them is too high: measure on others. O(K M B) for all K picks, because a new vote can only raise its own answer
    past the present winner.

    Args:
        outputs: of M candidates on B examples, best first.
        voting: how they vote, with the scores of all M; the rule's weights of all M are those of the picked.
        count: K, at most M.

    Returns:
        (K,) int64 positions among the M, in the order of the picks; ties to the lower position.

    References:
        R. Caruana, A. Niculescu-Mizil, G. Crew, A. Ksikes, "Ensemble selection from libraries of models", ICML 2004; here without
        replacement, starting from nothing.
    """
    codes, scores = _codes(outputs), outputs.scores.astype(np.float64)
    weights, columns = voting.weights(len(codes)), np.arange(codes.shape[1])
    votes, answer = codes >= 0, np.maximum(codes, 0)
    # For each example and answer: the votes that the picked gave it, which pick gave the first, and what that reply scored.
    totals = np.zeros((codes.shape[1], answer.max(initial=0) + 1))
    first, worth = np.full(totals.shape, -1), np.zeros(totals.shape)
    leader = np.full(codes.shape[1], -1)
    picked: list[int] = []
    for step in range(count):
        led = leader >= 0
        own_first, own_worth = first[columns, answer], worth[columns, answer]
        value = np.where(own_first >= 0, own_worth, scores)
        total = totals[columns, answer] + weights[:, None]
        rank, leading = np.where(own_first >= 0, own_first, step), totals[columns, leader]
        wins = votes & (~led | (total > leading) | ((total == leading) & (rank < first[columns, leader])))
        # Where all abstain the score is that of an absent answer, which the candidate's own is then.
        voted = np.where(wins, value, np.where(led, worth[columns, leader], scores)).sum(axis=1)
        voted[picked] = -np.inf
        best = int(voted.argmax())
        picked.append(best)
        mine, its = columns[votes[best]], answer[best][votes[best]]
        totals[mine, its] = total[best][votes[best]]
        worth[mine, its], first[mine, its] = value[best][votes[best]], rank[best][votes[best]]
        leader = np.where(wins[best], answer[best], leader)
    return np.array(picked, np.int64)


def _codes(outputs: Outputs) -> np.ndarray:
    """(M, B) numbers of the answers: equal within an example exactly where the vote keys are, -1 for an abstention."""
    codes = np.full(outputs.scores.shape, -1)
    for b in range(codes.shape[1]):
        numbers: dict[str, int] = {}
        for m, (answers, keys) in enumerate(zip(outputs.answers, outputs.keys, strict=True)):
            if answers[b] is not None and (key := keys[b]) is not None:
                codes[m, b] = numbers.setdefault(key, len(numbers))
    return codes


def _on(outputs: Outputs, columns: np.ndarray) -> Outputs:
    """The outputs on some of the examples; what a vote does not read is left out."""
    texts = {name: tuple(tuple(row[b] for b in columns) for row in getattr(outputs, name)) for name in ("answers", "keys")}
    scores = {name: getattr(outputs, name)[:, columns] for name in ("scores", "lenient")}
    return replace(outputs, **texts, **scores, log_probs=None, row_steps=None, reply_tokens=None)
