"""The process of a command: it joins the others, notices their deaths, and answers SIGTERM, which schedulers send before they take a
machine away: the commit under way is finished, then all processes end.

Nothing else has to be saved: every chunk of work is committed when it is done, and the chunk in flight could take longer than the notice
leaves. A thread does it, because the main thread may be inside a compiled program, where Python handles no signal until that returns.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

from perturbjax.cluster.distributed import join
from perturbjax.cluster.peers import Peers


@contextlib.contextmanager
def cluster_run(
    say: Callable[[str], None], coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> Iterator[Peers]:
    """Joins the processes of a run; while the block runs, the death of one and SIGTERM to one end all of them.

    Args:
        say: prints a line about the run.
        coordinator, num_processes, process_id: as for ``join``; a run of one process when ``coordinator`` is None.

    Yields:
        The peers, whose ``advice`` and ``freeze`` the command sets as they become known.

    Raises:
        InputError: the processes cannot be joined.
    """
    host = None if coordinator is None else join(coordinator, num_processes, process_id)
    with Peers(host, say) as peers, _sigterm(peers.preempt):
        yield peers


@contextlib.contextmanager
def _sigterm(call: Callable[[], None]) -> Iterator[None]:
    """While the block runs, SIGTERM calls ``call``, in a thread and at once."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def watch() -> None:
        while (received := os.read(reading, 1)) != b"":
            if received[0] == signal.SIGTERM:
                call()
        os.close(reading)

    # The handler does nothing; with it, the interpreter writes the signal's number into the pipe, from any thread, at once.
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watching = threading.Thread(target=watch, daemon=True, name="preemption")
    watching.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGTERM, before)
        os.close(writing)
        # It holds what ``call`` reaches, arrays of the run among them: freed by it while the interpreter ends, they abort the process.
        watching.join(timeout=10)
