"""Which rows ``perturbjax evaluate`` may measure on: none that chose the members, and all others."""

from types import SimpleNamespace
from typing import Any

import pytest

from perturbjax.cli.evaluate import foreign_rows, unused_rows
from perturbjax.errors import InputError
from perturbjax.randopt.config import Config
from perturbjax.tasks.base import Example
from perturbjax.tasks.splits import make_splits


def boolq_row(number: int, passage: str, question: str = "Is it so?") -> Example:
    return Example(f"validation-{number}", question, "yes", ("no", "yes"), {"passage": passage})


def parts_of(rows: list[Example]) -> Any:
    """What the row choice reads of a run: three splits of one row each."""
    task = SimpleNamespace(name="boolq", examples=lambda: rows)
    return SimpleNamespace(task=task, splits=make_splits(rows, 1, 1, 1, 0), config=Config())


def test_rows_with_one_question_about_other_passages_are_unused_rows():
    rows = [boolq_row(i, f"text {i}") for i in range(5)]
    parts = parts_of(rows)
    used = {example.id for part in (parts.splits.search, parts.splits.select, parts.splits.test) for example in part}
    assert {row.id for row in unused_rows(parts)} == {row.id for row in rows} - used
    assert len(unused_rows(parts)) == 2
    again = [*rows, boolq_row(9, "text 0"), boolq_row(8, "text 9"), boolq_row(7, "text 9")]
    parts.task.examples = lambda: again
    passages = [row.fields["passage"] for row in unused_rows(parts)]
    assert len(passages) == 3 and "text 9" in passages  # a repeated row counts once


def test_only_a_row_that_chose_the_members_is_refused_of_another_task():
    parts = parts_of([boolq_row(i, f"text {i}") for i in range(3)])
    (selected,), (tested,) = parts.splits.select, parts.splits.test
    others = [boolq_row(0, "another text"), boolq_row(1, tested.fields["passage"])]
    task: Any = SimpleNamespace(name="mine", examples=lambda: others)
    assert foreign_rows(parts, task) == others
    others.append(boolq_row(2, selected.fields["passage"]))
    with pytest.raises(InputError, match="--task mine: row validation-2 is in the run's select split"):
        foreign_rows(parts, task)
