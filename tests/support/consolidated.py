"""Finished runs to consolidate: nothing was searched, the members' scores are made up."""

import json
from pathlib import Path
from typing import Any

from fault_runs import write_questions

from perturbjax.noise import Candidate
from perturbjax.randopt import config as randopt
from perturbjax.randopt.setup import Parts, load_parts, make_engine
from perturbjax.runs.config import Base
from support.cli_tiny import MODEL
from support.searched import save_ensemble, searched_run


def finished_run(path: Path, questions: Path, sizes: tuple[int, int, int] = (4, 4, 5), **search: Any) -> Parts:
    """A run in ``path`` with the members 5 and 2 of 6 candidates; ``sizes`` of its splits, ``search``: settings of ``randopt.Search``."""
    data = randopt.Data(str(questions), *sizes)
    parts = load_parts(randopt.Config(Base(str(MODEL), "float32"), data, randopt.Search(6, 2, (0.01, 0.1), **search)), lambda _: None)
    save_ensemble(parts, searched_run(parts, path))
    return parts


def contrary_run(folder: Path) -> None:
    """run: questions whose gold answers are what the base does not say, so that any change helps; right: those that it says."""
    parts = finished_run(folder / "asked", write_questions(folder / "even.jsonl", 24))
    examples = parts.task.examples()
    engine = make_engine(parts)
    (said,) = engine.run(Candidate.base(1), engine.prepare(examples, parts.template)).answers
    for name, answer in (("right", lambda s: s), ("run", lambda s: {"yes": "no", "no": "yes"}[s])):
        rows = [{"question": e.question, "answer": answer(s), "choices": ["yes", "no"]} for e, s in zip(examples, said, strict=True)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        finished_run(folder / name, folder / f"{name}.jsonl")


def content(folder: Path) -> dict[Path, bytes]:
    """Every file of a folder."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
