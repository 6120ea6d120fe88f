"""The committed state of a run: any pytree and a JSON record, written by Orbax while the next work runs, verified before it is believed.

A commit begins when a chunk of work is done and is written while the next one is: so a kill at any moment costs the chunk in flight and, at
most, the one before it, whose write had not ended. What ``wait`` has returned for is on disk and stays. NOTES.md has the protocol.
"""

import contextlib
import secrets
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp

from perturbjax.cluster import gather, on_main
from perturbjax.errors import InputError, first_line
from perturbjax.runs.blocks import block_digests, check_digests
from perturbjax.runs.files import TEMPORARY_SUFFIX
from perturbjax.runs.identity import Identity, identity_digest
from perturbjax.tree import digest

FORMAT = 3
"""Of a commit; raised by any change that an older version would misread."""
TREE, RECORD = "tree", "record"
"""The two items of a commit."""
MAX_TO_KEEP = 2
"""The last commit and the one before, so that damage to the last costs a chunk and not the run."""
WRITE_S = 120
"""How long processes wait for each other's part of a write, in seconds; a part that cannot be written fails the run then, if not before."""
VISIBLE_S = 20.0
"""How long a file may take from one process to another, over a network file system."""
_UNFINISHED = ".orbax-checkpoint-tmp"


@dataclass
class RunState:
    """The state of a run on all its processes, which call every method together; a context manager.

    Attributes:
        directory: ``state/`` of the run, the same for all processes.
        identity: digest of the run's identity.
        tree: as restored when this was opened, or ``like``. Leaves are numpy arrays, the same on every process and written by process 0,
            or ``jax.Array``s sharded over a mesh, of which every process writes its own shards.
        record: JSON that belongs to it; {} where nothing was committed.
        step: number of commits begun so far; all but the last are on disk, and that too after ``wait``.
        warnings: what had to be worked around while opening, one line each.
    """

    directory: Path
    identity: str
    tree: Any
    record: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    warnings: list[str] = field(default_factory=list)
    _manager: Any = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def open(cls, directory: Path, identity: Identity, like: Any) -> Self:
        """Starts a state, or restores the newest commit that is whole, by whatever mesh and number of processes it was written.

        Args:
            directory: made if it does not exist. All processes must see it.
            identity: of the run; the state of another run is refused.
            like: the tree of a run that starts. It gives the structure, shapes and dtypes, and of ``jax.Array``s (or
                ``jax.ShapeDtypeStruct``s) the sharding that they are restored to.

        Raises:
            InputError: there are commits and none is whole, or they belong to another run. Damage is never read as data.
        """
        state = cls(directory, identity_digest(identity), like)
        steps = on_main(lambda: _prepare(directory))
        _check_visible(directory)
        reader = _reader(directory)
        try:
            damaged = state._restore(reader, steps)
            # Out of the way of the commit that will take its number.
            on_main(lambda: [reader.delete(step) for step in damaged] and None)
        finally:
            reader.close()
        state._manager = _writer(directory)
        return state

    @classmethod
    def read(cls, directory: Path, identity: Identity, like: Any) -> Self:
        """The newest commit that is whole, to be looked at: nothing is changed, so the run may be in progress. ``step`` is 0 where nothing
        was committed.

        Args:
            directory: as for ``open``; it need not exist.
            identity, like: as for ``open``.

        Raises:
            InputError: as ``open``.
        """
        state = cls(directory, identity_digest(identity), like)
        try:
            names = [entry.name for entry in directory.iterdir()] if directory.is_dir() else []
        except OSError as error:
            raise _damaged(directory, f"it cannot be opened ({first_line(error)})") from error
        if steps := sorted((int(name) for name in names if name.isdecimal()), reverse=True):
            reader = _reader(directory)
            try:
                state._restore(reader, steps)
            finally:
                reader.close()
        return state

    def commit(self, tree: Any, record: dict[str, Any]) -> None:
        """Starts to write the next step, once the commit before is on disk. Until it is written, the step before stands.

        Args:
            tree: as ``like``; copied, so numpy leaves may be changed afterwards.
            record: a JSON object.

        Raises:
            OSError: it, or the one before, could not be written as a whole (a full disk); the commits before stand.
        """
        with self._lock:
            self._wait()
            step = self.step + 1
            content = {"format": FORMAT, "step": step, "identity": self.identity, "sha256": block_digests(tree), "record": record}
            items = {TREE: ocp.args.PyTreeSave(tree), RECORD: ocp.args.JsonSave(content | {"digest": digest(content)})}
            self.step = step
            try:
                if not self._manager.save(step, args=ocp.args.Composite(**items), force=True):
                    raise OSError(f"Orbax did not save step {step}")
            except Exception as error:
                raise self._not_committed(error) from error

    def wait(self) -> None:
        """Returns when every commit is on disk, where no kill can lose it.

        Raises:
            OSError: the last could not be written as a whole; the commits before stand.
        """
        with self._lock:
            self._wait()

    def freeze(self) -> None:
        """Waits as ``wait`` does and lets no other commit begin in this process; for a thread that ends the process."""
        self._lock.acquire()
        self._wait()

    def _wait(self) -> None:
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._not_committed(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Waits for the write under way, whatever the reason to leave."""
        if error is None:
            self.wait()
        with contextlib.nullcontext() if error is None else contextlib.suppress(Exception):
            self._manager.close()

    def _not_committed(self, error: Exception) -> OSError:
        # Orbax and TensorStore report a full disk in several exception types; all mean that this step is not there.
        reason = first_line(error)
        if "Barrier timed out" in reason:
            reason = f"not all processes wrote their part within {WRITE_S} s; is a disk full?"
        return OSError(f"{self.directory}: commit {self.step} could not be written ({reason})")

    def _restore(self, reader: Any, steps: list[int]) -> list[int]:
        """Takes the newest of these steps that is whole; returns the newer ones, which are not."""
        reasons: list[str] = []
        for step in steps:
            found = on_main(lambda step=step: self._read_record(reader, step))
            reason = found if isinstance(found, str) else self._read_tree(reader, step, found)
            # Processes may see different damage; the step is whole if it is for all of them.
            if gather(np.int32(reason is not None)).any():
                reasons.append(f"step {step}: {reason or 'damaged for another process'}")
                continue
            self.step = step
            if reasons:
                why = "; ".join(reasons)
                self.warnings.append(f"{self.directory}: damaged ({why}); continuing from step {step}, what came after it is done again")
            return [other for other in steps if other > step]
        if reasons:
            raise _damaged(self.directory, "; ".join(reasons))
        return []

    def _read_record(self, reader: Any, step: int) -> dict[str, Any] | str:
        """What is written beside the tree of a step, or why it is damaged."""
        try:
            content = reader.restore(step, args=ocp.args.Composite(**{RECORD: ocp.args.JsonRestore()}))[RECORD]
            if content.get("format") != FORMAT:
                said = f"step {step} is of format {content.get('format')!r}, this version reads {FORMAT}"
                raise InputError(f"{self.directory}: {said}; use the version that wrote it, or start anew in another `out`")
            if content["identity"] != self.identity:
                raise InputError(f"{self.directory}: the state of another run; give the `out` it came from, or start anew in another `out`")
            if content.pop("digest") != digest(content) or content["step"] != step:
                return f"the record of step {content['step']} does not match its checksum or its place"
            return content
        except InputError:
            raise
        except Exception as error:
            return first_line(error)

    def _read_tree(self, reader: Any, step: int, content: dict[str, Any]) -> str | None:
        """Restores the tree of a step; or returns why it is damaged, as this process sees it."""

        def how(leaf: Any) -> ocp.RestoreArgs:
            if isinstance(leaf, np.ndarray):
                return ocp.RestoreArgs(restore_type=np.ndarray)
            return ocp.ArrayRestoreArgs(restore_type=jax.Array, sharding=leaf.sharding, global_shape=leaf.shape)

        try:
            restore = ocp.args.PyTreeRestore(self.tree, restore_args=jax.tree.map(how, self.tree))
            tree = reader.restore(step, args=ocp.args.Composite(**{TREE: restore}))[TREE]
            check_digests(tree, self.tree, content["sha256"])
        except Exception as error:
            return first_line(error)
        self.tree, self.record = tree, content["record"]
        return None


def _prepare(directory: Path) -> list[int]:
    """On process 0: makes the directory, removes what a kill in mid-commit left, and returns the steps that are there, newest first."""
    if directory.exists() and not directory.is_dir():
        raise _damaged(directory, "it is not a directory")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # Orbax's own cleaning up misses a step that was whole but not yet renamed.
        for leftover in directory.glob(f"*{_UNFINISHED}*"):
            shutil.rmtree(leftover)
        entries = list(directory.iterdir())
    except OSError as error:
        raise _damaged(directory, f"it cannot be opened ({first_line(error)})") from error
    if strange := sorted(entry.name for entry in entries if not (entry.is_dir() and entry.name.isdigit())):
        raise _damaged(directory, f"{strange[0]} is not part of a state")
    return sorted((int(entry.name) for entry in entries), reverse=True)


def _check_visible(directory: Path) -> None:
    """Raises ``InputError`` on a process that does not see what process 0 writes beside the directory."""
    if jax.process_count() == 1:
        return
    parent = directory.absolute().parent
    name = f".probe-{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
    probe = parent / on_main(lambda: (parent / name).touch() or name)
    deadline = time.monotonic() + VISIBLE_S
    while True:
        with contextlib.suppress(OSError):
            list(parent.iterdir())  # a network file system may remember that the file was not there; a listing refreshes it
        if probe.exists():
            break
        if time.monotonic() > deadline:
            who = f"process {jax.process_index()} of {jax.process_count()}"
            raise InputError(f"`out` {parent}: {who} does not see what process 0 wrote there; give a directory that all of them share")
        time.sleep(0.1)
    gather(np.int32(0))  # all have seen it
    on_main(lambda: probe.unlink())


def _reader(directory: Path) -> Any:
    """Orbax's view of what is there, for this process alone: damage that one process sees must not leave the others in a barrier."""
    me = jax.process_index()
    alone = {"primary_host": me, "active_processes": {me}} if jax.process_count() > 1 else {}
    return _manager(directory, alone, enable_async_checkpointing=False)


def _writer(directory: Path) -> Any:
    count = jax.process_count()
    # Named processes: Orbax then waits for them through JAX's coordination service. Its other way is a collective on the devices, which a
    # thread in the background must not begin.
    every = {"primary_host": 0, "active_processes": set(range(count)), "barrier_sync_key_prefix": "state"} if count > 1 else {}
    return _manager(directory, every, max_to_keep=MAX_TO_KEEP, async_options=ocp.options.AsyncOptions(timeout_secs=WRITE_S))


def _manager(directory: Path, processes: dict[str, Any], **options: Any) -> Any:
    options["multiprocessing_options"] = ocp.options.MultiprocessingOptions(**processes)
    return ocp.CheckpointManager(directory.absolute(), options=ocp.CheckpointManagerOptions(create=False, **options))


def _damaged(directory: Path, reason: str) -> InputError:
    advice = f"delete {directory.parent} to start anew, or restore it from a copy"
    return InputError(f"{directory}: the saved state is damaged ({reason}); {advice}")
