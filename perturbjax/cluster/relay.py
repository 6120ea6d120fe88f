"""A relay between JAX's client in this process and the coordination service in process 0.

JAX's client aborts its process with a stack trace the moment that its connection to the service breaks (NOTES.md). So the client of every
process but process 0 connects to a port of its own machine, and two threads copy the bytes. When process 0 dies, the client's connection
stays open and silent; JAX would notice at its own, much longer timeout, and ``peers`` has ended the process by then, with one line.
"""

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable

_log = logging.getLogger(__name__)


def relay(host: str, port: int, timeout_s: float) -> str:
    """Starts a relay to ``host:port``, in threads that end with the process; returns HOST:PORT of its own end.

    A connection is tried for ``timeout_s`` seconds, because process 0 may start last.
    """
    listening = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            client = listening.accept()[0]
            _start(lambda client=client: _serve(client, _connect(host, port, time.monotonic() + timeout_s)))

    _start(accept)
    return f"127.0.0.1:{listening.getsockname()[1]}"


def _start(target: Callable[[], None]) -> None:
    threading.Thread(target=target, daemon=True, name="relay").start()


def _serve(client: socket.socket, service: socket.socket) -> None:
    for end in (client, service):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _start(lambda: _copy(service, client))
    _copy(client, service)
    service.close()
    threading.Event().wait()  # holds ``client``: closed by the garbage collector, it would tell JAX that the service is gone


def _connect(host: str, port: int, deadline: float) -> socket.socket:
    warned = False
    while True:
        try:
            connected = socket.create_connection((host, port), timeout=max(1.0, deadline - time.monotonic()))
            connected.settimeout(None)
            return connected
        except OSError as error:
            if time.monotonic() > deadline:
                raise
            if isinstance(error, socket.gaierror) and not warned:
                # A typing mistake, or a cluster whose names come up with its machines.
                warned = True
                _log.warning("%s cannot be resolved (%s); still trying", host, error.strerror)
            time.sleep(0.2)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(1 << 16):
            target.sendall(piece)
