"""A server on a loopback port of this process, and a client that says and hears bytes."""

import asyncio
import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from perturbjax.serve.app import make_app
from perturbjax.serve.config import Limits
from perturbjax.serve.desk import Served
from perturbjax.serve.server import bind, make_server


@dataclass
class Client:
    """Of a server at ``port``; ``notes``: what the server said to its log."""

    port: int
    notes: list[str] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an answer; a ``body`` that is no bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, content, self.headers | {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        """The JSON of an answer that must be well."""
        status, _, content = self.send("POST", path, body)
        assert status == 200, content
        return json.loads(content)

    def refused(self, path: str, body: Any, **headers: str) -> tuple[int, str]:
        """Status and message of an answer that must be an error."""
        status, _, content = self.send("POST", path, body, **headers)
        assert status >= 400, content
        return status, json.loads(content)["error"]["message"]

    def stream(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """The events of a stream, which must end as streams do."""
        status, headers, content = self.send("POST", path, {**body, "stream": True})
        assert status == 200 and headers["content-type"].startswith("text/event-stream"), content
        *events, done, rest = content.decode().split("\n\n")
        assert done == "data: [DONE]" and rest == ""
        return [json.loads(event.removeprefix("data: ")) for event in events]


@contextlib.contextmanager
def running(served: Served, limits: Limits, token: str | None = None, local: bool = True) -> Iterator[Client]:
    """The server, warm, until the block ends."""
    notes: list[str] = []
    ready, bound = threading.Event(), bind("127.0.0.1", 0)
    server = make_server(make_app(served, limits, token, local, notes.append), bound, limits, ready.set)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([bound])))
    thread.start()
    try:
        assert ready.wait(60)
        yield Client(bound.getsockname()[1], notes)
    finally:
        server.should_exit = True
        thread.join(60)
        bound.close()
        assert not thread.is_alive()
