"""Tasks whose reply is one of a few given choices, graded by log-probability."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from perturbjax.tasks.base import Example, LoadedOnce, Prompt, Template
from perturbjax.tasks.layout import Layout, compose, continuation, layout_of

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


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
