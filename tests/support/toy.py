"""A small task of either kind, a population for a tiny model, and decoding of one batch size."""

from typing import Any

from perturbjax.inference import decode, programs
from perturbjax.noise import Population
from perturbjax.tasks.base import Example, Prompt, Template

POPULATION = Population(seed=4, size=10, sigmas=(0.02, 0.1))
TEMPLATE = Template("plain", "Say it:")
WORDS = ("apple", "a", "stone and river", "green", "yes", "no no no", "12", "thirteen")


class Toy:
    """A small task in the shape of the real ones."""

    name, source, max_new_tokens, templates = "toy", "made up", 5, (TEMPLATE,)

    def __init__(self, kind, choices=("x", "y")):
        self.kind: Any = kind
        self.choices = choices

    def examples(self):
        return [Example(str(i), w * (i % 3 + 1), self.choices[i % 2], self.choices) for i, w in enumerate(WORDS)]

    def prompt(self, example, template):
        text = f"{template.instruction} {example.question} is"
        return Prompt((), text, tuple(f" {c}" for c in example.choices) if self.kind == "choice" else ())

    def extract(self, text, example, strict=True):
        return text[:3] if strict else text

    def score(self, answer, example):
        return float(answer == example.answer)

    def vote_key(self, answer, example):
        return answer


def one_batch_size(patch: Any, row_sizes: tuple[int, ...] = (8,)) -> None:
    """Decoding is compiled for the given batch sizes only. How a batch shrinks is what ``test_decode`` compares, with every size."""
    for module in (decode, programs):
        patch.setattr(module, "ROW_SIZES", row_sizes)
