"""What stands between this process and process 0's coordination service, so that the death of process 0 can be told in one line.

JAX's client (jaxlib 0.10) ends its process with a fatal log and a stack trace the moment its connection to the service breaks, and no
public argument changes that: its callback for the case cannot be called from Python. So the other processes connect to themselves, and two
threads pass the bytes on. When process 0's end breaks off, JAX's end is left open and silent; JAX would notice after its own, much longer
timeout, and ``peers`` has ended the process by then.
"""

import contextlib
import logging
import socket
import threading
import time

_log = logging.getLogger(__name__)

_PIECE = 1 << 16
_RETRY_S = 0.2


class Relay:
    """Passes on what comes to a port of this machine's own to ``host:port``, and back; by threads that end with the process.

    Args:
        host, port: of the coordination service.
        patience_s: how long each connection is tried for; process 0 may start last.
    """

    def __init__(self, host: str, port: int, patience_s: float):
        self._service, self._patience_s = (host, port), patience_s
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._silent: list[socket.socket] = []
        self._start(self._accept)

    @property
    def address(self) -> str:
        """HOST:PORT of this end."""
        return f"127.0.0.1:{self._listening.getsockname()[1]}"

    def _start(self, target, *arguments) -> None:
        threading.Thread(target=target, args=arguments, daemon=True, name="relay").start()

    def _accept(self) -> None:
        while True:
            near, _ = self._listening.accept()
            self._start(self._connect, near)

    def _connect(self, near: socket.socket) -> None:
        deadline, said = time.monotonic() + self._patience_s, False
        while True:
            try:
                far = socket.create_connection(self._service, timeout=self._patience_s)
                break
            except OSError as error:
                if isinstance(error, socket.gaierror) and not said:
                    # A typing mistake, or a cluster whose names come up with its machines.
                    said = True
                    _log.warning("%s cannot be resolved (%s); trying for %.0f s", self._service[0], error.strerror, self._patience_s)
                if time.monotonic() > deadline:
                    near.close()
                    return
                time.sleep(_RETRY_S)
        for end in (near, far):
            end.settimeout(None)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._start(self._pass_on, near, far)
        with contextlib.suppress(OSError):
            while piece := far.recv(_PIECE):
                near.sendall(piece)
        # Not closed, and kept from being closed by the garbage collector: see above.
        self._silent.append(near)

    def _pass_on(self, near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := near.recv(_PIECE):
                far.sendall(piece)
        far.close()
