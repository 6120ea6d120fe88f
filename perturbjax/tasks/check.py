"""Whether an object keeps the ``Task`` contract: for tasks that users bring."""

from collections.abc import Callable, Sequence
from typing import Any

from perturbjax.errors import InputError
from perturbjax.tasks.base import Example, Task, Template

_METHODS = ("examples", "prompt", "extract", "score", "vote_key")

# What each attribute must be, and how to say it.
_ATTRIBUTES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (lambda v: isinstance(v, str) and bool(v), "a non-empty string"),
    "kind": (lambda v: v in ("choice", "generation"), '"choice" or "generation"'),
    "templates": (
        lambda v: isinstance(v, tuple) and bool(v) and all(isinstance(t, Template) for t in v) and len({t.name for t in v}) == len(v),
        "a non-empty tuple of Template with unique names",
    ),
    "max_new_tokens": (lambda v: isinstance(v, int) and v >= 0, "a number of tokens"),
    "source": (lambda v: isinstance(v, str), "a string"),
}


def check_task(task: Any, where: str) -> Task:
    """The object itself if it has all that ``Task`` asks for, else an ``InputError`` that names everything missing or wrong and begins with
    ``where``."""
    faults = []
    for name, (valid, wanted) in _ATTRIBUTES.items():
        if not hasattr(task, name):
            faults.append(f"{name} is missing ({wanted})")
        elif not valid(getattr(task, name)):
            faults.append(f"{name} must be {wanted}")
    faults += [f"method {name}() is missing" for name in _METHODS if not callable(getattr(task, name, None))]
    if not callable(getattr(task, "same", len)):
        faults.append("same must be a method same(a, b, example), or left out")
    if not faults and task.kind == "generation" and not task.max_new_tokens:
        faults.append("max_new_tokens must be 1 or more for a generation task")
    if faults:
        raise InputError(f"{where}: {type(task).__name__} is not a Task: {'; '.join(faults)}")
    return task


def check_examples(task: Task, where: str) -> Sequence[Example]:
    """The task's examples if all of them can be used, else an ``InputError`` that names the first that cannot.

    Checked: there are some, ids are unique, a choice task's answers are among at least two distinct choices, and every template makes a
    prompt (for the first example).
    """
    examples = task.examples()
    if not isinstance(examples, Sequence) or not examples:
        raise InputError(f"{where}: examples() must return a non-empty sequence of Example, not {type(examples).__name__}")
    seen: set[str] = set()
    for index, example in enumerate(examples):
        if fault := _fault(example, task.kind, seen):
            raise InputError(f"{where}: example {index}: {fault}")
        seen.add(example.id)
    for template in task.templates:
        task.prompt(examples[0], template)  # which the task itself checks
    return examples


def _fault(example: Any, kind: str, seen: set[str]) -> str | None:
    if not isinstance(example, Example):
        return f"{type(example).__name__} where perturbjax.tasks.Example is required"
    if not all(isinstance(part, str) for part in (example.id, example.question, example.answer, *example.choices)):
        return "id, question, answer and choices must be strings"
    if example.id in seen:
        return f"the id {example.id!r} occurs twice"
    if kind == "generation":
        return None
    if len(set(example.choices)) < max(2, len(example.choices)):
        return "a choice task needs at least two choices, all different"
    if example.answer not in example.choices:
        return f"the answer {example.answer!r} is not one of its choices"
    return None
