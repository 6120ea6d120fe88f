"""Answers compared two by two: first come, first served, and each pair of answers once."""

import itertools
from typing import Any

import pytest

from perturbjax.tasks import Example
from perturbjax.tasks.equality import AnswerGroups

FIRST, SECOND = Example("1", "?", ""), Example("2", "?", "")


class Near:
    """Numbers that are at most ``width`` apart are the same, which is not transitive; ``width`` 0 compares values."""

    def __init__(self, width: float):
        self.width, self.asked = width, []

    def same(self, a, b, example):
        self.asked.append((a, b, example.id))
        return abs(float(a) - float(b)) <= self.width


def keys(task, answers, example=FIRST):
    groups = AnswerGroups(task)
    return [groups.key(answer, answer, example) for answer in answers]


def test_an_equivalence_gives_the_same_groups_in_every_order():
    answers = ["1", "2", "1.0", "2.00", "3", "1.00"]
    for order in itertools.permutations(range(6)):
        found = dict(zip(order, keys(Near(0), [answers[i] for i in order]), strict=True))
        assert all((found[i] == found[j]) == (float(answers[i]) == float(answers[j])) for i in range(6) for j in range(6))


def test_each_pair_is_compared_once_and_only_with_first_answers():
    task = Near(0)
    assert keys(task, ["1", "2", None, "1", "1.0", "3", "1.0", "2"]) == ["1", "2", None, "1", "1", "3", "1", "2"]
    assert task.asked == [("1", "2", "1"), ("1", "1.0", "1"), ("1", "3", "1"), ("2", "3", "1")]


def test_what_is_not_transitive_goes_to_the_first_group_that_takes_it():
    assert keys(Near(1), ["1", "2", "3"]) == ["1", "1", "3"]  # 2 and 3 are the same, in two groups
    assert keys(Near(1), ["2", "1", "3"]) == ["2", "2", "2"]
    assert keys(Near(1), ["3", "1", "2"]) == ["3", "1", "3"]


def test_examples_have_groups_of_their_own_and_a_vote_goes_on():
    task: Any = Near(0)
    groups = AnswerGroups(task)
    assert [groups.key("1", "1", FIRST), groups.key("1.0", "1.0", SECOND), groups.key("1.0", "1.0", FIRST)] == ["1", "1.0", "1"]
    assert groups.key("one", "1.0", FIRST) == "1" and len(task.asked) == 1  # of a key that is known


@pytest.mark.parametrize("answer", ["x", None])
def test_without_a_comparison_the_vote_key_decides(answer):
    assert AnswerGroups(object()).key(answer, answer, FIRST) == answer  # pyright: ignore[reportArgumentType]
