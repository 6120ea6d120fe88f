"""What tasks share whose reply is generated text."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

from perturbjax.tasks.base import Example, LoadedOnce, Prompt, Template
from perturbjax.tasks.layout import Layout, compose, layout_of
from perturbjax.tasks.quantity import normalize_number


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
