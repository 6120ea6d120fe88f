"""``perturbjax predict``: questions in, voted answers out."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from perturbjax.cli.caulking import predict_caulk
from perturbjax.cli.consolidate import refuse_consolidated
from perturbjax.cli.outputs import check_new_file, check_outside
from perturbjax.cli.pretrained import predict_pretrained
from perturbjax.cli.value import VALUE_OPTIONS, predict_value, refuse_options
from perturbjax.errors import InputError
from perturbjax.ivl.config import VocabularyName
from perturbjax.records import from_json, read_json_lines, refuse
from perturbjax.report.words import percent
from perturbjax.runs.compile_cache import use_compile_cache
from perturbjax.runs.config import Machine
from perturbjax.runs.console import Console
from perturbjax.runs.files import write_atomically
from perturbjax.runs.rundir import RunDirectory
from perturbjax.tasks.base import Example, Task, Template
from perturbjax.tasks.layout import LETTERS, option_fields

if TYPE_CHECKING:
    from perturbjax.randopt.ensembles import Prediction


@dataclass(frozen=True)
class PredictConfig:
    """Let what a run made answer questions: an ensemble votes, a value network or a caulk helps a base, a model answers alone.
    Made by randopt, ivl, caulking and vpretrain, in this order.

    perturbjax predict RUN --questions questions.jsonl --out answers.jsonl

    Each line of the questions is an object with "question", and with "choices" where the run's task gives every question its own. Each line
    of the answers repeats the question with "answer" (null if there is none); an ensemble adds "votes", "share" (of those asked), "members"
    and how many of them were "asked"."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run directory of a finished run."""
    questions: Path
    """File of questions, one JSON object a line."""
    out: Path
    """File of answers to write; replaced if it exists."""
    base: str | None = None
    """Of a value network: the base that it is added to; the one that it was trained beside when left out."""
    vocabulary: VocabularyName | None = None
    """Of a value network, for a base with another vocabulary; see perturbjax evaluate --help."""
    alpha: float = 1.0
    """Of a value network: weight of its logits."""
    gate: float | None = None
    """Of a value network: it counts only where the entropy of the base's distribution, in nats, is above this."""
    task: str | None = None
    """Of a model that was pretrained further: the task that says how questions are put and answers read; the first among the run's feedback
    when left out."""
    cell: str | None = None
    """Of a grid of caulks: the name of the cell whose caulk answers; the first method's with the most examples when left out."""
    early_exit: float | None = None
    """Of an ensemble: ask members in random order, and no more of them once the vote on a question is decided. 0: once no vote to come can
    change it. A probability such as 0.05: once they change it with at most that probability. All members answer all when left out."""
    trust: tuple[str, ...] = ()
    """As for perturbjax evaluate."""
    mesh: str | None = None
    """As for randopt: DATAxMODEL, for a model that one device does not hold."""
    compile_cache: str = "auto"
    """As for randopt."""


def run_predict(config: PredictConfig, console: Console) -> None:
    """Read, vote, write."""
    check_new_file(config.out)
    check_outside(config.out, config.run)
    if config.out.exists() and config.questions.exists() and config.out.samefile(config.questions):
        raise InputError(f"--out {config.out}: is the file of the questions; give another one")
    Machine(mesh=config.mesh).validate()
    chapter = RunDirectory(config.run).chapter
    refuse_consolidated(config.run, chapter)
    if chapter == "caulking":
        refuse_options(config, (*VALUE_OPTIONS, "task", "early_exit", "mesh"), "caulking")
        use_compile_cache(config.compile_cache, console)
        return predict_caulk(config, console)
    refuse_options(config, ("cell",), "another chapter than caulking")
    if chapter != "vpretrain":
        refuse_options(config, ("task",), chapter)
    if chapter != "randopt":
        refuse_options(config, ("early_exit",), chapter)
    if chapter == "vpretrain":
        use_compile_cache(config.compile_cache, console)
        return predict_pretrained(config, console)
    if chapter == "ivl":
        use_compile_cache(config.compile_cache, console)
        return predict_value(config, console)
    refuse_options(config, VALUE_OPTIONS, "randopt")
    rows = read_questions(config.questions)
    use_compile_cache(config.compile_cache, console)
    from perturbjax.randopt.ensembles import predict
    from perturbjax.randopt.setup import make_engine, reopen_ensemble

    parts, ensemble = reopen_ensemble(config.run, console.note, config.trust)
    examples = to_examples(parts.task, parts.template, parts.splits.search, rows)
    engine = make_engine(parts, mesh=config.mesh)
    predictions = predict(engine, ensemble, engine.prepare(examples, parts.template), console, config.early_exit)
    members = len(ensemble)
    write_lines(config.out, ({"question": p.example.question, **_answer(p), "members": members} for p in predictions))
    saved = 1 - sum(p.asked for p in predictions) / (members * len(predictions))
    note = "" if config.early_exit is None else f"; {percent(saved)} of the votes saved"
    console.line(f"{len(examples)} answers by {members} members written to {config.out}{note}")


def _answer(prediction: "Prediction") -> dict[str, Any]:
    return {"answer": prediction.answer, "share": prediction.share, "votes": prediction.votes, "asked": prediction.asked}


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
        if question.choices is not None and not (2 <= len(set(question.choices)) == len(question.choices) <= len(LETTERS)):
            refuse(where, "choices", question.choices, f"2 to {len(LETTERS)} different texts are required")
        if question.choices is not None and not all(map(str.strip, question.choices)):
            refuse(where, "choices", question.choices, "texts that are not empty are required")
        rows.append((where, question, others))
    if not rows:
        raise InputError(f'--questions {path}: no questions; each line is an object like {{"question": "..."}}')
    return rows


def to_examples(
    task: Task, template: Template, known: Sequence[Example], rows: list[tuple[str, _Question, dict[str, Any]]]
) -> list[Example]:
    """Examples of a run's task, without gold answers. ``known`` ones show which choices the task's questions share. Other fields of a row
    are handed to the prompt (a passage, say).

    Raises:
        InputError: a row lacks choices that the task does not share between questions, or a field that its prompt shows.
    """
    first = known[0]
    shared = first.choices if len({example.choices for example in known}) == 1 else ()
    examples = []
    for where, row, fields in rows:
        choices = row.choices or ()
        if task.kind == "choice" and not choices:
            if not shared:
                raise InputError(f'{where}: "choices" is missing: every question of task {task.name} has its own')
            choices = shared
            fields = {name: value for name, value in first.fields.items() if name in ("options", "listed")} | fields
        elif choices:
            fields = option_fields(choices) | fields
        example = Example(where.rpartition(": ")[2].replace(" ", "-"), row.question.strip(), "", choices, fields)
        try:
            task.prompt(example, template)
        except KeyError as error:
            shown = f"the field {error}, which task {task.name} shows in its prompt"
            raise InputError(f"{where} needs {shown}") from error
        examples.append(example)
    return examples


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines, atomically."""
    write_atomically(path, lambda file: file.writelines(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
