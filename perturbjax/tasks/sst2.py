"""SST-2: is a sentence of a movie review positive or negative? (Socher et al. 2013, as in GLUE)"""

from perturbjax.tasks.base import Example, Template
from perturbjax.tasks.layout import ChoiceTask, Layout
from perturbjax.tasks.sources import Source

_SOURCE = Source("SST-2 (GLUE), validation split", "hf_datasets/glue/sst2/validation", "nyu-mll/glue", "sst2", "validation")
_LABELS = ("negative", "positive")

_SHOTS = (
    ({"question": "two hours of my life that i would like to have back"}, "negative"),
    ({"question": "a warm , quietly funny story with a wonderful cast"}, "positive"),
    ({"question": "the jokes fall flat and the plot goes nowhere"}, "negative"),
    ({"question": "every scene is a pleasure to look at"}, "positive"),
)

_LAYOUTS = {
    "chat": Layout(body="Sentence: {question}", cue="The sentiment of the sentence is"),
    "bare": Layout(body="Review: {question}"),
    "system": Layout(body="{question}", cue="Sentiment:", system=True),
    "verdict": Layout(body="Review: {question}", cue="Overall, the movie was", chat=False, words=("terrible", "great")),
    "shots": Layout(body="Review: {question}", cue="Sentiment:", chat=False, shots=_SHOTS),
    "recommend": Layout(body='A critic wrote: "{question}"', cue="Answer:", words=("no", "yes")),
}

_TEMPLATES = (
    Template("sentence", "Decide whether the opinion in this sentence from a movie review is positive or negative.", "chat"),
    Template("one_word", 'Classify the movie review below. Reply with one word, "positive" or "negative".', "bare"),
    Template("system", "You label the sentiment of sentences from movie reviews as positive or negative.", "system"),
    Template("plain_verdict", "", "verdict"),
    Template("few_shot", "Movie reviews and their sentiment, positive or negative.", "shots"),
    Template("recommend", "Does the critic recommend the movie? Answer yes or no.", "recommend"),
)


def _load() -> list[Example]:
    return [Example(f"validation-{row['idx']}", row["sentence"].strip(), _LABELS[row["label"]], _LABELS) for row in _SOURCE.rows()]


def sst2() -> ChoiceTask:
    return ChoiceTask("sst2", str(_SOURCE), _load, _TEMPLATES, _LAYOUTS)
