"""Rows that two sets share: feedback, which steers and validates, must be in neither the corpus nor the test rows, and these and general
text not in the corpus."""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from perturbjax.errors import InputError
from perturbjax.train.demonstrations import Demonstration, question_key
from perturbjax.vpretrain.config import OVERLAPS
from perturbjax.vpretrain.corpus import is_document

SHORTEST_INSIDE, WORDS_INSIDE = 32, 4
"""Characters of the shortest question that is looked for inside other rows, and words of the shortest that is in documents; shorter ones
occur by chance."""


@dataclass(frozen=True)
class Overlap:
    """Rows of the second set of a pair that occur in the first.

    Attributes:
        exact: with the same question, or inside a row, letter for letter but for case and white space.
        normalized: the same once punctuation and forms of compatibility are put aside too; exact ones are among them.
        rows: of the second set.
    """

    exact: int
    normalized: int
    rows: int


def check_overlaps(sets: Mapping[str, Sequence[Demonstration]], allowed: Sequence[str]) -> dict[str, Overlap]:
    """What the pairs of ``OVERLAPS`` share.

    Raises:
        InputError: a pair that is not allowed shares rows; all such pairs are named.
    """
    found = {pair: overlap(*(sets[name] for name in pair.split("+"))) for pair in OVERLAPS}
    refused = [f"{pair}: {each.normalized} of {each.rows} ({each.exact} exactly)" for pair, each in found.items() if each.normalized]
    refused = [text for text in refused if text.partition(":")[0] not in allowed]
    if refused:
        what = f"rows occur in both sets of {'; '.join(refused)}"
        raise InputError(f"`allow_overlap` {','.join(allowed) or 'none'}: {what}; take them out, or name the pair")
    return found


def overlap(first: Sequence[Demonstration], second: Sequence[Demonstration]) -> Overlap:
    """How many rows of the second set occur in the first."""
    counts = []
    for form in (question_key, normalized):
        occurs = occurrence(first, form)
        counts.append(sum(occurs(question(each)) for each in second))
    return Overlap(counts[0], max(counts), len(second))


def occurrence(rows: Sequence[Demonstration], form: Callable[[str], str]) -> Callable[[str], bool]:
    """Whether a question is that of a row, or stands inside one between words.

    Args:
        rows: to look in.
        form: what is put aside of a text.
    """
    questions = {form(question(each)) for each in rows}
    # No question holds a NUL, so nothing is found across two rows.
    documents = "\0".join(form(each.response) for each in rows if is_document(each))
    others = "\0".join(form(_whole(each)) for each in rows if not is_document(each))

    def occurs(text: str) -> bool:
        key = form(text)
        long = len(key) >= SHORTEST_INSIDE
        if key in questions or (long and _inside(key, others)):
            return True
        return (long or len(key.split()) >= WORDS_INSIDE) and _inside(key, documents)

    return occurs


def question(demonstration: Demonstration) -> str:
    """What a row is compared by: the question of a task, the turns of the user, the prompt's text, or the whole of a document."""
    if is_document(demonstration):
        return demonstration.response
    return demonstration.key


def _whole(demonstration: Demonstration) -> str:
    """A row that is no document."""
    turns = (turn["content"] for turn in demonstration.prompt.messages)
    return "\n".join([*turns, demonstration.prompt.text, demonstration.response])


def _inside(key: str, text: str) -> bool:
    at = text.find(key)
    while at >= 0:
        end = at + len(key)
        if not (text[at - 1 : at].isalnum() or text[end : end + 1].isalnum()):
            return True
        at = text.find(key, at + 1)
    return False


def normalized(text: str) -> str:
    """Case, punctuation, accents of compatibility and white space put aside."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.sub(r"[^\w\s]", " ", plain).split())
