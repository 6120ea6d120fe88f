"""Votes against a naive count."""

import itertools
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perturbjax.errors import InputError
from perturbjax.randopt.voting import MAJORITY, VOTE_RULES, Voting, tally, vote, vote_winners

answer_lists = st.lists(st.sampled_from(["a", "b", "c", "A", None]), max_size=9)


def naive_vote(answers, keys):
    present = [k for k in keys if k is not None]
    if not present:
        return None
    most = max(Counter(present).values())
    return next(a for a, k in zip(answers, keys, strict=True) if k is not None and present.count(k) == most)


@settings(deadline=None)
@given(answer_lists)
def test_vote_equals_naive_count(answers):
    assert vote(answers) == naive_vote(answers, answers)


@settings(deadline=None)
@given(answer_lists)
def test_vote_with_keys_equals_naive_count(answers):
    keys = [None if a is None else a.lower() for a in answers]
    assert vote(answers, keys) == naive_vote(answers, keys)


def test_every_vote_of_up_to_four_members():
    for size in range(1, 5):
        for answers in itertools.product(["x", "y", None], repeat=size):
            assert vote(answers) == naive_vote(answers, answers), answers


def test_tie_goes_to_the_answer_with_the_best_ranked_supporter():
    assert vote(["b", "a", "a", "b", "c"]) == "b"
    assert vote([None, "c", "a", "b"]) == "c"
    assert vote(["a", "b", "b"]) == "b"  # rank decides ties only


def test_abstentions_count_for_nobody():
    assert vote([None, None, None, "a"]) == "a"
    assert vote([None, None]) is None
    assert vote([]) is None


def test_equal_keys_count_as_one_and_the_best_supporter_names_the_answer():
    assert vote(["7", "1,000", "1000.0"], ["7", "1000", "1000"]) == "1,000"


def test_tally_orders_by_votes_then_by_rank():
    assert list(tally(["b", "a", None, "A", "c"], ["b", "a", None, "a", "c"]).items()) == [("a", 2), ("b", 1), ("c", 1)]


@settings(deadline=None)
@given(st.integers(1, 6).flatmap(lambda k: st.lists(st.lists(st.sampled_from(["a", "b", None]), min_size=k, max_size=k), max_size=5)))
def test_winners_of_every_prefix_equal_the_vote_of_the_prefix(answers):
    winners = vote_winners(answers)
    assert winners.shape == (len(answers), len(answers[0]) if answers else 0)
    for b, row in enumerate(answers):
        for k in range(1, len(row) + 1):
            winner = winners[b, k - 1]
            assert (row[winner] if winner >= 0 else None) == naive_vote(row[:k], row[:k])
            # The winner is the best-ranked supporter.
            assert winner == -1 or row.index(row[winner]) == winner


def test_fifty_members_and_256_examples_are_quick():
    answers = np.random.default_rng(0).choice(list("abcd"), (256, 50)).tolist()
    started = time.process_time()
    vote_winners(answers)
    assert time.process_time() - started < 1.0  # about 0.01 s; recounting every prefix takes 25 times as long


def test_a_rule_is_a_line_of_the_table_and_weighs_the_votes(monkeypatch):
    monkeypatch.setitem(VOTE_RULES, "by score", lambda scores: scores)
    by_member = [["a", "a"], ["b", None], ["b", "b"]]  # of 3 members, to 2 examples
    assert Voting("by score", np.array([0.9, 0.4, 0.4])).winners(by_member, by_member).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert Voting("by score", np.array([0.5, 0.4, 0.4])).winners(by_member, by_member).tolist() == [[0, 0, 1], [0, 0, 0]]
    assert Voting(MAJORITY).winners(by_member, by_member).tolist() == [[0, 0, 1], [0, 0, 0]]
    for scores in (None, np.array([0.5, -0.1, 0.4])):
        with pytest.raises(InputError, match="vote rule by score has no weights"):
            Voting("by score", scores).winners(by_member, by_member)


def test_lengths_must_agree():
    with pytest.raises(InputError, match="keys: 1 keys for 2 answers"):
        vote(["a", "b"], ["a"])
    with pytest.raises(InputError, match="1 members for example 1, 2 for example 0"):
        vote_winners([["a", "b"], ["a"]])
    with pytest.raises(InputError, match="keys: 1 examples for 2"):
        vote_winners([["a"], ["b"]], [["a"]])


def test_arrays_vote_column_by_column_as_texts_do():
    answers = np.random.default_rng(0).integers(0, 4, (7, 60)).astype(np.int32)
    expected = [vote([str(answer) for answer in column]) for column in answers.T]
    voted = vote(answers)
    assert [str(int(winner)) for winner in voted] == expected and voted.dtype == np.int32
    assert int(vote(answers[:, 0])) == int(voted[0])
    with pytest.raises(ValueError, match=r"\(K,\) or \(K, B\)"):
        vote(np.zeros((2, 3, 4)))
