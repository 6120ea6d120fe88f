"""One process's share of the committed score matrix: what process 0 sends it is kept, and written where and when process 0 says.

The rows of the matrix are dealt to the processes in equal blocks (the last padded), and Orbax writes them as one array, each process its
own. A write goes on in the background, while the next chunk is scored. Process 0 knows the whole matrix and restores it alone, from
whatever number of processes wrote it.
"""

import contextlib
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from perturbjax.errors import InputError
from perturbjax.sharding import over_processes

KIND = "state"
"""The kind of work that process 0 announces for ``Share.obey``."""
TABLE, RECORD = "table", "record"
"""The two items of a commit; the first holds one array, ``ROWS``."""
ROWS = "rows"
KEPT = 2
"""The last commit and the one before, so that damage to the last costs a chunk and not the run."""
WRITE_S = 120
"""How long processes wait for each other's part of a write, in seconds; a part that cannot be written fails the run then, if not before."""
VISIBLE_S = 20.0
"""How long a file may take from one process to another, over a network file system."""


class Share:
    """Keeps and writes this process's rows. Every process has one, and all do the same at the same time: process 0 calls the methods, the
    others ``obey``."""

    def __init__(self) -> None:
        self._manager: Any = None

    def obey(self, order: tuple[str, tuple[Any, ...]]) -> None:
        """Calls the method that process 0 called, with its arguments."""
        method, arguments = order
        getattr(self, method)(*arguments)

    def open(self, directory: str, probe: str, shape: tuple[int, int]) -> None:
        """Begin to write to ``directory``, with rows of zeros.

        Args:
            directory: absolute path of ``state/``, the same on all processes.
            probe: absolute path of a file that process 0 has written.
            shape: rows and words of each.

        Raises:
            InputError: this process does not see what process 0 wrote.
        """
        import orbax.checkpoint as ocp

        _see(Path(probe))
        count = jax.process_count()
        self._sharding = over_processes()
        self._rows_each = -(-shape[0] // count)
        self._shape = (self._rows_each * count, shape[1])
        self._first = self._rows_each * jax.process_index()
        self._rows = np.zeros((self._rows_each, shape[1]), np.uint32)
        # Named processes: Orbax then waits for them through JAX's coordination service. Its other way is a collective on the devices, which
        # a thread in the background must not begin.
        every = ocp.options.MultiprocessingOptions(primary_host=0, active_processes=set(range(count)), barrier_sync_key_prefix=KIND)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT,
            enable_async_checkpointing=True,
            async_options=ocp.options.AsyncOptions(timeout_secs=WRITE_S),
            create=False,
            multiprocessing_options=every if count > 1 else ocp.options.MultiprocessingOptions(),
        )
        self._manager = ocp.CheckpointManager(directory, options=options)

    def update(self, indices: np.ndarray, rows: np.ndarray) -> None:
        """The rows with these indices are now these; each process keeps its own."""
        mine = (self._first <= indices) & (indices < self._first + self._rows_each)
        self._rows[indices[mine] - self._first] = rows[mine]

    def save(self, step: int, record: dict[str, Any]) -> None:
        """Begin to write the rows as they are, and ``record``, as ``step``; the write before must have been waited for."""
        import orbax.checkpoint as ocp

        mine = self._rows.copy()  # the caller may go on
        rows = jax.make_array_from_callback(self._shape, self._sharding, lambda _: mine)
        items = {TABLE: ocp.args.PyTreeSave({ROWS: rows}), RECORD: ocp.args.JsonSave(record)}
        if not self._manager.save(step, args=ocp.args.Composite(**items), force=True):
            raise OSError(f"Orbax did not save step {step}")

    def wait(self) -> None:
        """Until what was begun is on disk."""
        if self._manager is not None:
            self._manager.wait_until_finished()

    def close(self) -> None:
        if self._manager is not None:
            self._manager.close()
            self._manager = None


def _see(probe: Path) -> None:
    deadline = time.monotonic() + VISIBLE_S
    while True:
        with contextlib.suppress(OSError):
            list(probe.parent.iterdir())  # a network file system may remember that the file was not there; a listing refreshes it
        if probe.exists():
            return
        if time.monotonic() > deadline:
            who = f"process {jax.process_index()} of {jax.process_count()}"
            raise InputError(
                f"--out {probe.parent}: {who} does not see what process 0 wrote there; give a directory that all of them share"
            )
        time.sleep(0.1)
