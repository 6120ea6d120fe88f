"""The arithmetic parser against expression trees of known value, and against hostile text."""

import operator
import time
from dataclasses import dataclass
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perturbjax.tasks.safe_eval import MAX_DEPTH, MAX_DIGITS, MAX_LENGTH, evaluate

_OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


@dataclass(frozen=True)
class Tree:
    """An expression with its own value and numbers, worked out while it is built: the oracle."""

    text: str
    value: Fraction | None
    numbers: tuple[int, ...]
    level: int  # 2 a factor, 1 a product, 0 a sum


def _join(left: Tree, sign: str, right: Tree, space: str, brackets: bool) -> Tree:
    level = 0 if sign in "+-" else 1

    def operand(tree: Tree, needs: int) -> str:
        return f"({tree.text})" if brackets or tree.level < needs else tree.text

    # The right side of any operator binds tighter than the operator itself: "a - (b - c)" must keep its brackets.
    text = f"{operand(left, level)}{space}{sign}{space}{operand(right, level + 1)}"
    value = None
    if left.value is not None and right.value is not None and not (sign == "/" and right.value == 0):
        value = _OPERATORS[sign](left.value, right.value)
    return Tree(text, value, left.numbers + right.numbers, level)


_LEAVES = st.integers(0, 999).map(lambda n: Tree(str(n), Fraction(n), (n,), 2))
_TREES = st.recursive(
    _LEAVES,
    lambda trees: st.builds(_join, trees, st.sampled_from("+-*/"), trees, st.sampled_from(["", " ", "\t"]), st.booleans()),
    max_leaves=12,
)


@given(_TREES)
def test_a_tree_has_its_value_and_its_numbers(tree: Tree) -> None:
    found = evaluate(tree.text)
    if tree.value is None or len(tree.text) > MAX_LENGTH:
        assert found is None
    else:
        assert found is not None
        assert found.value == tree.value
        assert found.numbers == tree.numbers


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 - 2 - 3", -4),
        ("100 / 10 / 5", 2),
        ("2 + 3 * 4", 14),
        ("((7))", 7),
        ("1/3*3", 1),
        ("10 - 2 * (3 + 4) / 7", 8),
        ("007 + 1", 8),
        ("0/5", 0),
        (" 4 ", 4),
    ],
)
def test_precedence_and_left_association(text: str, value: int) -> None:
    found = evaluate(text)
    assert found is not None and found.value == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "()",
        "(",
        ")",
        "1 +",
        "* 2",
        "1 2",
        "1 + + 2",
        "-3",
        "+3",
        "2 - -3",
        "2(3)",
        "(1)(2)",
        "(1 + 2",
        "1 + 2)",
        "1.5",
        "1,000",
        "1 = 1",
        "1 + 1 = 2",
        "1\n+ 1",
        "9**9",
        "9**9**9",
        "9^9",
        "9//2",
        "9%2",
        "1e9",
        "0x10",
        "1_000",
        "5!",
        "5j",
        "x + 1",
        "__import__('os').system('true')",
        "(lambda: 1)()",
        "[1][0]",
        "1 if 1 else 2",
        "\u0663 + 1",  # ARABIC-INDIC DIGIT THREE: str.isdigit() and int() take it
        "\u00b2 + 1",  # SUPERSCRIPT TWO: str.isdigit() takes it
        "\uff11 + 1",  # FULLWIDTH DIGIT ONE
        "1 \u00d7 2",
        "1\u00a0+ 1",  # NO-BREAK SPACE
        "1 / 0",
        "1 / (2 - 2)",
        "0 / 0",
        "5 + 3 / (4 - 2 * 2) * 0",
        "\x00",
        "1\x00",
    ],
)
def test_anything_else_is_no_expression(text: str) -> None:
    assert evaluate(text) is None


def test_limits_are_where_they_are_said_to_be() -> None:
    nested = "(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH
    assert evaluate(nested) is not None
    assert evaluate(f"({nested})") is None
    assert evaluate("9" * MAX_DIGITS) is not None
    assert evaluate("9" * (MAX_DIGITS + 1)) is None
    assert evaluate("1" + " " * (MAX_LENGTH - 1)) is not None
    assert evaluate("1" + " " * MAX_LENGTH) is None


@pytest.mark.parametrize("unit", ["(", ")", "9", "1+", "9*", "9/", " ", "9**", "-", "((1)", "\u0663"])
def test_a_million_characters_cost_nothing(unit: str) -> None:
    start = time.process_time()
    assert evaluate(unit * (1_000_000 // len(unit))) is None
    assert time.process_time() - start < 0.1


@given(st.text(alphabet="0123456789+-*/() \t.,=x\u0663", max_size=40))
def test_agrees_with_python_on_everything_it_accepts(text: str) -> None:
    """Python itself as an oracle, on characters that can only be arithmetic."""
    found = evaluate(text)
    if found is not None:
        names = {"F": Fraction}
        spaced = "".join(char if char.isdigit() else f" {char} " for char in text)
        source = " ".join(f"F({int(token)})" if token.isdigit() else token for token in spaced.split())
        assert eval(source, {"__builtins__": {}}, names) == found.value
