"""A user's task whose every answer is checked: other people's code may raise anything, and return anything."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NoReturn

import numpy as np

from perturbjax.errors import InputError, one_line
from perturbjax.tasks.base import Example, Prompt, Task, Template
from perturbjax.tasks.equality import pairwise


class CheckedTask:
    """A task that behaves as its author's, but whatever breaks the contract is an ``InputError`` that names task, method and example.

    What the contract does not name (``response``) is the author's own.
    """

    def __init__(self, task: Task, where: str):
        """
        Args:
            task: it has the attributes of a ``Task``.
            where: what messages begin with.
        """
        self._task, self._where = task, where
        self.name, self.templates = task.name, task.templates
        self.kind: Literal["choice", "generation"] = task.kind
        self.max_new_tokens, self.source = task.max_new_tokens, task.source
        if pairwise(task) is not None:
            self.same = self._checked_same

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # asked for by copy, before there is a task
            raise AttributeError(name)
        return getattr(self._task, name)

    def examples(self) -> Sequence[Example]:
        found = self._called("examples()", self._task.examples)
        return self._called("examples()", tuple, found) if isinstance(found, Sequence) else found

    def prompt(self, example: Example, template: Template) -> Prompt:
        where = f"template {template.name!r}: prompt() of example {example.id!r}"
        prompt = self._called(where, self._task.prompt, example, template)
        if fault := _prompt_fault(prompt, example):
            raise self._error(where, fault)
        return prompt

    def extract(self, text: str, example: Example, strict: bool = True) -> str | None:
        where = f"extract() of example {example.id!r}"
        answer = self._called(where, self._task.extract, text, example, strict)
        if not isinstance(answer, str | None):
            raise self._error(where, f"returned {type(answer).__name__}, a text or None is required")
        return answer

    def score(self, answer: str | None, example: Example) -> float:
        where = f"score() of example {example.id!r}"
        score = self._called(where, self._task.score, answer, example)
        number = float("nan") if isinstance(score, str) else self._called(where, lambda: float(score))
        if not 0 <= number <= 1:
            raise self._error(where, f"returned {repr(score)[:80]}, a number from 0 to 1 is required")
        return number

    def vote_key(self, answer: str, example: Example) -> str:
        where = f"vote_key() of example {example.id!r}"
        key = self._called(where, self._task.vote_key, answer, example)
        if not isinstance(key, str):
            raise self._error(where, f"returned {type(key).__name__}, a text is required")
        return key

    def _checked_same(self, a: str, b: str, example: Example) -> bool:
        where = f"same() of example {example.id!r}"
        same = self._called(where, self._task.same, a, b, example)  # pyright: ignore[reportAttributeAccessIssue]
        if not isinstance(same, bool | np.bool_):
            raise self._error(where, f"returned {type(same).__name__}, True or False is required")
        return bool(same)

    def _called(self, where: str, method: Callable[..., Any], *arguments: Any) -> Any:
        try:
            with exits_raised():
                return method(*arguments)
        except InputError:
            raise
        # sys.exit() in a task would end the command as if it had been done.
        except (Exception, SystemExit) as error:
            raise self._error(where, f"failed ({one_line(error, 200)})") from error

    def _error(self, where: str, fault: str) -> InputError:
        return InputError(f"{self._where}: {where[:200]} {fault}; correct the task")


_LEAVE = os._exit


@contextlib.contextmanager
def exits_raised() -> Iterator[None]:
    """While a user's code runs, ``os._exit`` raises ``SystemExit`` in this process: it would end the command without a word, and with the
    exit code of a success. Processes that the code forks end as they wish."""
    here = os.getpid()

    def leave(status: int) -> NoReturn:
        if os.getpid() != here:
            _LEAVE(status)
        raise SystemExit(f"os._exit({status})")

    os._exit = leave
    try:
        yield
    finally:
        os._exit = _LEAVE


def _prompt_fault(prompt: Any, example: Example) -> str | None:
    if not isinstance(prompt, Prompt):
        return f"returned {type(prompt).__name__}, a perturbjax.tasks.Prompt is required"
    if not (isinstance(prompt.text, str) and all(isinstance(part, tuple | list) for part in (prompt.messages, prompt.choices))):
        return "returned a prompt whose text, messages and choices are not a text and two tuples"
    if not all(isinstance(choice, str) for choice in prompt.choices):
        return "returned choices that are not texts"
    if not prompt.messages and not prompt.text:
        return "returned an empty prompt; it needs messages or text"
    if len(prompt.choices) != len(example.choices):
        return f"returned {len(prompt.choices)} choices for the {len(example.choices)} of the example"
    return None
