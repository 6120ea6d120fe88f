"""A whole search in seconds: a random-weight model of the fixtures on questions made here."""

from pathlib import Path
from typing import Any

from fault_runs import write_questions as write_questions

from perturbjax.noise import Rule
from support.paths import FIXTURES

MODEL = FIXTURES / "tiny_llama3"

FEW = "^(?!embed|layers/attention/q/kernel)"
"""Matches all leaves but two. Which leaves get noise is tested in ``interpret`` and ``models``; noise is most of a program."""

SMALL = {
    "population": 6,
    "top-k": 2,
    "search-examples": 4,
    "select-examples": 3,
    "test-examples": 5,
    "chunk": 2,
    "sigmas": "0.01,0.1",
    "rules": f"{FEW}=exclude",
}


def search_settings() -> dict[str, Any]:
    """The same for a search from Python, as ``config_of`` takes it."""
    settings: dict[str, Any] = {name.replace("-", "_"): value for name, value in SMALL.items()}
    return settings | {"sigmas": (0.01, 0.1), "rules": (Rule(FEW, None),)}


def search_arguments(questions: Path, out: Path, **changes: object) -> list[str]:
    """True is a flag without a value; None leaves a setting of ``SMALL`` to its default."""
    changed = {name.replace("_", "-"): value for name, value in changes.items()}
    settings = {"model": MODEL, "task": questions, "out": out, **SMALL, **changed}
    arguments = ["randopt"]
    for name, value in settings.items():
        if value is not None:
            arguments += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return arguments
