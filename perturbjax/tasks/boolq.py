"""BoolQ: yes/no questions about a passage (Clark et al. 2019)."""

from perturbjax.tasks.base import Example, Template
from perturbjax.tasks.layout import ChoiceTask, Layout
from perturbjax.tasks.sources import Source

_SOURCE = Source("BoolQ, validation split", "hf_datasets/boolq/none/validation", "google/boolq", None, "validation")
_CHOICES = ("no", "yes")

_SHOTS = (
    (
        {
            "passage": "The blue whale is a marine mammal. Reaching 30 metres in length, it is the largest animal known to have lived.",
            "question": "Is the blue whale a fish?",
        },
        "no",
    ),
    (
        {
            "passage": "Copper conducts heat and electricity very well, which is why it is drawn into wires and hammered into pans.",
            "question": "Does copper conduct electricity?",
        },
        "yes",
    ),
)

_LAYOUTS = {
    "chat": Layout(body="Passage: {passage}\n\nQuestion: {question}", cue="The answer is"),
    "bare": Layout(body="{passage}\n\n{question}", words=("No", "Yes")),
    "question_first": Layout(body="Question: {question}\n\nPassage: {passage}", cue="Answer:"),
    "plain": Layout(body="{passage}\nQuestion: {question}", cue="Answer:", chat=False),
    "truth": Layout(body="{passage}\n\n{question}", cue="Answer:", system=True, words=("false", "true")),
    "shots": Layout(body="Passage: {passage}\nQuestion: {question}", cue="Answer:", shots=_SHOTS),
}

_TEMPLATES = (
    Template("passage", "Read the passage and answer the question with yes or no.", "chat"),
    Template("one_word", "Answer the question about this text with one word, Yes or No.", "bare"),
    Template("question_first", "Find the answer to the question in the passage. Answer yes or no.", "question_first"),
    Template("plain", "", "plain"),
    Template("true_false", "You check facts. Given a text and a question, reply true if the answer is yes and false if it is no.", "truth"),
    Template("few_shot", "Answer each question about its passage with yes or no.", "shots"),
)


def _load() -> list[Example]:
    return [
        Example(
            id=f"validation-{index}",
            question=row["question"].strip()[:1].upper() + row["question"].strip()[1:].removesuffix("?") + "?",
            answer=_CHOICES[row["answer"]],
            choices=_CHOICES,
            fields={"passage": row["passage"].strip()},
        )
        for index, row in enumerate(_SOURCE.rows())
    ]


def boolq() -> ChoiceTask:
    return ChoiceTask("boolq", str(_SOURCE), _load, _TEMPLATES, _LAYOUTS)
