"""The process: opens the run, compiles, listens until it is told to stop, and finishes what runs."""

import ipaddress
import os
import re
import signal
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from perturbjax.errors import InputError
from perturbjax.records import read_text
from perturbjax.serve.config import Limits
from perturbjax.serve.desk import Served
from perturbjax.serve.guard import App
from perturbjax.serve.members import Members
from perturbjax.serve.one_model import OneModel
from perturbjax.serve.runs import Opened

TOKEN_VARIABLE = "PERTURBJAX_TOKEN"
STOP_TIMEOUT_S = 60
"""How long a server that was told to stop finishes what runs."""
_TOKEN = r"[\x21-\x7e]{16,512}"


def read_token(path: Path | None) -> str | None:
    """The token of authorization, of a file or of the environment variable PERTURBJAX_TOKEN; None if there is none.

    Raises:
        InputError: the file cannot be read, or the token is no 16 to 512 printable characters without spaces. It is not shown.
    """
    source, token = f"environment variable {TOKEN_VARIABLE}", os.environ.get(TOKEN_VARIABLE)
    if path is not None:
        source = f"`token_file` {path}"
        try:
            token = read_text(path).strip()
        except (OSError, ValueError):
            raise InputError(f"{source}: a file that can be read is required") from None
    if token is not None and not re.fullmatch(_TOKEN, token):
        raise InputError(f"{source}: a token of 16 to 512 printable ASCII characters without spaces is required")
    return token


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(host: str, token: str | None) -> None:
    """Raise ``InputError`` if other machines could reach a server that asks for no token."""
    if token is None and not is_loopback(host):
        raise InputError(
            f"`host` {host}: other machines could reach the server; give it a token in `token_file` or {TOKEN_VARIABLE}, or keep 127.0.0.1"
        )


def serving(opened: Opened, limits: Limits, note: Callable[[str], None]) -> Served:
    """What answers: one model, or members that vote; nothing is compiled yet."""
    model = opened.model
    if opened.parts is not None and opened.ensemble is not None:
        answering = Members(opened.parts, opened.ensemble, limits, note, opened.early_exit)
    else:
        answering = OneModel(model, limits)
    return Served(model.name, model.tokenizer, model.config.vocab_size, answering)


class _Patient(H11Protocol):
    """A connection whose request must have come, all its headers, within some seconds: uvicorn itself waits for ever."""

    def __init__(self, timeout_s: float, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._timeout_s, self._deadline = timeout_s, None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._expect()

    def _expect(self) -> None:
        if self._waits() and self._deadline is None:
            self._deadline = self.loop.call_later(self._timeout_s, self._late)

    def _waits(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _late(self) -> None:
        self._deadline = None
        if self._waits() and not self.transport.is_closing():
            self.transport.close()


def bind(host: str, port: int) -> socket.socket:
    """A socket of an address, which does not listen yet; port 0 is any that is free.

    Raises:
        InputError: the address is not there, or taken.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise InputError(f"`host` {host}, `port` {port}: nothing can listen there ({error.strerror}); give another") from None
    return bound


def make_server(app: App, bound: socket.socket, limits: Limits, ready: Callable[[], None]) -> uvicorn.Server:
    """A server on a bound socket; ``ready`` is called once connections are taken."""
    http: Any = partial(_Patient, limits.request_timeout_s)
    # A client that does not read its stream must not keep a server that was told to stop.
    patience: dict[str, Any] = {"timeout_keep_alive": 5, "timeout_graceful_shutdown": STOP_TIMEOUT_S}
    quiet: dict[str, Any] = {"log_level": "error", "access_log": False, "server_header": False}
    most = 4 * limits.max_queue + 64
    host, port, *_ = bound.getsockname()
    return _Server(uvicorn.Config(app, host, port, http=http, ws="none", lifespan="on", limit_concurrency=most, **patience, **quiet), ready)


def listen(app: App, bound: socket.socket, limits: Limits, ready: Callable[[], None]) -> None:
    """Serves until SIGTERM or SIGINT; then no new connection is taken, and what runs is finished. Arguments as of ``make_server``."""
    server = make_server(app, bound, limits, ready)
    # uvicorn raises the signal that stopped it once more when all is done: stopped as asked is no failure.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        server.run(sockets=[bound])
    finally:
        signal.signal(signal.SIGTERM, before)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]):
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._ready()
