"""Arithmetic written by a model, evaluated exactly and never as code.

Grammar (spaces and tabs between tokens)::

    sum     = product (("+" | "-") product)*
    product = factor (("*" | "/") factor)*
    factor  = integer | "(" sum ")"
    integer = one to 12 of the ASCII digits 0-9

There is no exponent, sign, name, decimal point or call, and length and nesting are bounded, so any text costs microseconds.
"""

import ast
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate

MAX_LENGTH = 200
MAX_DEPTH = 32
MAX_DIGITS = 12

_ALPHABET = re.compile(r"[0-9+\-*/() \t]*")
_TOO_LONG = re.compile(rf"[0-9]{{{MAX_DIGITS + 1}}}")
_LEADING_ZEROS = re.compile(r"\b0+(?=[0-9])")
_OPERATORS: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


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
    if len(text) > MAX_LENGTH or not _ALPHABET.fullmatch(text) or _TOO_LONG.search(text):
        return None
    if max(accumulate((char == "(") - (char == ")") for char in text), default=0) > MAX_DEPTH:
        return None
    numbers: list[int] = []

    def value(node: ast.expr) -> Fraction:
        match node:
            case ast.Constant(value=int(number)):
                numbers.append(number)
                return Fraction(number)
            case ast.BinOp() if type(node.op) in _OPERATORS:
                return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        raise ValueError(f"{type(node).__name__} is not part of the grammar")

    try:
        # Python reads the same grammar, and more; numbers with zeros before them it refuses.
        tree = ast.parse(_LEADING_ZEROS.sub("", text).strip(" \t"), mode="eval")
        return Arithmetic(value(tree.body), tuple(numbers))
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None
