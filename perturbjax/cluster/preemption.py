"""SIGTERM, which schedulers send before they take a machine away: the commit under way is finished, and all processes end with a code of
their own.

Nothing else has to be saved: every chunk is committed when it is scored, and the chunk in flight could take longer than the notice leaves.
A thread does it, because the main thread may be inside a compiled program, where Python handles no signal until that returns.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from perturbjax.cluster.peers import Peers
from perturbjax.runs.console import Console

PREEMPTED = 75
"""Exit code (EX_TEMPFAIL of sysexits.h): the same command with --resume goes on."""
GRACE_S = 20.0
"""How long a commit is waited for. Clouds give 30 seconds; a commit that is cut off costs one chunk, never the run."""


@dataclass
class Notice:
    """What is done when the notice comes.

    Attributes:
        advice: what is safe and how to go on.
        flush: waits until what was begun is on disk; called by a thread.
        committing: held (a lock) while a commit is begun; none begins after the notice.
    """

    advice: str
    flush: Callable[[], None] = lambda: None
    committing: threading.Lock = field(default_factory=threading.Lock)


@contextlib.contextmanager
def exit_on_notice(console: Console, advice: str, peers: Peers | None = None) -> Iterator[Notice]:
    """While the block runs, SIGTERM ends the process with code ``PREEMPTED``, as soon as the commit under way is through.

    With several processes it ends all of them, whichever of them got it: the others tell process 0, which has the commit finished (it needs
    all of them for it) and tells them to go.

    Args:
        console: told, with the notice's advice, before the process ends.
        advice: what is safe and how to go on, as far as is known yet.
        peers: the other processes.
    """
    notice = Notice(advice)
    once = threading.Lock()

    def stop() -> None:
        if not once.acquire(blocking=False):
            return
        deadline = time.monotonic() + GRACE_S
        notice.committing.acquire(timeout=GRACE_S)
        flushing = threading.Thread(target=_quietly(notice.flush), daemon=True)
        flushing.start()
        flushing.join(max(0.0, deadline - time.monotonic()))
        console.note(f"perturbjax: told to stop (SIGTERM); {notice.advice}")
        if peers is not None:
            peers.end(PREEMPTED)
        os._exit(PREEMPTED)

    def on_signal() -> None:
        if peers is None or peers.leads:
            stop()
            return
        peers.notify()
        # Process 0 ends this process; if it cannot, the notice holds all the same.
        time.sleep(2 * GRACE_S)
        os._exit(PREEMPTED)

    if peers is not None:
        peers.on_notice = stop
    with _sigterm(on_signal):
        yield notice


@contextlib.contextmanager
def _sigterm(call: Callable[[], None]) -> Iterator[None]:
    """While the block runs, SIGTERM calls ``call``, in a thread and at once."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def watch() -> None:
        while (said := os.read(reading, 1)) != b"":
            if said[0] == signal.SIGTERM:
                call()
        os.close(reading)

    # The handler itself does nothing; being there makes the interpreter write the signal's number into the pipe, from any thread, at once.
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=watch, daemon=True, name="preemption").start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGTERM, before)
        os.close(writing)


def _quietly(call: Callable[[], None]) -> Callable[[], None]:
    """The same, its errors left to whoever waits for the same thing in the main thread."""

    def quiet() -> None:
        with contextlib.suppress(Exception):
            call()

    return quiet
