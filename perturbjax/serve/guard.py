"""What a request must pass before any of it is looked at: host, token, kind, size and time. Pure ASGI: bodies are read with bounds."""

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from perturbjax.serve.config import Limits
from perturbjax.serve.metrics import Metrics

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

ROUTES = ("/v1/completions", "/v1/chat/completions", "/v1/models", "/health", "/metrics")
OPEN = ("/health",)
"""Routes that need no token."""
LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")


def error_body(message: str, kind: str, code: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's API has it."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


class Refused(Exception):
    """An answer before the app has seen the request."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error", headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.body, self.headers = status, error_body(message, kind), dict(headers or {})


class Guard:
    """Wraps an app.

    Args:
        app: gets requests whose whole body is there, of at most ``Limits.max_body`` bytes.
        limits: of size and time.
        token: what clients must send as ``Authorization: Bearer TOKEN``; None: nothing.
        local: only requests that name this machine by a loopback name are taken: a web page whose name was pointed here (DNS rebinding)
            names another.
        metrics: told of every request.
    """

    def __init__(self, app: App, limits: Limits, token: str | None, local: bool, metrics: Metrics):
        self._app, self._limits, self._metrics = app, limits, metrics
        self._token = None if token is None else token.encode()
        self._local = local

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 500
        route = scope["path"] if scope["path"] in ROUTES else "other"

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            try:
                self._check(scope)
                body = await self._body(scope, receive)
            except Refused as refused:
                await _answer(refused, counted)
                return
            await self._app(scope, _replay(body, receive), counted)
        finally:
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.monotonic() - started)

    def _check(self, scope: Mapping[str, Any]) -> None:
        headers = _headers(scope)
        host = headers.get(b"host", b"").decode("latin-1").rsplit(":", 1 if not headers.get(b"host", b"").endswith(b"]") else 0)[0]
        if self._local and host.lower() not in LOCAL_HOSTS:
            raise Refused(403, "host: this server answers to its loopback name alone")
        if self._token is not None and scope["path"] not in OPEN:
            kind, _, given = headers.get(b"authorization", b"").partition(b" ")
            # compare_digest takes as long whatever is given; both are compared in any case.
            right = hmac.compare_digest(given.strip(), self._token)
            if not (right and kind.lower() == b"bearer"):
                raise Refused(401, "authorization: a valid token is required", "authentication_error", {"WWW-Authenticate": "Bearer"})
        if scope["method"] == "POST" and headers.get(b"content-type", b"").split(b";")[0].strip().lower() != b"application/json":
            # A web page may send other kinds to this machine without being asked.
            raise Refused(415, "content-type: application/json is required")

    async def _body(self, scope: Mapping[str, Any], receive: Receive) -> bytes:
        limit = self._limits.max_body
        said = _headers(scope).get(b"content-length", b"0")
        if said.isdigit() and (len(said) > 20 or int(said) > limit):
            raise Refused(413, f"body: at most {limit} bytes are taken", headers={"Connection": "close"})
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._limits.request_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refused(400, "body: the connection was closed")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        raise Refused(413, f"body: at most {limit} bytes are taken", headers={"Connection": "close"})
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise Refused(408, f"body: was not there within {self._limits.request_timeout_s} s", headers={"Connection": "close"}) from None


def _headers(scope: Mapping[str, Any]) -> dict[bytes, bytes]:
    return dict(scope["headers"])


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body, already read, and then whatever comes: that the client has left."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _answer(refused: Refused, send: Send) -> None:
    content = json.dumps(refused.body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(content)), **refused.headers}
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": pairs})
    await send({"type": "http.response.body", "body": content})
