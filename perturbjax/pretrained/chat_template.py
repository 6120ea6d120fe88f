"""Chat templates: jinja2 in its sandbox, set up as in transformers, with limits on its work because a template is untrusted code."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from perturbjax.errors import InputError, one_line

_MAX_STEPS = 100_000
"""Loop steps over ``range`` that one rendering may take in all."""
_MAX_LENGTH = 10_000_000
"""Longest text or list that ``*`` may build, and largest magnitude of a number from ``**``."""


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
        self._variables = dict(variables)
        self._name = name
        self._environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock])
        self.clock = datetime.now()
        self._environment.globals["strftime_now"] = lambda form: self.clock.strftime(form)
        try:
            self._template = self._environment.from_string(source)
        except (jinja2.TemplateError, RecursionError, SyntaxError) as error:
            raise InputError(f"the chat template does not compile: {one_line(error)}") from error

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The conversation as text, ending where the assistant's reply begins.

        Raises:
            InputError: a message without role and content, or a template that raises, loops without end or builds something huge.
        """
        for message in messages:
            if not all(isinstance(message.get(key), str) for key in ("role", "content")):
                raise InputError(f"messages: each needs the texts 'role' and 'content', got {dict(message)!r}")
        self._environment.steps_left = _MAX_STEPS
        try:
            return self._template.render(
                messages=[dict(message) for message in messages], tools=None, documents=None, add_generation_prompt=True, **self._variables
            )
        # A template can raise anything that Python can: a failed addition is a TypeError, a deep macro a RecursionError.
        except Exception as error:
            raise InputError(f"model {self._name!r}: the chat template failed: {one_line(error)}") from error


class _Environment(ImmutableSandboxedEnvironment):
    """jinja2's sandbox with bounds on loop steps and sizes: jinja2 bounds one ``range``, not nested loops."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.steps_left = _MAX_STEPS
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _raise_exception
        self.globals["range"] = self._range
        del self.globals["lipsum"]

    def _range(self, *bounds: int) -> range:
        steps = range(*bounds)
        self.steps_left -= len(steps)
        if self.steps_left < 0:
            raise OverflowError(f"more than {_MAX_STEPS} loop steps")
        return steps

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and not (abs(left) <= _MAX_LENGTH and abs(right) <= 32):
            raise OverflowError(f"{left} ** {right} is too large")
        for sequence, times in ((left, right), (right, left)):
            if isinstance(sequence, str | list | tuple) and isinstance(times, int) and len(sequence) * times > _MAX_LENGTH:
                raise OverflowError(f"text or list repeated to more than {_MAX_LENGTH} elements")
        return super().call_binop(context, operator, left, right)


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
