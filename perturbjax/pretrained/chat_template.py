"""Chat templates: untrusted programs that come with a model, rendered in a process of their own with bounded work."""

import hashlib
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from perturbjax.errors import InputError
from perturbjax.line_process import LineProcess
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
    """The one process that renders, for all templates. It keeps those that it has compiled, until it is ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = LineProcess(chat_process.__file__)
        self._known: set[str] = set()

    def ask(self, key: str, source: str, values: dict[str, Any]) -> list[str]:
        """The texts that the process answers.

        Raises:
            _Failed: the template failed, or went beyond a limit.
        """
        with self._lock:
            reply = self._process.ask({"key": key, "source": None if key in self._known else source, **values})
            if reply is None:
                self._known.clear()
                limits = f"{chat_process.CPU_S:g} s and {chat_process.MEMORY >> 20} MiB"
                raise _Failed(f"it took more than {limits}, or ended the process that renders it")
            if "error" in reply:
                raise _Failed(" ".join(reply["error"].split())[:300])
            self._known.add(key)
            return reply["texts"]


_PROCESS = _Process()
