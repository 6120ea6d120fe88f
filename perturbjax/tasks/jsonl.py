"""A user's own task: a ``.jsonl`` file of ``question`` and ``answer``, with optional ``choices``, ``match`` and ``id``; other fields are
ignored.

With choices on every line it is a choice task. If all lines have the same choices (a classification) the default template scores the
choices themselves, else (each question its own options) their letters; the other way is a template too. Without choices it is a generation
task: **strict** takes what follows "Answer:", or a reply of one line; **lenient** takes the likeliest reading. If every answer of the file
is a number, replies are read as numbers ("1,000" equals 1000.0), else as words, without regard to case, articles and outer punctuation.
With ``"match": "exact"`` on every line they are compared as written: case and brackets count; outer quotes, a final full stop and the width
of spaces do not.

A story with two endings, as in ROCStories (``--template texts`` scores the endings and not their letters, which suits small models)::

    {"question": "Ana sowed. No rain fell. How does it end?", "choices": ["She watered it.", "She ate it."], "answer": "She watered it."}

A reaction, as in USPTO, where c1ccccc1 is not C1CCCCC1. SMILES are compared as texts, so those of the file should be canonical::

    {"question": "Reactants: CCO.CC(=O)O. What is the product, in SMILES?", "answer": "CCOC(C)=O", "match": "exact"}
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from perturbjax.errors import InputError
from perturbjax.records import from_json, read_json_lines, refuse
from perturbjax.tasks.base import Example, Template
from perturbjax.tasks.layout import LETTERS, ChoiceTask, GenerationTask, Layout, option_fields
from perturbjax.tasks.quantity import find_numbers, first_line, normalize_number

_CHOICE_LAYOUTS = {
    "texts": Layout(body="{question}", cue="Answer:"),
    "listed_texts": Layout(body="{question}\n\n{listed}", cue="The answer is"),
    "plain_texts": Layout(body="Question: {question}", cue="Answer:", chat=False),
    "letters": Layout(body="{question}\n\n{listed}", cue="The answer is", words=tuple(LETTERS)),
    "plain_letters": Layout(body="Question: {question}\n{listed}", cue="Answer:", chat=False, words=tuple(LETTERS)),
}
_TEXTS_FIRST = (
    Template("texts", "Answer the question.", "texts"),
    Template("listed_texts", "Choose the right answer to the question.", "listed_texts"),
    Template("plain_texts", "", "plain_texts"),
    Template("letters", "Choose the right answer to the question and reply with its letter.", "letters"),
    Template("plain_letters", "", "plain_letters"),
)
_LETTERS_FIRST = (*_TEXTS_FIRST[3:], *_TEXTS_FIRST[:3])

_REPLY_LAYOUTS = {
    "chat": Layout(body="{question}"),
    "cued": Layout(body="{question}", cue="Answer:"),
    "plain": Layout(body="Question: {question}", cue="Answer:", chat=False),
}
_REPLY_TEMPLATES = (
    Template("answer_line", 'Answer the question. End with a line "Answer: ..." that holds the answer alone.', "chat"),
    Template("steps", 'Think step by step, then give the answer on a last line that starts with "Answer:".', "chat"),
    Template("direct", "Reply with the answer only, as short as possible.", "cued"),
    Template("plain", "", "plain"),
)
_ANSWER = re.compile(r"\banswer\W{0,3}:", re.IGNORECASE)
_ANSWER_IS = re.compile(r"\banswer\b[^.\n]{0,40}?\bis:?", re.IGNORECASE)
_NEXT_QUESTION = re.compile(r"\n[ \t]*Question:")
_ARTICLE = re.compile(r"^(?:the|an?)\s+")
_EMPHASIS = " \t\r*`\"'_"
_PUNCTUATION = " \t\r.,;:!?*`\"'_()[]"


def jsonl_task(path: str, argument: str = "task") -> "ChoiceTask | JsonlGeneration":
    """The task of a file. Every defect of the file is an ``InputError`` that names its line; ``argument``: what it calls the file."""
    examples = read_jsonl(path, argument)
    name, source = Path(path).stem, f"{Path(path).name}, {len(examples)} rows"
    if not examples[0].choices:
        return JsonlGeneration(name, source, examples)
    shared = len({frozenset(example.choices) for example in examples}) == 1
    return ChoiceTask(name, source, lambda: examples, _TEXTS_FIRST if shared else _LETTERS_FIRST, _CHOICE_LAYOUTS)


def read_jsonl(path: str, argument: str = "task") -> tuple[Example, ...]:
    """The examples of a file, in order; empty lines are skipped. A row without an id is called after its line: "line-3"."""
    examples: list[Example] = []
    seen: dict[str, str] = {}
    for where, row in read_json_lines(Path(path), f"{argument} '{path}'"):
        example = _example(row, where)
        if example.id in seen:
            refuse(where, "id", example.id, f"{seen[example.id]} has it; ids must be unique")
        seen[example.id] = where.rpartition(": ")[2]
        if examples and bool(example.choices) != bool(examples[0].choices):
            found, first = "given" if example.choices else "missing", next(iter(seen.values()))
            raise InputError(f"{where}: choices is {found}, unlike {first}; give it on every line or on none")
        if examples and example.fields.get("match") != examples[0].fields.get("match"):
            found, first = "given" if "match" in example.fields else "missing", next(iter(seen.values()))
            raise InputError(f"{where}: match is {found}, unlike {first}; give it on every line or on none")
        examples.append(example)
    if not examples:
        raise InputError(f"{argument} '{path}': no rows; give one object a line, with question and answer")
    return tuple(examples)


@dataclass(frozen=True)
class _Row:
    """The fields of a line that are read."""

    question: str
    answer: str | int | float
    id: str | int | float | None = None
    choices: tuple[str | int | float, ...] | None = None
    match: Literal["exact"] | None = None


def _example(fields: Any, where: str) -> Example:
    if isinstance(fields, dict):  # other fields are ignored
        fields = {name: value for name, value in fields.items() if name in _Row.__annotations__}
    row = from_json(_Row, fields, where)
    question, answer = _text(row.question, "question", where), _text(row.answer, "answer", where)
    name = where.rpartition(": ")[2].replace(" ", "-") if row.id is None else _text(row.id, "id", where)
    if row.choices is None:
        return Example(name, question, answer, fields={} if row.match is None else {"match": row.match})
    if row.match is not None:
        refuse(where, "match", row.match, "a question with choices is answered by one of them; leave it out")
    if not 2 <= len(row.choices) <= len(LETTERS):
        refuse(where, "choices", fields["choices"], f"2 to {len(LETTERS)} choices are required")
    choices = tuple(_text(choice, f"choices[{i}]", where) for i, choice in enumerate(row.choices))
    if len(set(choices)) < len(choices):
        refuse(where, "choices", choices, "every choice may occur once")
    if answer not in choices:
        refuse(where, "answer", answer, f"one of its choices ({', '.join(choices)}) is required")
    return Example(name, question, answer, choices, option_fields(choices))


def _text(value: str | float, field: str, where: str) -> str:
    text = str(value).strip()
    if not text:
        refuse(where, field, value, "a text that is not empty is required")
    return text


class JsonlGeneration(GenerationTask):
    """Questions whose answers are generated.

    Args:
        name: of the task.
        source: one line for the report.
        examples: at least one.
        max_new_tokens: generation budget.
    """

    templates = _REPLY_TEMPLATES
    layouts = _REPLY_LAYOUTS

    def __init__(self, name: str, source: str, examples: Sequence[Example], max_new_tokens: int = 128) -> None:
        self.name = name
        self.source = source
        self.max_new_tokens = max_new_tokens
        self.exact = all(example.fields.get("match") == "exact" for example in examples)
        self.numeric = not self.exact and all(normalize_number(example.answer) is not None for example in examples)
        self.load = lambda: examples

    def extract(self, text: str, example: Example, strict: bool = True) -> str | None:
        """Strict: the line after the last "Answer:", else a reply of one line; in a numeric task it must be one number.

        Lenient: a number anywhere (the last one after "Answer:" if there is one, else of the whole reply); words after "the answer is",
        else the first line. Nothing counts from a following "Question:" on, which is the model asking itself.
        """
        text = _NEXT_QUESTION.split(text, maxsplit=1)[0].strip()
        labels = [match.end() for match in _ANSWER.finditer(text)]
        labelled = text[labels[-1] :] if labels else ""
        answer = first_line(labelled) if labels else ("" if "\n" in text else text)
        outer = _EMPHASIS if self.numeric or self.exact else _PUNCTUATION
        answer = answer.strip(outer)
        if answer and (not self.numeric or normalize_number(answer) is not None):
            return answer
        if strict:
            return None
        if self.numeric:
            numbers = find_numbers(labelled) or find_numbers(text)
            return numbers[-1] if numbers else None
        stated = [match.end() for match in _ANSWER_IS.finditer(text)]
        return first_line(text[stated[-1] :] if stated else text).strip(outer) or None

    def score(self, answer: str | None, example: Example) -> float:
        return float(answer is not None and self.vote_key(answer, example) == self.vote_key(example.answer, example))

    def vote_key(self, answer: str, example: Example) -> str:
        if self.numeric and (number := normalize_number(answer)) is not None:
            return number
        if self.exact:
            return " ".join(answer.strip(_EMPHASIS).removesuffix(".").strip(_EMPHASIS).split())
        words = " ".join(answer.casefold().strip(_PUNCTUATION).split())
        return _ARTICLE.sub("", words) or words
