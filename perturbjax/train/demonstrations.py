"""Demonstrations: prompts and the responses that a model is to learn, from a file, a task, or a data set.

A response is followed by the token that ends a turn, so that a model learns to stop.
"""

import importlib.util
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perturbjax.errors import InputError
from perturbjax.pretrained.tokenizer import Tokenizer
from perturbjax.records import read_json_lines, refuse
from perturbjax.tasks import load_task, template_by_name
from perturbjax.tasks.base import Example, Message, Prompt, Task

DATASETS = "datasets:"
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Demonstration:
    """One prompt and its response. ``key``: what it asks, for finding demonstrations that are test questions."""

    id: str
    prompt: Prompt
    response: str
    key: str


@dataclass(frozen=True)
class EncodedDemonstration:
    """Token ids, and what the response weighs. Those of ``encode_demonstrations`` end with a stop token."""

    id: str
    prompt: tuple[int, ...]
    response: tuple[int, ...]
    weight: float = 1.0


def load_demonstrations(spec: str, template: str | None = None, argument: str = "demonstrations") -> tuple[Demonstration, ...]:
    """Demonstrations of a file, a task or a data set.

    Args:
        spec: a ``.jsonl`` file of ``messages`` (each turn of the assistant is one demonstration), of ``prompt`` and ``response``, or of
            ``question`` and ``answer``; a task; or ``datasets:NAME:SPLIT`` with columns of these names.
        template: of a task's prompts; the first when left out.
        argument: what messages call ``spec``, the setting that it is of.

    Raises:
        InputError: it cannot be read, or a line holds no demonstration.
    """
    if is_task(spec, argument):
        return task_demonstrations(load_task(spec, argument=argument), template)
    rows = dataset_rows(spec, argument) if spec.startswith(DATASETS) else read_json_lines(Path(spec), f"{argument} '{spec}'")
    if not rows:
        raise InputError(f"{argument} '{spec}': no rows; give one object a line, with messages, or with prompt and response")
    if template is not None:
        raise InputError(f"`template` {template}: {argument} '{spec}' bring their own prompts; leave it out")
    return tuple(demonstration for where, row in rows for demonstration in _of_row(where, row))


def is_task(spec: str, argument: str = "demonstrations") -> bool:
    """Whether demonstrations are the prompts and gold answers of a task: its name, or a file of questions and answers. ``argument``: as of
    ``load_demonstrations``.

    Raises:
        InputError: a file that cannot be read.
    """
    if spec.startswith(DATASETS):
        return False
    if not spec.endswith(".jsonl"):
        return True
    rows = read_json_lines(Path(spec), f"{argument} '{spec}'")
    return bool(rows) and isinstance(rows[0][1], dict) and "question" in rows[0][1]


def task_demonstrations(task: Task, template: str | None = None, examples: Sequence[Example] | None = None) -> tuple[Demonstration, ...]:
    """A task's prompts with the gold answers as responses: the right choice's text, or the answer in the form that the task reads."""
    chosen = task.templates[0] if template is None else template_by_name(task, template)

    def one(example: Example) -> Demonstration:
        prompt = task.prompt(example, chosen)
        if task.kind == "choice":
            response = prompt.choices[example.choices.index(example.answer)]
        else:
            write: Callable[[Example], str] = getattr(task, "response", lambda example: example.answer)
            response = write(example)
            if prompt.text:
                response = f" {response}"
        return Demonstration(example.id, prompt, response, question_key(example.question))

    return tuple(one(example) for example in (task.examples() if examples is None else examples))


def encode_demonstrations(demonstrations: Sequence[Demonstration], tokenizer: Tokenizer) -> list[EncodedDemonstration]:
    """Token ids of demonstrations, each response with the token that ends a turn."""
    stop = tokenizer.turn_end
    prompts = tokenizer.encode_prompts([d.prompt for d in demonstrations])
    return [
        EncodedDemonstration(d.id, tuple(prompt), (*tokenizer.encode(d.response), stop))
        for d, prompt in zip(demonstrations, prompts, strict=True)
    ]


def without_questions(demonstrations: Sequence[Demonstration], examples: Sequence[Example]) -> tuple[tuple[Demonstration, ...], int]:
    """The demonstrations that ask none of the examples' questions (white space and case aside), and how many were taken out."""
    asked = {question_key(example.question) for example in examples}
    kept = tuple(d for d in demonstrations if d.key not in asked)
    return kept, len(demonstrations) - len(kept)


def without_asked(examples: Sequence[Example], demonstrations: Sequence[Demonstration]) -> tuple[Example, ...]:
    """The examples whose question no demonstration asks, as ``without_questions`` compares them."""
    asked = {demonstration.key for demonstration in demonstrations}
    return tuple(example for example in examples if question_key(example.question) not in asked)


def question_key(text: str) -> str:
    """What two questions are compared by: white space and case do not count."""
    return " ".join(text.casefold().split())


def dataset_rows(spec: str, argument: str) -> list[tuple[str, Any]]:
    """(Where it stands, for messages; the row), of the rows of ``datasets:NAME:SPLIT``. ``argument``: as of ``load_demonstrations``.

    Raises:
        InputError: it is written otherwise, or cannot be loaded.
    """
    match = re.fullmatch(r"datasets:([\w./-]+):([\w\[\]:%]+)", spec)
    if match is None:
        raise InputError(f"{argument} '{spec}': datasets:NAME:SPLIT is required")
    if importlib.util.find_spec("datasets") is None:
        raise InputError(f"{argument} '{spec}': the package datasets is not installed; pip install 'perturbjax[hf]'")
    import datasets

    try:
        rows = datasets.load_dataset(match[1], split=match[2])
    except Exception as error:  # the library raises many kinds for a name that is not there, a split, no network
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"{argument} '{spec}': cannot be loaded ({reason})") from error
    return [(f"{argument} '{spec}': row {number}", row) for number, row in enumerate(rows)]


def _of_row(where: str, row: Any) -> list[Demonstration]:
    name = where.rpartition(": ")[2].replace(" ", "-")
    if not isinstance(row, dict):
        refuse(where, "", row, "an object with messages, or with prompt and response, is required")
    if "messages" in row:
        return _of_messages(where, name, row["messages"])
    for field in ("prompt", "response"):
        if not isinstance(row.get(field), str) or not row[field].strip():
            refuse(where, field, row.get(field), "a text that is not empty is required")
    return [Demonstration(name, Prompt((), row["prompt"]), row["response"], question_key(row["prompt"]))]


def _of_messages(where: str, name: str, messages: Any) -> list[Demonstration]:
    if not isinstance(messages, list) or not messages:
        refuse(where, "messages", messages, "a list of turns is required")
    turns: list[Message] = []
    found = []
    for number, turn in enumerate(messages):
        place = f"messages[{number}]"
        if not isinstance(turn, dict) or not isinstance(turn.get("content"), str) or turn.get("role") not in ROLES:
            refuse(where, place, turn, f"an object with role ({', '.join(ROLES)}) and content is required")
        if turn["role"] == "assistant":
            if not turns or turns[-1]["role"] != "user":
                refuse(where, place, turn["role"], "a turn of the assistant answers one of the user")
            if not turn["content"].strip():
                refuse(where, f"{place}.content", turn["content"], "a text that is not empty is required")
            asked = "\n".join(message["content"] for message in turns if message["role"] == "user")
            found.append(Demonstration(f"{name}.{number}", Prompt(tuple(turns)), turn["content"], question_key(asked)))
        turns.append({"role": turn["role"], "content": turn["content"]})
    if not found:
        refuse(where, "messages", [turn["role"] for turn in turns], "a turn of the assistant is required: without one there is no response")
    return found
