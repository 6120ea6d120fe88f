"""Arithmetic written by a model, evaluated exactly and never as code.

Grammar (spaces and tabs between tokens)::

    sum     = product (("+" | "-") product)*
    product = factor (("*" | "/") factor)*
    factor  = integer | "(" sum ")"
    integer = one to 12 of the ASCII digits 0-9

There is no exponent, sign, name, decimal point or call, and length and nesting are bounded, so any text costs microseconds. Python's parser
reads it, and of what it finds only numbers and the four operations are evaluated, by the code below.
"""

import ast
import itertools
import operator
import re
from dataclasses import dataclass
from fractions import Fraction

MAX_LENGTH = 200
MAX_DEPTH = 32
MAX_DIGITS = 12

_TEXT = re.compile(r"[0-9+\-*/() \t]+")
_NUMBER = re.compile(r"[0-9]+")
_LEADING_ZEROS = re.compile(r"\b0+(?=[0-9])")
_OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


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
    if len(text) > MAX_LENGTH or not _TEXT.fullmatch(text):
        return None
    numbers = _NUMBER.findall(text)
    depths = itertools.accumulate((char == "(") - (char == ")") for char in text)
    if max(map(len, numbers), default=0) > MAX_DIGITS or max(depths) > MAX_DEPTH:
        return None
    try:
        value = _value(ast.parse(_LEADING_ZEROS.sub("", text).strip(), mode="eval").body)
    except (SyntaxError, _NotArithmetic, ZeroDivisionError):
        return None
    return Arithmetic(value, tuple(map(int, numbers)))


class _NotArithmetic(Exception):
    pass


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return Fraction(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_value(node.left), _value(node.right))
    raise _NotArithmetic
