"""The contract every task meets. Host only: nothing here imports jax."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

Message = Mapping[str, str]
"""One chat turn: ``{"role": "system" | "user" | "assistant", "content": ...}``."""

Objective = Literal["log_odds", "probability"]
"""Of the right choice of a question: what a gradient follows (``inference.log_odds``). It stands here because settings name it, and reading
settings does without the models."""


@dataclass(frozen=True)
class Example:
    """One question with its gold answer.

    Attributes:
        id: stable name of the row in its source; splits and run state refer to it.
        question: what the prompt template shows.
        answer: the gold answer; for a choice task it equals one of ``choices``.
        choices: the possible answers of a choice task, in order, else empty.
        fields: whatever else the task's templates or scorer need (passage, numbers, target ...).
    """

    id: str
    question: str
    answer: str
    choices: tuple[str, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Template:
    """One way to ask. ``name`` is what results.json and ``--template`` say."""

    name: str
    instruction: str
    style: str = ""


@dataclass(frozen=True)
class Prompt:
    """What the model is given for one example.

    Attributes:
        messages: chat turns, rendered with the model's chat template and a generation prompt; when empty, ``text`` alone is used.
        text: plain text appended after the rendered chat (an answer prefix such as "Answer:"), or the whole prompt without messages.
        choices: for choice tasks, the exact continuation string of each of ``example.choices`` (with any leading space).
    """

    messages: tuple[Message, ...]
    text: str = ""
    choices: tuple[str, ...] = ()


@runtime_checkable
class Task(Protocol):
    """A set of examples, how to ask them, and how to grade the replies.

    ``kind == "choice"``: the reply is the choice with the highest log-probability, an element of ``example.choices``.
    ``kind == "generation"``: the reply is generated text; ``extract`` finds the answer in it.

    A task may have a ``version`` too, of any printable kind: change it with ``extract`` or ``score``, and a run that was graded in another
    way is not continued.

    And it may have a method ``same(a: str, b: str, example: Example) -> bool`` for answers that have no canonical key, as formulas: whether
    two answers of different vote keys count as one in a vote (``tasks.equality`` says how they are grouped).
    """

    name: str
    kind: Literal["choice", "generation"]
    templates: tuple[Template, ...]
    """At least one; the first is the default."""
    max_new_tokens: int
    """Generation budget in tokens (0 for choice tasks)."""
    source: str
    """One line for the report: where the data come from."""

    def examples(self) -> Sequence[Example]:
        """All examples in a fixed order, ids unique. Loading errors are ``InputError``."""
        ...

    def prompt(self, example: Example, template: Template) -> Prompt: ...

    def extract(self, text: str, example: Example, strict: bool = True) -> str | None:
        """The answer in a generated text, None if there is none.

        Strict demands the format that was asked for; lenient takes the likeliest reading, and finds whatever strict finds.
        """
        ...

    def score(self, answer: str | None, example: Example) -> float:
        """1.0 for right, 0.0 for wrong (or a value between)."""
        ...

    def vote_key(self, answer: str, example: Example) -> str:
        """Answers with equal keys count as one in a vote ("1,000" and "1000.0")."""
        ...


class LoadedOnce:
    """A task whose examples are read or made by ``load``, once, on first use."""

    load: Callable[[], Sequence[Example]]

    @cached_property
    def _examples(self) -> tuple[Example, ...]:
        return tuple(self.load())

    def examples(self) -> Sequence[Example]:
        return self._examples
