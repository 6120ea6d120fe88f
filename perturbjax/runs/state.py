"""The score matrix of a run, committed by Orbax after every chunk and verified before it is believed.

A commit is begun when a chunk is scored and written while the next one is: so a kill at any moment costs the chunk in flight and, at most,
the one before it, whose write had not ended. What ``settle`` has returned for is on disk and stays.
"""

import contextlib
import secrets
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np

from perturbjax.cluster.distributed import Team
from perturbjax.errors import InputError
from perturbjax.runs.files import TEMPORARY_SUFFIX
from perturbjax.runs.identity import Identity, identity_digest
from perturbjax.runs.share import KIND, RECORD, ROWS, TABLE, WRITE_S, Share
from perturbjax.randopt.table import ScoreTable, checksum

FORMAT = 2
"""Of a commit; raised by any change that an older version would misread."""
_UNFINISHED = ".orbax-checkpoint-tmp"
_PIECE_ROWS = 1 << 14
"""Rows of one message to the other processes."""


@dataclass
class RunState:
    """The committed state of a run, on process 0: use as a context manager, read ``table``, change it, ``commit()``, ``settle()``.

    Attributes:
        table: as last committed, plus what the caller changed since.
        step: number of commits begun so far; all but the last are on disk, and that too after ``settle``.
        warnings: what had to be worked around while opening, one line each.
    """

    directory: Path
    identity: Identity
    table: ScoreTable
    step: int = 0
    warnings: list[str] = field(default_factory=list)
    _share: Share = field(default_factory=Share)
    _sent: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.uint32))
    _waiting: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def open(cls, directory: Path, candidates: int, examples: int, identity: Identity, rounds: int = 1) -> "RunState":
        """Start a state, or restore the newest commit that is whole; by whatever mesh and number of processes it was written.

        Args:
            directory: ``state/`` of the run; made if it does not exist. All processes must see it.
            candidates: N.
            examples: D.
            identity: of the run; a state of another run is refused.
            rounds: R, of its race.

        Raises:
            InputError: there are commits and none is whole, or they belong to another run. Damage is never read as data.
        """
        if directory.exists() and not directory.is_dir():
            raise _damaged(directory, "it is not a directory")
        if directory.exists():
            # What a kill in mid-commit leaves. Orbax's own cleaning up misses a step that was whole but not yet renamed.
            for leftover in directory.glob(f"*{_UNFINISHED}*"):
                shutil.rmtree(leftover)
        state = cls(directory, identity, ScoreTable.empty(candidates, examples, rounds))
        try:
            directory.mkdir(parents=True, exist_ok=True)
            manager = _reader(directory)
        except Exception as error:
            raise _damaged(directory, f"it cannot be opened ({_first_line(error)})") from error
        try:
            state._restore(manager)
        finally:
            manager.close()
        state._begin()
        return state

    def commit(self) -> None:
        """Begin to write the table as the next step, once the commit before is on disk. During it, the step before stands.

        Raises:
            OSError: it, or the one before, could not be written in whole (a full disk); the commits before stand.
        """
        self.settle()
        rows, step = self.table.rows(), self.step + 1
        changed = np.flatnonzero((rows != self._sent).any(axis=1))
        for start in range(0, len(changed), _PIECE_ROWS):
            indices = changed[start : start + _PIECE_ROWS]
            self._all("update", indices, rows[indices])
        self._sent = rows
        record = self._record(step, list(self.table.nonfinite), self.table.seconds)
        self.step = step
        try:
            self._all("save", step, record | {"sha256": checksum(rows, record)})
        except Exception as error:
            raise self._not_committed(error) from error

    def settle(self) -> None:
        """Returns when every commit that was begun is on disk, where no kill can lose it.

        Raises:
            OSError: the last could not be written in whole; the commits before stand.
        """
        try:
            with self._waiting:
                self._share.wait()
        except Exception as error:
            raise self._not_committed(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Waits for the write under way, whatever the reason to leave."""
        if error is None:
            self.settle()
            self._all("close")
            return
        # The others are not told: they may wait in the middle of the very work that failed. Their part of the write goes on all the same.
        with contextlib.suppress(Exception):
            self._share.close()

    def _all(self, method: str, *arguments: Any) -> None:
        """Calls a method of the share of every process."""
        Team().announce(KIND, (method, arguments))
        self._share.obey((method, arguments))

    def _begin(self) -> None:
        self._sent = np.zeros_like(self.table.rows())
        probe = self.directory.absolute().parent / f".probe-{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
        probe.touch()
        try:
            self._all("open", str(self.directory.absolute()), str(probe), self._sent.shape)
            self._all("wait")  # an order comes through when the others have done the one before: until then they may look for the probe
        finally:
            probe.unlink()

    def _not_committed(self, error: Exception) -> OSError:
        # Orbax and TensorStore report a full disk in several exception types; all mean that this step is not there.
        reason = _first_line(error)
        if "Barrier timed out" in reason:
            reason = f"not all processes wrote their part within {WRITE_S} s; is a disk full?"
        return OSError(f"{self.directory}: chunk {self.step} could not be committed ({reason})")

    def _record(self, step: int, nonfinite: list[int], seconds: float) -> dict[str, Any]:
        """What is written beside the rows, and covered by their checksum."""
        return {
            "format": FORMAT,
            "step": step,
            "identity": identity_digest(self.identity),
            "shape": list(self.table.shape),
            "nonfinite": nonfinite,
            "seconds": seconds,
        }

    def _restore(self, manager: Any) -> None:
        steps = sorted(manager.all_steps(), reverse=True)
        known = {str(step) for step in steps}
        strange = [entry.name for entry in self.directory.iterdir() if entry.name not in known]
        if strange:
            raise _damaged(self.directory, f"{sorted(strange)[0]} is not part of a state")
        reasons: list[str] = []
        for step in steps:
            try:
                self.table = self._load(manager, step)
            except InputError:
                raise
            except Exception as error:
                reasons.append(f"step {step}: {_first_line(error)}")
                continue
            for newer in (s for s in steps if s > step):
                # Out of the way of the commit that will take its number.
                manager.delete(newer)
            self.step = step
            if reasons:
                why = "; ".join(reasons)
                self.warnings.append(f"{self.directory}: damaged ({why}); continuing from step {step}, what came after it is scored again")
            return
        if reasons:
            raise _damaged(self.directory, "; ".join(reasons))

    def _load(self, manager: Any, step: int) -> ScoreTable:
        import orbax.checkpoint as ocp

        # One item at a time: when one of several concurrent reads fails, the others go on behind a closed event loop and complain there.
        record = manager.restore(step, args=ocp.args.Composite(**{RECORD: ocp.args.JsonRestore()}))[RECORD]
        if record.get("format") != FORMAT:
            found = f"step {step} is of format {record.get('format')!r}, this version reads {FORMAT}"
            raise InputError(f"{self.directory}: {found}; use the version that wrote it, or start anew in another --out")
        if record["identity"] != identity_digest(self.identity):
            raise InputError(f"{self.directory}: the state of another run; give the --out it came from, or start anew in another --out")
        expected = self._record(step, record["nonfinite"], record["seconds"])
        if {name: value for name, value in record.items() if name != "sha256"} != expected:
            raise ValueError(f"record of step {record['step']} with scores and rounds of shape {record['shape']}")
        candidates, examples, _ = self.table.shape
        # As one numpy array, whoever wrote it; rows beyond the last candidate fill the last share.
        as_numpy = ocp.args.PyTreeRestore(restore_args={ROWS: ocp.RestoreArgs(restore_type=np.ndarray)})
        found = np.asarray(manager.restore(step, args=ocp.args.Composite(**{TABLE: as_numpy}))[TABLE][ROWS])
        rows = found[:candidates]
        required = self.table.rows()
        if (rows.shape, rows.dtype) != (required.shape, required.dtype):
            raise ValueError(f"rows are {found.dtype}{found.shape}, {required.dtype}{required.shape} is required")
        if checksum(rows, expected) != record["sha256"]:
            raise ValueError("the checksum does not match")
        return ScoreTable.of(rows, examples, record["nonfinite"], record["seconds"])


def _reader(directory: Path) -> Any:
    """Orbax's view of what is there, for process 0 alone: it must not wait for the others, who know nothing of it yet."""
    import orbax.checkpoint as ocp

    several: dict[str, Any] = {}
    if jax.process_count() > 1:
        several["multiprocessing_options"] = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False, create=False, **several)
    return ocp.CheckpointManager(directory.absolute(), options=options)


def _damaged(directory: Path, reason: str) -> InputError:
    advice = f"delete {directory.parent} to start anew, or restore it from a copy"
    return InputError(f"{directory}: the saved state is damaged ({reason}); {advice}")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
