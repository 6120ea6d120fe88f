"""Rows that sets share, in the forms in which a question comes back."""

import pytest

from perturbjax.tasks.base import Message, Prompt
from perturbjax.train.demonstrations import Demonstration, question_key
from perturbjax.vpretrain.config import OVERLAPS
from perturbjax.vpretrain.overlap import Overlap, check_overlaps, overlap

QUESTION = "Is 12 an even number?"
LONG = "How many apples do Ann, who has three, and Bob have?"


def document(text: str) -> Demonstration:
    return Demonstration("document", Prompt(()), text, question_key(text))


def asked(prompt: str, response: str = "yes") -> Demonstration:
    return Demonstration("asked", Prompt((), prompt), response, question_key(prompt))


def chat(*turns: Message) -> Demonstration:
    said = "\n".join(turn["content"] for turn in turns if turn["role"] == "user")
    return Demonstration("chat", Prompt(turns), "yes", question_key(said))


@pytest.mark.parametrize(
    ("first", "second", "exact", "normalized"),
    [
        (asked(QUESTION), asked("is 12  an EVEN number?"), 1, 1),
        (asked(QUESTION), asked("Is 12 an \u201ceven\u201d number"), 0, 1),
        (asked(QUESTION), asked("Is 13 an even number?"), 0, 0),
        (document(f"Tom asked: {QUESTION} It is."), asked(QUESTION), 1, 1),
        (document("Tom asked, is 12 an even number, and left."), asked(QUESTION), 0, 1),
        (document("He said: is 1 an even number"), asked("Is 1 an even"), 1, 1),
        (document("This 12 an even number"), asked(QUESTION), 0, 0),  # not between words
        (document("Is 12 an even numbers"), asked(QUESTION), 0, 0),
        (document("What is 2 + 2? Four."), asked("2 + 2"), 0, 0),  # too short: by chance
        (asked(f"Question: {LONG}\nAnswer:"), asked(LONG), 1, 1),
        (asked(f"Question: {QUESTION}\nAnswer:"), asked(QUESTION), 0, 0),  # shorter ones are parts of others
        (chat({"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}), asked(QUESTION), 1, 1),
    ],
)
def test_rows_are_found_by_their_question(first, second, exact, normalized):
    assert overlap([asked("something else"), first], [second]) == Overlap(exact, normalized, 1)


def test_pairs_that_are_not_allowed_are_refused_together():
    sets = {"corpus": [document(QUESTION)], "feedback": [asked(QUESTION)], "test": [], "general": [document(QUESTION)]}
    found = check_overlaps(sets, ("corpus+feedback", "corpus+general"))
    assert [each.normalized for each in found.values()] == [1, 0, 0, 1] and tuple(found) == OVERLAPS
    with pytest.raises(ValueError, match=r"corpus\+feedback: 1 of 1 \(1 exactly\); corpus\+general: 1 of 1"):
        check_overlaps(sets, ())
