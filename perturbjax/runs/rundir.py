"""The run directory: what lies where, when it may be written, and who holds it."""

import contextlib
import fcntl
import os
import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from perturbjax.cluster import is_main, on_main
from perturbjax.cluster.peers import Peers
from perturbjax.errors import InputError
from perturbjax.records import from_json, refuse, to_json
from perturbjax.runs.config import absolute_if_there
from perturbjax.runs.files import TEMPORARY_SUFFIX, read_json, write_json
from perturbjax.runs.identity import Identity, differences, identity_digest
from perturbjax.tasks.registry import names_code

T = TypeVar("T")

FORMAT = 3
"""Of the run directory; raised by any change that an older version would misread."""


def _file(name: str) -> Any:
    return property(lambda self: self.path / name)


@dataclass(frozen=True)
class RunDirectory:
    """Paths of one run. Creating this object touches nothing.

    A directory holds a run from the moment its ``config.json`` is in place, which is the first thing written.
    """

    path: Path

    config = _file("config.json")
    state = _file("state")
    candidates = _file("candidates.parquet")
    ensemble = _file("ensemble.json")
    results = _file("results.json")
    selection = _file("selection.json")
    test = _file("test.parquet")
    metrics = _file("metrics.jsonl")
    screening = _file("screening.json")

    def evaluation(self, name: str) -> Path:
        """The file of an evaluation; of a name's characters only those of a file name are kept."""
        return self.path / f"evaluation-{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}.json"

    def check_usable(self, resume: bool) -> bool:
        """Whether a search may write here, before anything else is known of it; changes nothing.

        Returns:
            True if the directory holds a run (only with ``resume``), False if it is empty or does not exist.

        Raises:
            InputError: it holds another run and ``resume`` is off, or files that are no run, or cannot be written.
        """
        if not self.path.exists():
            parent = next(parent for parent in self.path.absolute().parents if parent.exists())
            if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
                raise InputError(f"`out` {self.path}: {parent} is not a directory that can be written; give another `out`")
            return False
        if not self.path.is_dir() or not os.access(self.path, os.W_OK | os.X_OK):
            raise InputError(f"`out` {self.path}: not a directory that can be written; give another `out`")
        if self.selection.exists():
            raise InputError(f"`out` {self.path}: holds what perturbjax select made, which cannot be continued; give another `out`")
        if self.config.exists():
            if not resume:
                raise InputError(f"`out` {self.path}: already holds a run; continue it with `resume`, or give another `out`")
            return True
        others = [entry.name for entry in self.path.iterdir() if not entry.name.endswith(TEMPORARY_SUFFIX)]
        if others:
            what = f"{sorted(others)[0]} is there, config.json is not"
            raise InputError(f"`out` {self.path}: not empty and not a run ({what}); give another `out`")
        return False

    def check_identity(self, identity: Identity, defaults: Identity) -> Identity:
        """Check that the run here is the one of ``identity``.

        Args:
            identity: as this version makes it.
            defaults: of settings that an identity does not name: they did not exist when the run was begun, or are named only where
                they are another.

        Returns:
            The identity as the run has it, which its committed state carries too.

        Raises:
            InputError: another run; every difference is named.
        """
        theirs = self.read_config()["identity"]
        if found := differences({**defaults, **identity}, {**defaults, **theirs}):
            raise InputError(f"`resume`: {'; '.join(found)} (in {self.path}); use the run's own settings, or give another `out`")
        return theirs

    def create(self, identity: Identity, record: dict[str, Any]) -> None:
        """Make the directory and its ``config.json``: ``record`` plus the format, the identity, and, where its data name
        modules, the working directory, in which they mostly lie."""
        self.path.mkdir(parents=True, exist_ok=True)
        named = any(map(names_code, _texts(record.get("config", {}).get("data"))))
        place = {"working_directory": str(Path.cwd())} if named else {}
        content = {"format": FORMAT, **record, **place, "identity": dict(identity), "identity_digest": identity_digest(identity)}
        write_json(self.config, content)

    def withdraw(self) -> None:
        """Remove a run that was refused before anything of it was committed: bad input leaves nothing behind."""
        commits = self.state.iterdir() if self.state.is_dir() else ()
        others = {entry.name for entry in self.path.iterdir()} - {self.config.name, self.metrics.name, self.state.name, self.screening.name}
        if not others and not any(entry.name.isdigit() for entry in commits):
            shutil.rmtree(self.path)

    def read_config(self) -> dict[str, Any]:
        """``config.json`` of an existing run.

        Raises:
            InputError: there is no run, or its config.json is damaged or of another format.
        """
        if not self.config.is_file():
            raise InputError(f"{self.path}: no run directory (no config.json); give the directory that perturbjax printed")
        content = read_json(self.config)
        if content.get("format") != FORMAT:
            raise InputError(f"{self.config}: format {content.get('format')!r}, this version reads {FORMAT}; use the version that wrote it")
        if not isinstance(content.get("identity"), dict) or content.get("identity_digest") != identity_digest(content["identity"]):
            raise InputError(f"{self.config}: damaged, the identity of the run does not match its digest; start anew in another `out`")
        clock = content.setdefault("prompt_clock", None)
        try:
            _ = clock is None or datetime.fromisoformat(clock)
        except (TypeError, ValueError):
            refuse(str(self.config), "prompt_clock", clock, "a moment in ISO 8601, or null, is required")
        return content

    @property
    def chapter(self) -> str:
        """The chapter whose run this is.

        Raises:
            InputError: as ``read_config``.
        """
        chapter = self.read_config().get("chapter", "randopt")
        return chapter if isinstance(chapter, str) else refuse(str(self.config), "chapter", chapter, "the name of a chapter is required")

    def check_finished(self) -> None:
        """Raise ``InputError`` unless the run has come to its end."""
        if not self.results.exists():
            again = f"perturbjax {self.chapter} ... --out {self.path} --resume"
            raise InputError(f"{self.path}: no results.json, the run has not finished; continue it with: {again}")

    def read_settings(self, kind: type[T], trusted: Collection[str] = ()) -> T:
        """The settings of an existing run, a chapter's ``Config``.

        A run directory may come from anyone. A ``module:attribute`` among its data is code, and is imported only where the person who opens
        the run names it too. Modules that are not found otherwise are then looked for in the working directory that the run began in.

        Args:
            kind: the chapter's ``Config``.
            trusted: each ``module:attribute`` that the person named.

        Raises:
            InputError: as ``read_config``; the settings are damaged, or name code that is not trusted.
        """
        content = self.read_config()
        config: Any = from_json(kind, content.get("config"), f"{self.config}: config")
        try:
            config.validate()
        except InputError as error:
            raise InputError(f"{self.config}: {error}") from None
        code, place = [text for text in _texts(to_json(config.data)) if names_code(text)], content.get("working_directory")
        if not isinstance(place, str | None):
            refuse(str(self.config), "working_directory", place, "a text is required")
        elsewhere = place is not None and place != str(Path.cwd())  # that of this process is looked in anyway, and first
        if not set(code) <= {*trusted, *map(absolute_if_there, trusted)}:
            names = ",".join(dict.fromkeys(code))
            where = f" (of {place}, unless it is found elsewhere)" if elsewhere else ""
            raise InputError(f"{self.path}: the run names Python code, which would be run; if you trust it, add `trust` {names}{where}")
        if code and place is not None and elsewhere and place not in sys.path:
            sys.path.append(place)
        return config

    def claim(
        self, identity: Identity, clock: str | None, resume: bool, defaults: Identity, note: Callable[[str], None]
    ) -> tuple[str | None, dict[str, Any]]:
        """Checks, on process 0, that the run of ``identity`` may be written here; all processes of a run call it.

        Args:
            identity: as this version makes it.
            clock: the date that prompts show if the run begins now.
            resume: a run that is here may be continued.
            defaults: as for ``check_identity``.
            note: told that a run is continued.

        Returns:
            The date that prompts show, that of the first day, and the identity as the run has it.

        Raises:
            InputError: as ``check_usable`` and ``check_identity``.
        """

        def on_process_0() -> tuple[str | None, dict[str, Any]]:
            if not self.check_usable(resume):
                return clock, dict(identity)
            theirs = self.check_identity(identity, defaults)
            note(f"continuing the run in {self.path}")
            return self.read_config()["prompt_clock"], dict(theirs)

        return on_main(on_process_0)

    @contextlib.contextmanager
    def written(self, chapter: str, peers: Peers) -> Iterator[None]:
        """Holds the run, on process 0, while all processes work on it. Refused input leaves nothing behind of a run without a commit; any
        other error gets a note that says what is safe and how to go on, which ``peers`` are told too."""
        peers.advice = f"what {self.path} had committed is intact; continue with: perturbjax {chapter} ... --out {self.path} --resume"
        with contextlib.ExitStack() as stack:
            on_main(lambda: stack.enter_context(self.locked()))
            try:
                yield
            except InputError:
                if is_main():
                    self.withdraw()
                raise
            except FloatingPointError as error:  # found again by whoever continues with the same settings, and others are another run
                error.add_note(f"what {self.path} had committed is intact; other settings need another --out")
                raise
            except BaseException as error:
                error.add_note(peers.advice)
                raise

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run while writing to it; the lock ends with the process, however that ends.

        Raises:
            InputError: another process holds it.
        """
        with open(self.config, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(f"`out` {self.path}: another process is writing this run; wait for it, or give another `out`") from error
            except OSError:
                # A file system without locks: two writers cannot be told apart there, which is no reason to refuse the first.
                pass
            yield


def _texts(value: Any) -> list[str]:
    """All texts in a JSON value."""
    if isinstance(value, dict | list):
        return [text for item in (value.values() if isinstance(value, dict) else value) for text in _texts(item)]
    return [value] if isinstance(value, str) else []
