"""A whole search in seconds: a random-weight model of the fixtures on questions made here."""

import json
from pathlib import Path

from support.paths import FIXTURES

MODEL = FIXTURES / "tiny_llama3"

SMALL = {
    "population": 6,
    "top-k": 2,
    "search-examples": 4,
    "select-examples": 3,
    "test-examples": 5,
    "chunk": 2,
    "sigmas": "0.01,0.1",
}


def write_questions(path: Path, count: int = 16, start: int = 0, choices: bool = True) -> Path:
    rows = []
    for i in range(start, start + count):
        row = {"question": f"is {i} an even number", "answer": "no" if i % 2 else "yes"}
        rows.append(row | {"choices": ["yes", "no"]} if choices else row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def search_arguments(questions: Path, out: Path, **changes: object) -> list[str]:
    changed = {name.replace("_", "-"): value for name, value in changes.items()}
    settings = {"model": MODEL, "task": questions, "out": out, **SMALL, **changed}
    arguments = ["search"]
    for name, value in settings.items():
        arguments += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return arguments
