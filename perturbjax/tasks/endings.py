"""Sets of a beginning and its possible endings: HellaSwag, PIQA, WinoGrande and COPA (English, two or four endings a row).

A row is told as text that one of the endings continues. HellaSwag gives it so. A premise of COPA is joined to its cause by "because" and to
its effect by "so"; a sentence of WinoGrande breaks off at its blank, and an ending is a name with the rest of the sentence. A goal of PIQA
is answered by a solution. What is scored differs by template, as in ``arc_easy``: the endings themselves by default, their letters in the
lettered templates. Log-probabilities of an ending are summed over its tokens and not divided by its length.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from perturbjax.tasks.base import Example, Template
from perturbjax.tasks.layout import LETTERS, ChoiceTask, Layout, option_fields
from perturbjax.tasks.sources import Row, Source


class _Told(NamedTuple):
    """What a row says."""

    beginning: str
    endings: tuple[str, ...]
    gold: int


@dataclass(frozen=True)
class EndingSet:
    """One set of this kind.

    Attributes:
        source: where its rows are.
        read: tells a row.
        ask: the instruction for a template that scores the endings.
        ask_letter: the instruction for one that lists them and scores letters.
        role: of the system message in the template that has one.
        shots: (beginning, endings, gold index), written for this project.
        shown, cue: format strings: what shows the beginning, and what the ending then continues, in a chat and (``plain_shown``) in
            plain text. The ending of a sentence continues the sentence itself, said again by the model.
    """

    source: Source
    read: Callable[[Row], _Told]
    ask: str
    ask_letter: str
    role: str
    shots: tuple[_Told, ...]
    shown: str = "{question}"
    cue: str = "{question}"
    plain_shown: str = ""

    def layouts(self) -> dict[str, Layout]:
        texts = tuple(({"question": shot.beginning}, shot.endings[shot.gold]) for shot in self.shots)
        lettered = tuple(({"question": s.beginning, **option_fields(s.endings)}, LETTERS[s.gold]) for s in self.shots)
        listed = f"{self.shown}\n\n{{listed}}"
        return {
            "chat": Layout(body=self.shown, cue=self.cue, options=True),
            "system": Layout(body=self.shown, cue=self.cue, system=True, options=True),
            "plain": Layout(body=self.plain_shown, cue=self.cue, chat=False, options=True),
            "text_shots": Layout(body=self.plain_shown, cue=self.cue, chat=False, shots=texts, options=True),
            "letters": Layout(body=listed, cue="The answer is"),
            "letter_shots": Layout(body=listed, cue="Answer:", chat=False, shots=lettered),
        }

    def templates(self) -> tuple[Template, ...]:
        return (
            Template("endings", self.ask, "chat"),
            Template("system", self.role, "system"),
            Template("plain", "", "plain"),
            Template("few_shot", "", "text_shots"),
            Template("letters", self.ask_letter, "letters"),
            Template("few_shot_letters", "", "letter_shots"),
        )


def ending_task(name: str) -> ChoiceTask:
    """The task of one of ``ENDING_SETS``."""
    ending_set = ENDING_SETS[name]
    return ChoiceTask(name, str(ending_set.source), lambda: _examples(ending_set), ending_set.templates(), ending_set.layouts())


def _examples(ending_set: EndingSet) -> list[Example]:
    examples = []
    for index, row in enumerate(ending_set.source.rows()):
        told = ending_set.read(row)
        letters = tuple(LETTERS[: len(told.endings)])
        examples.append(Example(f"validation-{index}", told.beginning, letters[told.gold], letters, option_fields(told.endings)))
    return examples


_LAST_OF_TITLE = re.compile(r"(?<=\w) \[title\]")
_MARK = re.compile(r"\[(?:header|title|step|substeps)\]")


def _unmarked(text: str) -> str:
    """Text of HellaSwag without the marks of WikiHow's layout."""
    return " ".join(_MARK.sub(" ", _LAST_OF_TITLE.sub(".", text)).split())


def _hellaswag(row: Row) -> _Told:
    begun = row["ctx_b"].strip()  # the first words of the sentence that the endings end, in small letters
    beginning = f"{row['activity_label']}: {row['ctx_a']} {begun[:1].upper()}{begun[1:]}"
    return _Told(_unmarked(beginning), tuple(map(_unmarked, row["endings"])), int(row["label"]))


def _piqa(row: Row) -> _Told:
    return _Told(row["goal"].strip(), (row["sol1"].strip(), row["sol2"].strip()), row["label"])


def _winogrande(row: Row) -> _Told:
    beginning, rest = row["sentence"].split("_")
    return _Told(beginning.strip(), (row["option1"] + rest, row["option2"] + rest), int(row["answer"]) - 1)


def _copa(row: Row) -> _Told:
    joined = f"{row['premise'].strip().removesuffix('.')} {'because' if row['question'] == 'cause' else 'so'}"
    # None of the sentences begins with a name.
    endings = (text if text.split()[0] == "I" else text[:1].lower() + text[1:] for text in (row["choice1"], row["choice2"]))
    return _Told(joined, tuple(endings), row["label"])


ENDING_SETS: dict[str, EndingSet] = {
    "hellaswag": EndingSet(  # Zellers et al. 2019
        Source("HellaSwag, validation split", "hf_datasets/hellaswag/none/validation", "Rowan/hellaswag", None, "validation"),
        _hellaswag,
        "Continue the text with what most likely comes next.",
        "Which ending continues the text best? Reply with its letter.",
        "You continue texts. You write what most likely comes next and nothing else.",
        (
            _Told(
                "Watering plants: A girl fills a can at the tap. She",
                ("drives it to the station.", "pours the water over the tulips.", "reads it twice.", "puts the tap in her pocket."),
                1,
            ),
            _Told(
                "Home and Garden: How to sharpen a pencil. Hold the sharpener still.",
                ("Paint it and let it dry overnight.", "Add two eggs.", "Turn the pencil until its point is fine.", "Ask a dentist."),
                2,
            ),
        ),
    ),
    "piqa": EndingSet(  # Bisk et al. 2020
        Source("PIQA, validation split", "hf_datasets/piqa/plain_text/validation", "ybisk/piqa", "plain_text", "validation"),
        _piqa,
        "How is this goal reached? Answer with a solution that works.",
        "Which solution reaches the goal? Reply with its letter.",
        "You give practical advice on everyday tasks.",
        (
            _Told("Keep a door from slamming.", ("Wedge a folded cloth under it.", "Wedge a folded cloth above the window."), 0),
            _Told("How do I cool soup quickly?", ("Stir it over a hot stove.", "Set the pot in cold water and stir."), 1),
        ),
        shown="Goal: {question}",
        cue="Solution:",
        plain_shown="Goal: {question}",
    ),
    "winogrande": EndingSet(  # Sakaguchi et al. 2020
        Source(
            "WinoGrande, validation split",
            "hf_datasets/winogrande/winogrande_xl/validation",
            "allenai/winogrande",
            "winogrande_xl",
            "validation",
        ),
        _winogrande,
        "Complete the sentence so that it makes sense.",
        "Which ending makes sense of the sentence? Reply with its letter.",
        "You complete sentences so that they make sense.",
        (
            _Told("The vase did not fit on the shelf because the", ("vase was too tall.", "shelf was too tall."), 0),
            _Told("Paul lent Mark his coat, for", ("Paul was cold.", "Mark was cold."), 1),
        ),
    ),
    "copa": EndingSet(  # Roemmele et al. 2011, as in SuperGLUE
        Source("COPA (SuperGLUE), validation split", "hf_datasets/super_glue/copa/validation", "aps/super_glue", "copa", "validation"),
        _copa,
        "Complete the sentence with the likelier cause or effect.",
        "Which ending is the likelier one? Reply with its letter.",
        "You complete sentences with likely causes and effects.",
        (
            _Told("The lights went out so", ("we lit candles.", "we washed the car."), 0),
            _Told("The children wore boots because", ("they were hungry.", "it had rained."), 1),
        ),
    ),
}
