"""The one exception that means "the user gave us something we cannot use", a check that raises it, and other exceptions in one line."""

import re
from typing import Any


class InputError(ValueError):
    """Bad input. The message is one line: the argument, its value, what is required, what to do.

    The command line prints it and exits with code 2; every other exception is a failure (code 1).
    """


LARGEST = 2**31 - 1
"""Of what is counted: larger numbers do not fit into the integers that a program counts with, nor into memory."""


def positive_integer(name: str, value: Any) -> None:
    """Raise ``InputError`` unless ``value`` is an integer from 1 to ``LARGEST``."""
    _integer(name, value, 1)


def natural_number(name: str, value: Any) -> None:
    """Raise ``InputError`` unless ``value`` is an integer from 0 to ``LARGEST``."""
    _integer(name, value, 0)


def _integer(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"`{name}` {value}: an integer of at least {least} is required")
    if value > LARGEST:
        raise InputError(f"`{name}` {value}: at most {LARGEST} is required")


def one_line(error: BaseException, length: int = 300) -> str:
    """Type and message of an exception on one line, cut to ``length`` characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:length]


def printable(text: str) -> str:
    """The text for a terminal: what is no printable character, but for line ends, is escaped.

    >>> printable("red \\x1b[31m and a bell \\a")
    'red \\\\x1b[31m and a bell \\\\x07'
    """
    return text if text.isprintable() else "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def shortened(message: str) -> str:
    """An error message on one line, each of its words cut to 200 characters and all of it to 1,000: a value may be a megabyte long."""
    line = re.sub(r"(\S{200})\S+?([:;,.]?)(?=\s|$)", r"\1...\2", " ".join(message.split()))
    return line if len(line) <= 1000 else f"{line[:1000]}..."


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, cut to 200 characters; its type where it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
