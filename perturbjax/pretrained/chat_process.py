"""The process in which chat templates are compiled and rendered, started by ``chat_template``: jinja2's sandbox, set up as in transformers.

The sandbox keeps a template from everything outside it. What it does not bound is work, so this process does: in memory by its own limit,
in time by a timer of the CPU that kills it. It is a script that imports nothing of perturbjax, so that it starts soon and holds nothing.

Requests and replies are lines of JSON. A request has the ``key`` of a template, its ``source`` the first time, the ``clock`` and the
``variables`` that it sees, and the ``conversations`` to render, none to compile only. The reply has ``texts`` or ``error``.
"""

import json
import resource
import signal
import sys
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_S = 1.0
"""CPU time of one conversation, in seconds. Templates of released models take less than a millisecond."""
MEMORY = 2**29
"""Bytes of address space of the process."""
MAX_LENGTH = 10_000_000
"""Characters of the longest text."""


class _GenerationBlock(Extension):
    """``{% generation %}...{% endgeneration %}`` marks the assistant's words for training; rendering yields its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 reads a class attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    del environment.globals["lipsum"]
    return environment


def main() -> None:
    """Answers requests until there are no more."""
    templates: dict[str, jinja2.Template] = {}
    environment = _environment()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        try:
            reply = {"texts": _texts(environment, templates, **json.loads(line))}
        # A template can raise anything that Python can: a failed addition is a TypeError, a deep macro a RecursionError.
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"[:1000]}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


def _texts(
    environment: jinja2.Environment,
    templates: dict[str, jinja2.Template],
    key: str,
    source: str | None,
    clock: str,
    variables: dict[str, Any],
    conversations: list[Any],
) -> list[str]:
    # Without a handler the timer's signal ends the process, in the midst of a long product of numbers too.
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_S)
    if source is not None:
        templates[key] = environment.from_string(source)
    variables |= {"tools": None, "documents": None, "add_generation_prompt": True, "strftime_now": datetime.fromisoformat(clock).strftime}
    texts = []
    for messages in conversations:
        signal.setitimer(signal.ITIMER_VIRTUAL, CPU_S)
        texts.append(templates[key].render(variables, messages=messages))
        if len(texts[-1]) > MAX_LENGTH:
            raise OverflowError(f"a text of more than {MAX_LENGTH} characters")
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return texts


if __name__ == "__main__":
    main()
