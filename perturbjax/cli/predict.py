"""``perturbjax predict``: questions in, voted answers out."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from perturbjax.errors import InputError
from perturbjax.records import from_json, read_json_lines, refuse
from perturbjax.runs.compile_cache import use_compile_cache
from perturbjax.runs.console import Console
from perturbjax.runs.files import write_atomically
from perturbjax.tasks.base import Example
from perturbjax.tasks.choice import option_fields

if TYPE_CHECKING:
    from perturbjax.randopt.setup import Parts


@dataclass(frozen=True)
class PredictConfig:
    """Let the ensemble of a run answer questions: its members vote, and the vote's share says how much they agree.

    perturbjax predict RUN --questions questions.jsonl --out answers.jsonl

    Each line of the questions is an object with "question", and with "choices" where the run's task gives every question its own. Each line
    of the answers repeats the question with "answer" (null if no member gave one), "share" (of all members) and "votes"."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run directory of a finished search."""
    questions: Path
    """File of questions, one JSON object a line."""
    out: Path
    """File of answers to write; replaced if it exists."""
    compile_cache: str = "auto"
    """As for randopt."""


def run_predict(config: PredictConfig, console: Console) -> None:
    """Read, vote, write."""
    if config.out.is_dir() or not config.out.absolute().parent.is_dir():
        raise InputError(f"--out {config.out}: a file in an existing directory is required")
    if config.out.exists() and config.questions.exists() and config.out.samefile(config.questions):
        raise InputError(f"--out {config.out}: is the file of the questions; give another one")
    rows = read_questions(config.questions)
    use_compile_cache(config.compile_cache, console)
    from perturbjax.randopt.ensembles import predict
    from perturbjax.randopt.setup import make_engine, reopen_ensemble

    parts, ensemble = reopen_ensemble(config.run, console.note)
    examples = to_examples(parts, rows)
    engine = make_engine(parts)
    with console.stages() as on_stage:
        predictions = predict(engine, ensemble, engine.prepare(examples, parts.template), on_stage)
    answers = (
        {"question": p.example.question, "answer": p.answer, "share": p.share, "votes": p.votes, "members": len(ensemble)}
        for p in predictions
    )
    write_lines(config.out, answers)
    console.line(f"{len(examples)} answers by {len(ensemble)} members written to {config.out}")


@dataclass(frozen=True)
class _Question:
    """The fields of a line that every task reads."""

    question: str
    choices: tuple[str, ...] | None = None


def read_questions(path: Path) -> list[tuple[str, _Question, dict[str, Any]]]:
    """(where it stands, the question, its other fields) of every line that is not empty.

    Raises:
        InputError: the file cannot be read, or a line is no question; the line is named.
    """
    rows = []
    for where, row in read_json_lines(path, f"--questions {path}"):
        others: dict[str, Any] = {}
        if isinstance(row, dict):
            others = {name: value for name, value in row.items() if name not in ("id", "question", "answer", "choices")}
            row = {name: value for name, value in row.items() if name in ("question", "choices")}
        question = from_json(_Question, row, where)
        if not question.question.strip():
            refuse(where, "question", question.question, "a text that is not empty is required")
        if question.choices is not None and (len(question.choices) < 2 or not all(question.choices)):
            refuse(where, "choices", question.choices, "a list of at least two texts is required")
        rows.append((where, question, others))
    if not rows:
        raise InputError(f'--questions {path}: no questions; each line is an object like {{"question": "..."}}')
    return rows


def to_examples(parts: "Parts", rows: list[tuple[str, _Question, dict[str, Any]]]) -> list[Example]:
    """Examples of the run's task, without gold answers. Other fields of a row are handed to the prompt (a passage, say).

    Raises:
        InputError: a row lacks choices that the task does not share between questions, or a field that its prompt shows.
    """
    known = parts.splits.search[0]
    shared = known.choices if len({example.choices for example in parts.splits.search}) == 1 else ()
    examples = []
    for where, row, fields in rows:
        choices = row.choices or ()
        if parts.task.kind == "choice" and not choices:
            if not shared:
                raise InputError(f'{where}: "choices" is missing: every question of task {parts.task.name} has its own')
            choices = shared
            fields = {name: value for name, value in known.fields.items() if name in ("options", "listed")} | fields
        elif choices:
            fields = option_fields(choices) | fields
        example = Example(where.rpartition(": ")[2].replace(" ", "-"), row.question.strip(), "", choices, fields)
        try:
            parts.task.prompt(example, parts.template)
        except KeyError as error:
            shown = f"the field {error}, which task {parts.task.name} shows in its prompt"
            raise InputError(f"{where} needs {shown}") from error
        examples.append(example)
    return examples


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines, atomically."""
    write_atomically(path, lambda file: file.writelines(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
