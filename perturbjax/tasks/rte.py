"""RTE: does one text follow from another? (Dagan et al. 2005 and later rounds, as in GLUE)"""

from perturbjax.tasks.base import Example, Template
from perturbjax.tasks.layout import ChoiceTask, Layout
from perturbjax.tasks.sources import Source

_SOURCE = Source("RTE (GLUE), validation split", "hf_datasets/glue/rte/validation", "nyu-mll/glue", "rte", "validation")
_LABELS = ("entailment", "not_entailment")

_SHOTS = (
    ({"premise": "Anna sold her bicycle to a student last week.", "question": "A student bought a bicycle."}, "yes"),
    ({"premise": "The museum plans to open a second building in 2030.", "question": "The museum closed in 2030."}, "no"),
    ({"premise": "Rain fell on the harbour all night.", "question": "It rained on the harbour."}, "yes"),
)

_YES_NO = ("yes", "no")
_LAYOUTS = {
    "chat": Layout(body="Text: {premise}\n\nStatement: {question}", cue="The answer is", words=_YES_NO),
    "bare": Layout(body="Premise: {premise}\nHypothesis: {question}", words=("True", "False")),
    "plain": Layout(body="{premise}\nQuestion: {question} True or False?", cue="Answer:", chat=False, words=("True", "False")),
    "system": Layout(body="{premise}\n\nDoes this mean that the following is true? {question}", cue="Answer:", system=True, words=_YES_NO),
    "shots": Layout(body="Text: {premise}\nStatement: {question}", cue="Answer:", chat=False, shots=_SHOTS, words=_YES_NO),
}

_TEMPLATES = (
    Template("follows", "Does the statement follow from the text? Answer yes or no.", "chat"),
    Template("true_false", "If the premise is true, is the hypothesis true? Reply True or False.", "bare"),
    Template("plain", "", "plain"),
    Template("system", "You are a careful reader. You answer yes or no.", "system"),
    Template("few_shot", "Does the statement follow from the text?", "shots"),
)


def _load() -> list[Example]:
    return [
        Example(f"validation-{row['idx']}", row["sentence2"].strip(), _LABELS[row["label"]], _LABELS, {"premise": row["sentence1"].strip()})
        for row in _SOURCE.rows()
    ]


def rte() -> ChoiceTask:
    return ChoiceTask("rte", str(_SOURCE), _load, _TEMPLATES, _LAYOUTS)
