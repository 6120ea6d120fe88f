"""Heartbeats between the processes of a run: who has died, hangs or was told to stop, and how all of them end together.

Every process keeps one TCP connection to process 0, beside JAX's own. A heartbeat goes both ways every ``HEARTBEAT_S`` seconds. A
connection that breaks is a process that died; one that is silent for ``TIMEOUT_S`` is a process that hangs or a machine that cannot be
reached. Either ends the run on all processes, by a thread: the main thread may be waiting in a collective for the very process that is
gone, and would wait forever. NOTES.md says what JAX's own service offers for this and why it is not enough.
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

import jax
import numpy as np

from perturbjax.cluster.distributed import CONNECT_S, PEER_LOST, TIMEOUT_S, broadcast_json, gather
from perturbjax.errors import InputError

HEARTBEAT_S = 1.0
PREEMPTED = 75
"""Exit code (EX_TEMPFAIL of sysexits.h) of a run that was told to stop: the same command with --resume goes on."""
GRACE_S = 20.0
"""How long a commit is waited for then. Clouds give 30 seconds; a commit that is cut off costs one chunk, never the run."""
_HELLO_S = 5.0
"""How long whoever connects may take to send the token."""
_MESSAGE_BYTES = 1 << 12
_END_S = 3.0
"""How long the others may take to end once told to, and how long a failure waits for a death that explains it."""


class Peers:
    """The other processes of the run, as a context manager around the whole work of this one; of a run of one process there are none.

    Args:
        host: of process 0; None with one process.
        say: prints the one line that explains an end which this process did not cause.

    Attributes:
        advice: what is safe and how to go on; part of that line.
        freeze: waits until what was committed is on disk, and lets nothing more be committed; called by a thread.
    """

    def __init__(self, host: str | None, say: Callable[[str], None]):
        self._host, self._say = host, say
        self.advice = "what the run had committed is intact; continue it with the same command and --resume"
        self.freeze: Callable[[], None] = lambda: None
        self._index, self._count = 0, 1
        self._connections: dict[int, _Connection] = {}
        self._ending = threading.Lock()

    def __enter__(self) -> Self:
        if self._host is not None:
            self._index, self._count = jax.process_index(), jax.process_count()
            self._connect(self._host)
            threading.Thread(target=self._watch, daemon=True, name="heartbeat").start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self._host is None:
            return
        if error is None:
            self._send(0)
            return
        # Process 0 may have failed for the same reason and tell this process to end; and a collective fails everywhere when one process
        # dies, which the watching thread sees and says.
        if self._index or (isinstance(error, Exception) and not isinstance(error, InputError)):
            time.sleep(2 * _END_S if self._index else _END_S)
        # From here on it ends by itself: told to end by process 0, it would be gone before its own line is printed.
        self._ending.acquire(blocking=False)
        code = 2 if isinstance(error, InputError) else 130 if isinstance(error, KeyboardInterrupt) else 1
        self._end_others(code, None) if self._index == 0 else self._send(code, " ".join(str(error).split())[:300] or type(error).__name__)
        # JAX's own shutdown waits for all processes, and some will not come: the interpreter must end without it, and in time.
        atexit.register(_exit, code)
        late = threading.Timer(2 * _END_S, _exit, (code,))
        late.daemon = True
        late.start()

    def preempt(self) -> None:
        """Ends all processes with code ``PREEMPTED``, once the commit under way is through: process 0 has it finished, since that takes
        all of them, and tells the others to end."""
        if self._index:
            self._send(PREEMPTED)
            time.sleep(2 * GRACE_S)  # process 0 ends this process; if it cannot, this one was told to stop all the same
            _exit(PREEMPTED)
        freezing = threading.Thread(target=self.freeze, daemon=True, name="freeze")
        freezing.start()
        freezing.join(GRACE_S)
        self._end(PREEMPTED, f"perturbjax: told to stop (SIGTERM); {self.advice}")

    def _end(self, code: int, line: str | None) -> None:
        """Ends this process, and if it is process 0 all of them."""
        if not self._ending.acquire(blocking=False):
            return
        if line:
            self._say(line)
        if self._index == 0:
            self._end_others(code, line if code == PEER_LOST else None)
        _exit(code)

    def _end_others(self, code: int, line: str | None) -> None:
        for peer in self._connections.values():
            peer.left = True
        self._send(code, line)
        deadline = time.monotonic() + _END_S
        while not all(peer.gone for peer in self._connections.values()) and time.monotonic() < deadline:
            time.sleep(0.02)

    def _send(self, code: int | None = None, line: str | None = None) -> None:
        for peer in self._connections.values():
            peer.send({} if code is None else {"code": code, "line": line})

    def _connect(self, host: str) -> None:
        own = np.zeros(64, np.uint8)
        if self._index:
            text = _address_toward(host).encode()
            own[: len(text)] = np.frombuffer(text, np.uint8)
        others = [row.tobytes().rstrip(b"\0").decode() for row in gather(own)[1:]]
        listening = None if self._index else _listen(others)
        address, port, token = broadcast_json(listening and (*listening.getsockname()[:2], secrets.token_hex()))
        try:
            if listening is None:
                self._connections[0] = connection = _Connection(socket.create_connection((address, port), timeout=CONNECT_S))
                connection.send({"token": token, "index": self._index})
            else:
                self._accept(listening, token)
        except OSError as error:
            who, reason = f"process {self._index} of {self._count}", error.strerror or str(error)
            need = "processes must reach each other on every port"
            atexit.register(_exit, 2)
            raise InputError(f"{who}: no connection through {address}:{port} of process 0 ({reason}); {need}") from error

    def _accept(self, listening: socket.socket, token: str) -> None:
        deadline = time.monotonic() + CONNECT_S
        with listening:
            while len(self._connections) < self._count - 1:
                listening.settimeout(max(0.01, deadline - time.monotonic()))
                connection = _Connection(listening.accept()[0])
                hello = connection.hello()
                if hmac.compare_digest(str(hello.get("token")).encode(), token.encode()):
                    self._connections[int(hello["index"])] = connection
                else:
                    connection.socket.close()

    def _watch(self) -> None:
        """Receives, sends heartbeats and finds out who is lost, until the process ends."""
        selector, sent = selectors.DefaultSelector(), 0.0
        for index, peer in self._connections.items():
            selector.register(peer.socket, selectors.EVENT_READ, index)
        while True:
            for key, _ in selector.select(timeout=HEARTBEAT_S / 2):
                peer = self._connections[key.data]
                for message in peer.receive():
                    self._handle(key.data, **message)
                if peer.gone:
                    selector.unregister(peer.socket)
            now = time.monotonic()
            if now - sent >= HEARTBEAT_S:
                sent = now
                self._send()
            for index, peer in self._connections.items():
                if not peer.left and (peer.gone or now - peer.heard > TIMEOUT_S):
                    peer.left = peer.gone = True
                    self._end_later(PEER_LOST, f"process {index} of {self._count} has died or cannot be reached")

    def _handle(self, index: int, code: int | None = None, line: str | None = None) -> None:
        if code is None:
            return
        if code == PREEMPTED and not self._index:
            threading.Thread(target=self.preempt, daemon=True).start()
            return
        self._connections[index].left = True
        if code and self._index:
            threading.Thread(target=self._end, args=(code, line), daemon=True).start()
        elif code:
            self._end_later(code, f"process {index} of {self._count} has ended ({line})")

    def _end_later(self, code: int, what: str) -> None:
        # In a thread, because the watching one is needed to see the others go.
        threading.Thread(target=self._end, args=(code, f"perturbjax: {what}; {self.advice}"), daemon=True).start()


class _Connection:
    """A TCP connection that carries JSON objects, one a line, both ways; an empty object is a heartbeat.

    Attributes:
        heard: when something last came, on the monotonic clock.
        gone: it broke, or what came was no message.
        left: the other end has said that it ends, or was told to.
    """

    def __init__(self, connected: socket.socket):
        self.socket, self.heard = connected, time.monotonic()
        self.gone = self.left = False
        self._rest = b""
        self._sending = threading.Lock()
        connected.settimeout(_HELLO_S)

    def send(self, message: dict[str, Any]) -> None:
        # What cannot be sent is noticed where it is received.
        with self._sending, contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def hello(self) -> dict[str, Any]:
        """The first message, waited for; empty if none came in ``_HELLO_S`` seconds."""
        deadline = time.monotonic() + _HELLO_S
        while not self.gone and time.monotonic() < deadline:
            if messages := self.receive():
                return messages[0]
        return {}

    def receive(self) -> list[dict[str, Any]]:
        """The messages that came since; waits for something."""
        try:
            piece = self.socket.recv(1 << 16)
        except OSError:
            piece = b""
        *whole, self._rest = (self._rest + piece).split(b"\n")
        self.gone, self.heard = not piece or len(self._rest) > _MESSAGE_BYTES, time.monotonic()
        try:
            return [message for message in map(json.loads, whole) if isinstance(message, dict)]
        except (ValueError, RecursionError):
            self.gone = True
            return []


def _address_toward(host: str) -> str:
    """The address of this machine from which it reaches ``host``; connecting a datagram socket sends nothing."""
    family, kind, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)
        return probe.getsockname()[0]


def _listen(others: list[str]) -> socket.socket:
    """A server on the one interface through which the other processes are reached: loopback if all are on this machine."""
    elsewhere = [address for address in others if not address.startswith("127.") and address != "::1"]
    address = _address_toward((elsewhere or others)[0])
    return socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET)


def _exit(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
