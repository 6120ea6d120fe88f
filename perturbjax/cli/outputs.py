"""Where a command may write what it makes of a run."""

import re
from pathlib import Path

from perturbjax.errors import InputError
from perturbjax.runs.rundir import RunDirectory


def check_file_name(argument: str, name: str | None) -> None:
    """Raise ``InputError`` unless ``name``, if there is one, can be part of a file's name."""
    if name is not None and not re.fullmatch(r"[\w.-]+", name):
        raise InputError(f"--{argument} {name!r}: letters, digits, '.', '_' and '-' only, it becomes part of a file name")


def check_new_file(out: Path) -> None:
    """Raise ``InputError`` unless a file can be written to ``out``; one that is there is replaced."""
    if (out.exists() and not out.is_file()) or not out.absolute().parent.is_dir():
        raise InputError(f"--out {out}: a file in an existing directory is required")


def check_new_directory(out: Path) -> None:
    """Raise ``InputError`` unless ``out`` is a directory yet to be made, or an empty one."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out}: exists and is not an empty directory; give a new one")


def check_outside(out: Path, run: Path) -> None:
    """Raise ``InputError`` if ``out`` lies in the run directory, whose files stay as they are."""
    if out.resolve().is_relative_to(run.resolve()):
        raise InputError(f"--out {out}: lies in the run directory, which is not changed; give another place")


def check_population(run: Path, command: str) -> None:
    """Raise ``InputError`` unless the run has a population: one of ``perturbjax randopt``, that committed its scores there."""
    directory = RunDirectory(run)
    if directory.chapter != "randopt":
        raise InputError(f"{run}: a run of {directory.chapter}, which has no population; {command} takes one of randopt")
    if directory.selection.exists():
        raise InputError(f"{run}: made by perturbjax select, without scores; give the run that it was chosen from (in its selection.json)")
