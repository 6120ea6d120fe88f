"""SIGTERM, which schedulers send before they take a machine away: the commit under way is finished, and the process ends with its own code.

Nothing else has to be saved: every chunk is committed when it is scored, and the chunk in flight could take longer than the notice leaves.
A thread does it, because the main thread may be inside a compiled program, where Python handles no signal until that returns.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

from perturbjax.commands.console import Console

PREEMPTED = 75
"""Exit code (EX_TEMPFAIL of sysexits.h): the same command with --resume goes on."""
GRACE_S = 20.0
"""How long a commit is waited for. Clouds give 30 seconds; a commit that is cut off costs one chunk, never the run."""


@contextlib.contextmanager
def exit_on_notice(console: Console, advice: str) -> Iterator[threading.Lock]:
    """While the block runs, SIGTERM ends the process with code ``PREEMPTED``, as soon as the lock that this yields is free.

    Args:
        console: told, with ``advice``, before the process ends.
        advice: what is safe and how to go on.
    """
    busy = threading.Lock()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def watch() -> None:
        while (said := os.read(reading, 1)) != b"":
            if said[0] == signal.SIGTERM:
                busy.acquire(timeout=GRACE_S)
                console.note(f"perturbjax: told to stop (SIGTERM); {advice}")
                os._exit(PREEMPTED)
        os.close(reading)

    # The handler itself does nothing; being there makes the interpreter write the signal's number into the pipe, from any thread, at once.
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=watch, daemon=True, name="preemption").start()
    try:
        yield busy
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGTERM, before)
        os.close(writing)
