"""Chat templates: untrusted programs that come with a model, rendered in a process of their own with bounded work."""

import atexit
import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from perturbjax.errors import InputError
from perturbjax.pretrained import chat_process

_AT_ONCE = 256
"""Conversations of one request."""


class ChatTemplate:
    """A compiled chat template.

    Rendering equals ``apply_chat_template(tokenize=False, add_generation_prompt=True)`` of transformers: ``trim_blocks``,
    ``lstrip_blocks``, loop controls, ``{% generation %}`` blocks, ``raise_exception``, ``strftime_now``, a ``tojson`` that does not
    escape HTML, ``tools`` and ``documents`` None. ``strftime_now`` shows ``clock``, at first the moment of construction, so that
    the prompts of one run do not change at midnight.

    Attributes:
        source: the template.
        clock: the moment that ``strftime_now`` formats.
    """

    def __init__(self, source: str, variables: Mapping[str, str], name: str) -> None:
        """Compiles a template.

        Args:
            source: jinja2.
            variables: bos_token and the like, as the template sees them.
            name: the model's name, for errors of ``render``.

        Raises:
            InputError: the template does not compile.
        """
        self.source = source
        self.clock = datetime.now()
        self._variables = dict(variables)
        self._name = name
        self._key = hashlib.sha256(source.encode(errors="surrogatepass")).hexdigest()
        try:
            self._render([])
        except _Failed as error:
            raise InputError(f"the chat template does not compile: {error}") from None

    def render(self, conversations: Sequence[Sequence[Mapping[str, str]]]) -> list[str]:
        """Each conversation as text, ending where the assistant's reply begins. Many in one call take less time than one by one.

        Raises:
            InputError: a message without role and content, or a template that raises, takes too long or builds something huge.
        """
        for message in (message for messages in conversations for message in messages):
            if not all(isinstance(message.get(key), str) for key in ("role", "content")):
                raise InputError(f"messages: each needs the texts 'role' and 'content', got {dict(message)!r}")
        texts: list[str] = []
        try:
            for start in range(0, len(conversations), _AT_ONCE):
                texts += self._render([[dict(message) for message in messages] for messages in conversations[start : start + _AT_ONCE]])
        except _Failed as error:
            raise InputError(f"model {self._name!r}: the chat template failed: {error}") from None
        return texts

    def _render(self, conversations: list[Any]) -> list[str]:
        values = {"clock": self.clock.isoformat(), "variables": self._variables, "conversations": conversations}
        return _PROCESS.ask(self._key, self.source, values)


class _Failed(Exception):
    """Why there is no text, on one line."""


class _Process:
    """The one process that renders, for all templates; started when it is first asked, and again after a template that ended it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._known: set[str] = set()

    def ask(self, key: str, source: str, values: dict[str, Any]) -> list[str]:
        """The texts that the process answers.

        Raises:
            _Failed: the template failed, or went beyond a limit.
        """
        with self._lock:
            process = self._process or self._start()
            assert process.stdin is not None and process.stdout is not None
            request = {"key": key, "source": None if key in self._known else source, **values}
            try:
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except BrokenPipeError:
                line = b""
            if not line:
                self._end()
                limits = f"{chat_process.CPU_S:g} s and {chat_process.MEMORY >> 20} MiB"
                raise _Failed(f"it took more than {limits}, or ended the process that renders it")
            reply = json.loads(line)
            if "error" in reply:
                raise _Failed(" ".join(reply["error"].split())[:300])
            self._known.add(key)
            return reply["texts"]

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", str(Path(chat_process.__file__))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        atexit.register(self._end)
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._process = None
        self._known.clear()
        atexit.unregister(self._end)


_PROCESS = _Process()
