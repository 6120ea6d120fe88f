"""Feedback sets: prompts with verified answers, divided into rows that steer, rows for validation, and rows for the test."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from perturbjax.errors import InputError
from perturbjax.records import to_json
from perturbjax.tasks import load_task
from perturbjax.tasks.base import Example, Task, Template
from perturbjax.tasks.splits import make_splits
from perturbjax.train.demonstrations import Demonstration, is_task, task_demonstrations
from perturbjax.tree import digest
from perturbjax.vpretrain.corpus import load_corpus


@dataclass(frozen=True)
class FeedbackSet:
    """One set.

    Attributes:
        name: as the settings say it.
        source: one line for people.
        steer, validation, test: disjoint rows.
        task: whose questions they are; None for other files.
        template: of its prompts.
        questions: those of ``test``; ``validation_questions``: those of ``validation``.
    """

    name: str
    source: str
    steer: tuple[Demonstration, ...]
    validation: tuple[Demonstration, ...]
    test: tuple[Demonstration, ...]
    task: Task | None = None
    template: Template | None = None
    questions: tuple[Example, ...] = ()
    validation_questions: tuple[Example, ...] = ()


def load_feedback(spec: str, steer: int, validation: int, test: int, seed: int) -> FeedbackSet:
    """A set's rows in parts of the given sizes, by seed and ids alone.

    Args:
        spec: a task, or a file or data set of prompts and responses.
        steer, validation, test: rows of each part.
        seed: of the run.

    Raises:
        InputError: it cannot be read, or has too few rows.
    """
    named = not spec.endswith(".txt") and is_task(spec, "feedback")
    task = load_task(spec, argument="feedback") if named else None
    examples = task.examples() if task is not None else ()
    if task is not None:
        try:
            splits = make_splits(examples, steer, validation, test, seed)
        except InputError as error:
            renamed = str(error).replace("`search_examples`", "`feedback_examples`").replace("`select_examples`", "`validation_examples`")
            raise InputError(renamed) from None
        template = task.templates[0]
        parts = [task_demonstrations(task, template.name, some) for some in (splits.search, splits.select, splits.test)]
        return FeedbackSet(spec, task.source, parts[0], parts[1], parts[2], task, template, splits.test, splits.select)
    rows = _distinct(sorted(load_corpus(spec, "feedback"), key=lambda each: digest([seed, each.id])))
    if len(rows) < steer + validation + test:
        asked = f"`feedback_examples` {steer} + `validation_examples` {validation} + `test_examples` {test}"
        raise InputError(f"{asked}: {spec} has {len(rows)} different rows; ask for fewer")
    ends = test, test + validation, test + validation + steer
    return FeedbackSet(spec, f"rows of {spec}", tuple(rows[ends[1] : ends[2]]), tuple(rows[ends[0] : ends[1]]), tuple(rows[: ends[0]]))


def feedback_digest(sets: Iterable[FeedbackSet]) -> str:
    """One string for the rows that steer and those of the test."""
    return digest([[to_json(row) for row in rows] for each in sets for rows in (each.steer, each.test)])


def _distinct(rows: Sequence[Demonstration]) -> list[Demonstration]:
    """Repeated questions once."""
    return list({row.key: row for row in reversed(rows)}.values())[::-1]
