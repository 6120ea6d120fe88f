"""Arithmetic: one operation on two whole numbers (AllenAI basic_arithmetic), answered in a few tokens.

This set rather than the package's basic_skills_arithmetic (1,047 rows): it has 3,000 rows at three stated levels (a thousand each) and
only the four operations, so that a test recomputes every gold answer exactly. Its four answer options are not shown: the number is
generated.
"""

from perturbjax.tasks.base import Example, Template
from perturbjax.tasks.layout import GenerationTask, Layout
from perturbjax.tasks.quantity import find_numbers, first_line, normalize_number
from perturbjax.tasks.sources import Source

_SOURCE = Source(
    "basic_arithmetic (AllenAI), validation split",
    "hf_datasets/allenai/basic_arithmetic/none/validation",
    "allenai/basic_arithmetic",
    None,
    "validation",
)

_SHOTS = (
    ({"question": "12 + 30"}, "42"),
    ({"question": "90 - 17"}, "73"),
    ({"question": "8 * 25"}, "200"),
    ({"question": "144 / 12"}, "12"),
)

_LAYOUTS = {
    "chat": Layout(body="{question} =", cue="{question} ="),
    "bare": Layout(body="What is {question}?"),
    "system": Layout(body="{question}", system=True),
    "plain": Layout(body="", cue="{question} =", chat=False),
    "chat_shots": Layout(body="{question} =", shots=_SHOTS),
    "plain_shots": Layout(body="", cue="{question} =", chat=False, shots=_SHOTS),
}

_TEMPLATES = (
    Template("calculate", "Calculate. Reply with the number only.", "chat"),
    Template("what_is", "Answer with one number and nothing else.", "bare"),
    Template("system", "You are a calculator. You reply with the result as a number and nothing else.", "system"),
    Template("plain", "", "plain"),
    Template("few_shot", "Calculate. Reply with the number only.", "chat_shots"),
    Template("plain_few_shot", "", "plain_shots"),
)


class Arithmetic(GenerationTask):
    """The 3,000 questions of basic_arithmetic; ``fields["level"]`` is easy, medium or hard."""

    name = "arithmetic"
    templates = _TEMPLATES
    layouts = _LAYOUTS
    max_new_tokens = 16

    def __init__(self) -> None:
        self.source = str(_SOURCE)

    def load(self) -> tuple[Example, ...]:
        examples = []
        for row in _SOURCE.rows():
            question = row["question"].removeprefix("Calculate").removesuffix("=").strip()
            answer = row["choices"]["text"][row["choices"]["label"].index(row["answerKey"])]
            examples.append(Example(row["id"], question, answer, fields={"level": row["type_tag"]}))
        return tuple(examples)

    def extract(self, text: str, example: Example, strict: bool = True) -> str | None:
        """Strict: the first line is a number and nothing else. Lenient: the last number of the first line that has one."""
        line = first_line(text)
        if normalize_number(line) is not None:
            return line
        if strict:
            return None
        return next((numbers[-1] for line in text.split("\n") if (numbers := find_numbers(line))), None)
