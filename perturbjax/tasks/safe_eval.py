"""Arithmetic written by a model, evaluated exactly and never as code.

Grammar (spaces and tabs between tokens)::

    sum     = product (("+" | "-") product)*
    product = factor (("*" | "/") factor)*
    factor  = integer | "(" sum ")"
    integer = one to 12 of the ASCII digits 0-9

There is no exponent, sign, name, decimal point or call, and length and nesting are bounded, so any text costs microseconds.
"""

from dataclasses import dataclass
from fractions import Fraction

MAX_LENGTH = 200
MAX_DEPTH = 32
MAX_DIGITS = 12

_DIGITS = frozenset("0123456789")
_SIGNS = frozenset("+-*/()")


@dataclass(frozen=True)
class Arithmetic:
    """A well-formed expression: its exact value and the integers written in it, in order."""

    value: Fraction
    numbers: tuple[int, ...]


def evaluate(text: str) -> Arithmetic | None:
    """Read the whole text as one expression; None if it is not one, exceeds a limit, or divides by zero.

    >>> evaluate("(25 - 4) / 3 * 2")
    Arithmetic(value=Fraction(14, 1), numbers=(25, 4, 3, 2))
    >>> evaluate("2 ** 8") is None
    True
    """
    if len(text) > MAX_LENGTH:
        return None
    try:
        parser = _Parser(_tokens(text))
        value = parser.sum(depth=0)
        parser.end()
    except (_NotArithmetic, ZeroDivisionError):
        return None
    return Arithmetic(value, tuple(parser.numbers))


class _NotArithmetic(Exception):
    pass


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    joined = False  # whether a digit would continue the token before it
    for char in text:
        if char in _DIGITS:
            if joined:
                tokens[-1] += char
            else:
                tokens.append(char)
            if len(tokens[-1]) > MAX_DIGITS:
                raise _NotArithmetic
        elif char in _SIGNS:
            tokens.append(char)
        elif char not in " \t":
            raise _NotArithmetic
        joined = char in _DIGITS
    return tokens


class _Parser:
    """Recursive descent; each nesting level costs three Python frames, bounded by MAX_DEPTH."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.position = 0
        self.numbers: list[int] = []

    def next_in(self, wanted: str) -> str | None:
        """Take the next token if it is one of the characters of ``wanted``."""
        if self.position < len(self.tokens) and self.tokens[self.position] in wanted:
            self.position += 1
            return self.tokens[self.position - 1]
        return None

    def end(self) -> None:
        if self.position != len(self.tokens):
            raise _NotArithmetic

    def sum(self, depth: int) -> Fraction:
        value = self.product(depth)
        while sign := self.next_in("+-"):
            term = self.product(depth)
            value = value + term if sign == "+" else value - term
        return value

    def product(self, depth: int) -> Fraction:
        value = self.factor(depth)
        while sign := self.next_in("*/"):
            term = self.factor(depth)
            value = value * term if sign == "*" else value / term
        return value

    def factor(self, depth: int) -> Fraction:
        if self.next_in("("):
            if depth == MAX_DEPTH:
                raise _NotArithmetic
            value = self.sum(depth + 1)
            if not self.next_in(")"):
                raise _NotArithmetic
            return value
        if self.position == len(self.tokens) or self.tokens[self.position][0] not in _DIGITS:
            raise _NotArithmetic
        self.numbers.append(int(self.tokens[self.position]))
        self.position += 1
        return Fraction(self.numbers[-1])
