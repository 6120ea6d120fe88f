"""How a style lays an example out: chat turns or plain text, instruction first, example last.

Constants come first in every layout because a prefix common to all examples (instruction, shots) is run once per candidate.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from perturbjax.errors import InputError
from perturbjax.tasks.base import Message, Template

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
