"""Splits: disjoint, of the asked sizes, a function of seed and ids alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perturbjax.errors import InputError
from perturbjax.tasks.base import Example
from perturbjax.tasks.choice import option_fields
from perturbjax.tasks.splits import make_splits, same_question_key


def rows(count):
    return [Example(f"row-{i}", f"question {i}", "yes") for i in range(count)]


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8), st.integers(0, 6), st.integers(0, 2**40))
def test_disjoint_and_of_the_asked_sizes(search, select, test, spare, seed):
    splits = make_splits(rows(search + select + test + spare), search, select, test, seed)
    parts = (splits.search, splits.select, splits.test)
    assert [len(part) for part in parts] == [search, select, test]
    assert splits.sizes() == {"search": search, "select": select, "test": test}
    assert len({example.id for part in parts for example in part}) == search + select + test


def test_order_is_pinned():
    # The splits of a published figure must be the same on every platform and forever.
    splits = make_splits(rows(12), 3, 2, 4, seed=0)
    assert [e.id for e in splits.test] == PINNED_TEST
    assert [e.id for e in splits.select] == PINNED_SELECT
    assert [e.id for e in splits.search] == PINNED_SEARCH


PINNED_TEST = ["row-6", "row-0", "row-3", "row-8"]
PINNED_SELECT = ["row-1", "row-2"]
PINNED_SEARCH = ["row-5", "row-4", "row-10"]


def test_order_of_the_rows_does_not_matter():
    shuffled = np.random.default_rng(0).permutation(30)
    assert make_splits([rows(30)[i] for i in shuffled], 5, 6, 7, 3) == make_splits(rows(30), 5, 6, 7, 3)


def test_seeds_differ_and_a_bigger_search_keeps_the_test_split():
    splits = make_splits(rows(60), 10, 10, 20, 0)
    assert {e.id for e in splits.test} != {e.id for e in make_splits(rows(60), 10, 10, 20, 1).test}
    assert make_splits(rows(60), 30, 10, 20, 0).test == splits.test
    assert make_splits(rows(60), 30, 10, 20, 0).select == splits.select


def test_every_row_is_equally_likely_in_the_test_split():
    times = np.zeros(20)
    for seed in range(400):
        for example in make_splits(rows(20), 1, 1, 5, seed).test:
            times[int(example.id.split("-")[1])] += 1
    # chi-square with 19 degrees of freedom: 43.8 is its 99.9 % point (the draws without replacement vary less)
    assert ((times - 100) ** 2 / 100).sum() < 43.8


def test_one_question_never_meets_two_splits():
    twice = [Example(f"copy-{e.id}", e.question, e.answer) for e in rows(10)]
    splits = make_splits([*rows(10), *twice], 3, 3, 4, 0)
    assert len({e.question for part in (splits.search, splits.select, splits.test) for e in part}) == 10
    with pytest.raises(InputError, match=r"has 10 \(10 repeated ones not counted\)"):
        make_splits([*rows(10), *twice], 4, 3, 4, 0)


def test_equal_questions_about_other_passages_are_other_examples():
    about = [Example(f"{i}", "Is it so?", "yes", fields={"passage": f"text {i}"}) for i in range(3)]
    assert len(make_splits(about, 1, 1, 1, 0).test) == 1


def test_the_same_question_is_told_by_question_options_and_fields():
    def key(question="Is it so?", choices=("no", "yes"), name="0", answer="yes", **fields):
        return same_question_key(Example(name, question, answer, choices, fields))

    assert key() == key(" Is it so?\n", name="1", answer="no")
    # Two BoolQ rows about two passages.
    assert key(passage="Rain.") == key(passage="Rain.") != key(passage="Snow.") != key()
    assert key(choices=("yes", "no")) != key() != key("Was it so?")
    # Answering by letter: the options are what is asked, and a row that lists its choices asks the same.
    colors = option_fields(["red", "blue"])
    assert key(choices=("A", "B"), **colors) == key(choices=("red", "blue"), **colors) == key(choices=("red", "blue"))
    assert key(choices=("A", "B"), **colors) != key(choices=("A", "B"), **option_fields(["red", "green"]))


@pytest.mark.parametrize("name", ["search", "select", "test"])
@pytest.mark.parametrize("size", [0, -1, 2.0, True, "3"])
def test_sizes_must_be_positive_integers(name, size):
    sizes = {"search": 2, "select": 2, "test": 2, name: size}
    with pytest.raises(InputError, match=f"`{name}_examples` {size}: a positive integer"):
        make_splits(rows(9), **sizes, seed=0)


def test_too_little_data_names_the_numbers_and_the_way_out():
    with pytest.raises(InputError) as error:
        make_splits(rows(9), 4, 4, 4, 0)
    message = str(error.value)
    assert all(part in message for part in ("`search_examples` 4", "`select_examples` 4", "`test_examples` 4", "12", "9", "by 3 in all"))
    with pytest.raises(InputError, match="the task has 0"):
        make_splits([], 1, 1, 1, 0)


def test_ids_must_be_unique():
    with pytest.raises(InputError, match="'row-1' occurs more than once"):
        make_splits([*rows(5), Example("row-1", "another", "no")], 1, 1, 1, 0)
