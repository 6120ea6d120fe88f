"""How a style lays an example out: chat turns or plain text, instruction first, example last; and the tasks that are made of layouts.

Constants come first in every layout because a prefix common to all examples (instruction, shots) is run once per candidate.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from perturbjax.errors import InputError
from perturbjax.tasks.base import Example, LoadedOnce, Message, Prompt, Template
from perturbjax.tasks.quantity import normalize_number

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

Values = Mapping[str, Any]
"""What the format strings of a layout can show: the question and the fields of an example."""


@dataclass(frozen=True)
class Layout:
    """One style.

    Attributes:
        body: format string over the values of an example.
        cue: format string of the text that the reply continues ("" = the reply starts the turn).
        chat: chat turns (True) or one plain text (False).
        system: put the instruction into a system message, not above the first question.
        shots: worked examples, (values, reply) each, written for this project so that none is a row of the data.
        words: choice tasks: the word that is scored for each choice, in the order of ``Example.choices`` (surplus words are ignored);
            () = the choice itself.
        options: choice tasks: score the text of each option (``fields["options"]``), not its letter.
    """

    body: str
    cue: str = ""
    chat: bool = True
    system: bool = False
    shots: tuple[tuple[Values, str], ...] = ()
    words: tuple[str, ...] = ()
    options: bool = False


def layout_of(template: Template, layouts: Mapping[str, Layout]) -> Layout:
    """The layout of a template's style; an unknown style is an ``InputError``."""
    if template.style not in layouts:
        raise InputError(f"template {template.name!r}: style {template.style!r} is not one of {', '.join(layouts)}; use one of these")
    return layouts[template.style]


def continuation(cue: str, reply: str) -> str:
    """The reply as it continues the cue: after a cue comes a space, at the start of a turn none.

    Byte-pair vocabularies have one token for " positive" and another for "positive"; the cue ends without a space so that the reply's
    first token is the common, spaced one.
    """
    return f" {reply}" if cue else reply


def compose(instruction: str, layout: Layout, values: Values) -> tuple[tuple[Message, ...], str]:
    """Chat messages and trailing text (a ``Prompt`` without its choices) for one example."""
    asked = [*layout.shots, (values, None)]
    turns = [(layout.body.format_map(v), layout.cue.format_map(v), reply) for v, reply in asked]
    if not layout.chat:
        blocks = [instruction] if instruction else []
        for body, cue, reply in turns:
            blocks.append("\n".join(part for part in (body, cue) if part) + (continuation(cue, reply) if reply is not None else ""))
        return (), "\n\n".join(blocks)
    messages: list[Message] = []
    if layout.system:
        messages.append({"role": "system", "content": instruction})
    elif instruction:
        body, cue, reply = turns[0]
        turns[0] = f"{instruction}\n\n{body}", cue, reply
    for body, cue, reply in turns:
        messages.append({"role": "user", "content": body})
        if reply is not None:
            messages.append({"role": "assistant", "content": cue + continuation(cue, reply)})
    return tuple(messages), turns[-1][1]


@dataclass(eq=False)
class ChoiceTask(LoadedOnce):
    """A choice task made of examples, templates and the layouts that the templates' styles name.

    Attributes:
        name: what a run's ``task`` says.
        source: one line for the report: where the rows come from.
        load: reads the examples; called once, on first use.
        templates: ways to ask, the default first.
        layouts: by style.
    """

    name: str
    source: str
    load: Callable[[], Sequence[Example]]
    templates: tuple[Template, ...]
    layouts: Mapping[str, Layout]
    kind: Literal["choice", "generation"] = "choice"
    max_new_tokens: int = 0

    def prompt(self, example: Example, template: Template) -> Prompt:
        layout = layout_of(template, self.layouts)
        messages, text = compose(template.instruction, layout, {"question": example.question, **example.fields})
        words = example.fields["options"] if layout.options else (layout.words or example.choices)[: len(example.choices)]
        return Prompt(messages, text, tuple(continuation(layout.cue, word) for word in words))

    def extract(self, text: str, example: Example, strict: bool = True) -> str | None:
        """A choice spelled out in full; lenient also forgives case and a final full stop."""
        text = text.strip()
        if text in example.choices or strict:
            return text if text in example.choices else None
        folded = text.removesuffix(".").casefold()
        return next((choice for choice in example.choices if choice.casefold() == folded), None)

    def score(self, answer: str | None, example: Example) -> float:
        return float(answer == example.answer)

    def vote_key(self, answer: str, example: Example) -> str:
        return answer


def option_fields(options: Sequence[str], **more: Any) -> dict[str, Any]:
    """Fields of a question with its own options: their texts, and the list "A. ..." that a prompt shows.

    >>> option_fields(["red", "blue"])["listed"]
    'A. red\\nB. blue'
    """
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False))
    return {"options": tuple(options), "listed": listed, **more}


class GenerationTask(LoadedOnce, ABC):
    """A generation task made of examples, templates and the layouts that the templates' styles name; answers are numbers unless a task
    says otherwise."""

    kind: Literal["choice", "generation"] = "generation"
    templates: tuple[Template, ...]
    layouts: ClassVar[Mapping[str, Layout]]

    @abstractmethod
    def extract(self, text: str, example: Example, strict: bool = True) -> str | None: ...

    def prompt(self, example: Example, template: Template) -> Prompt:
        return Prompt(*compose(template.instruction, layout_of(template, self.layouts), {"question": example.question}))

    def score(self, answer: str | None, example: Example) -> float:
        return float(answer is not None and normalize_number(answer) == example.answer)

    def vote_key(self, answer: str, example: Example) -> str:
        return normalize_number(answer) or answer
