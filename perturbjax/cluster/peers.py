"""The processes of one run, as each sees the others: who has died, who was told to stop, and how all end together.

Process 0 listens; each of the others keeps one line (a TCP connection) to it, beside JAX's own. Every ``PULSE_S`` seconds something goes
both ways. A line that breaks off is a process that died; one that is silent for ``SILENCE_S`` is a process that hangs, or a machine that
cannot be reached. Either ends the run on all processes, by a thread: the main thread may be waiting in a collective for the very process
that is gone, and would wait forever. JAX's coordination service notices a death too (``distributed.join``), later and with a fatal log,
and its preemption notice only asks for a common step to stop at, which could be longer away than the notice leaves.
"""

from __future__ import annotations

import atexit
import contextlib
import hmac
import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Self

from perturbjax.errors import InputError

PEER_LOST = 69
"""Exit code (EX_UNAVAILABLE of sysexits.h) of a process whose peer has died or cannot be reached: the same command with --resume goes on,
once the machine is back or without it. Not 75: nobody asked this run to stop, and whoever restarts it may want to look first."""
PULSE_S = 1.0
SILENCE_S = 30.0
"""How long a line may be silent. A process that is killed is noticed at once, by its line breaking off; this is for one that hangs."""
LINES_S = 60.0
"""How long the lines may take to be drawn, once all processes have joined."""
_LAST_WORDS_S = 5.0
"""How long the others may take to end once told to, and an error of this process may wait for a death that explains it."""


class Peers:
    """The other processes; use as a context manager around the whole work of this one. Alone, it does nothing.

    Args:
        host: of process 0; None where there is only one process.
        say: told the one line that explains an end which this process did not cause.

    Attributes:
        advice: what is safe and how to go on; said with a death.
        on_notice: on process 0, called (by a thread) when another process was told to stop.
    """

    def __init__(self, host: str | None, say: Callable[[str], None]):
        self._host, self._say = host, say
        self.advice = "what the run had committed is intact; continue it with the same command and --resume"
        self.on_notice: Callable[[], None] = lambda: None
        self._index, self._count = 0, 1
        self._lines: dict[int, _Line] = {}
        self._ending = threading.Lock()

    @property
    def leads(self) -> bool:
        """Whether this is process 0."""
        return self._index == 0

    def __enter__(self) -> Self:
        if self._host is not None:
            import jax

            self._index, self._count = jax.process_index(), jax.process_count()
            self._draw_lines(self._host)
            threading.Thread(target=self._watch, daemon=True, name="peers").start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self._host is None:
            return
        if error is None:
            self._tell({"bye": True})
            return
        if isinstance(error, Exception) and not isinstance(error, InputError):
            # A collective fails on all processes when one dies; if that is it, the thread that sees the line break ends this one.
            time.sleep(_LAST_WORDS_S)
        # From here on it ends by itself: told to end by process 0 it would be gone before its own line is said.
        self._ending.acquire(blocking=False)
        code = 2 if isinstance(error, InputError) else 130 if isinstance(error, KeyboardInterrupt) else 1
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if self.leads:
            self.end(code)
        else:
            self._tell({"failed": code, "line": reason})
        _leave_without_jax(code)

    def notify(self) -> None:
        """On the others: this process was told to stop; process 0 will end the run."""
        self._tell({"notice": True})

    def end(self, code: int, line: str | None = None) -> None:
        """On process 0: all others exit with ``code``, after saying ``line``; waits (not for long) until they have."""
        for peer in self._lines.values():
            peer.left = True
        self._tell({"end": code, "line": line})
        deadline = time.monotonic() + _LAST_WORDS_S
        while not all(peer.gone for peer in self._lines.values()) and time.monotonic() < deadline:
            time.sleep(0.02)

    def _tell(self, message: dict[str, Any]) -> None:
        for peer in self._lines.values():
            peer.send(message)

    def _draw_lines(self, host: str) -> None:
        from perturbjax.cluster.distributed import share

        listening = _listen() if self.leads else None
        port, token = share(None if listening is None else (listening.getsockname()[1], secrets.token_hex()))
        try:
            if listening is None:
                self._lines[0] = line = _Line(socket.create_connection((host, port), timeout=LINES_S))
                line.send({"token": token, "index": self._index})
            else:
                self._accept_all(listening, token)
        except OSError as error:
            _leave_without_jax(2)
            who, reason = f"process {self._index} of {self._count}", error.strerror or str(error)
            need = "processes must reach each other on every port"
            raise InputError(f"{who}: no connection through {host}:{port} of process 0 ({reason}); {need}") from error

    def _accept_all(self, listening: socket.socket, token: str) -> None:
        deadline = time.monotonic() + LINES_S
        with listening:
            while len(self._lines) < self._count - 1:
                listening.settimeout(max(0.01, deadline - time.monotonic()))
                line = _Line(listening.accept()[0])
                hello = line.first()
                if hmac.compare_digest(str(hello.get("token")).encode(), token.encode()):
                    self._lines[int(hello["index"])] = line
                else:
                    line.close()

    def _watch(self) -> None:
        """Reads, sends pulses, and judges, until the process ends."""
        with selectors.DefaultSelector() as selector:
            for index, line in self._lines.items():
                selector.register(line.socket, selectors.EVENT_READ, index)
            pulse = 0.0
            while True:
                for key, _ in selector.select(timeout=PULSE_S / 2):
                    line = self._lines[key.data]
                    line.receive()
                    if line.gone:
                        selector.unregister(line.socket)
                for index, line in self._lines.items():
                    while line.unread:
                        self._take(index, line.unread.pop(0))
                now = time.monotonic()
                if now - pulse >= PULSE_S:
                    pulse = now
                    self._tell({})
                for index, line in self._lines.items():
                    if not line.left and (line.gone or now - line.heard > SILENCE_S):
                        self._lost(index)

    def _take(self, index: int, message: dict[str, Any]) -> None:
        line = self._lines[index]
        if message.get("bye"):
            line.left = True
        elif message.get("notice"):
            threading.Thread(target=self.on_notice, daemon=True, name="notice").start()
        elif "failed" in message:
            line.left = True
            self._end_all(message["failed"], f"perturbjax: process {index} of {self._count} has ended ({message['line']}); {self.advice}")
        elif "end" in message:
            self._end_all(message["end"], message["line"])

    def _lost(self, index: int) -> None:
        self._lines[index].left = self._lines[index].gone = True
        who = f"process {index} of {self._count} has died or cannot be reached"
        self._end_all(PEER_LOST, f"perturbjax: {who}; {self.advice}")

    def _end_all(self, code: int, line: str | None) -> None:
        """This process ends, and if it is process 0, all; in a thread, because the watching one is needed to see them go."""
        if not self._ending.acquire(blocking=False):
            return

        def last() -> None:
            if line:
                self._say(line)
            if self.leads:
                self.end(code, line if code == PEER_LOST else None)
            sys.stdout.flush()
            os._exit(code)

        threading.Thread(target=last, daemon=True, name="end").start()


class _Line:
    """One connection: JSON objects, one a line, both ways. An empty one is a pulse.

    Attributes:
        unread: what has come.
        heard: when something last came, on the monotonic clock.
        gone: it broke off. left: the other end said before that it would.
    """

    def __init__(self, connected: socket.socket):
        self.socket, self.heard = connected, time.monotonic()
        self.unread: list[dict[str, Any]] = []
        self.gone = self.left = False
        self._rest = b""
        self._sending = threading.Lock()
        connected.settimeout(LINES_S)

    def send(self, message: dict[str, Any]) -> None:
        # What cannot be sent is noticed where it is read.
        with self._sending, contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def first(self) -> dict[str, Any]:
        """The first message, waited for; empty if the line breaks off before it."""
        while not (self.unread or self.gone):
            self.receive()
        return self.unread.pop(0) if self.unread else {}

    def receive(self) -> None:
        """Reads what has come since; waits for something."""
        try:
            piece = self.socket.recv(1 << 16)
        except OSError:
            piece = b""
        self.gone, self.heard = not piece, time.monotonic()
        *whole, self._rest = (self._rest + piece).split(b"\n")
        try:
            self.unread += [message for message in map(json.loads, whole) if isinstance(message, dict)]
        except ValueError:
            self.gone = True

    def close(self) -> None:
        self.socket.close()


def _listen() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _leave_without_jax(code: int) -> None:
    """When the interpreter ends, by whatever way it does so: JAX's own leave-taking waits for all processes, and some will not come."""

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    atexit.register(leave)
    # A thread that waits for the others would keep the interpreter from coming that far.
    late = threading.Timer(2 * _LAST_WORDS_S, leave)
    late.daemon = True
    late.start()
