"""Countdown puzzles against an independent search, and the arithmetic parser against expression trees of known value and hostile text."""

import operator
import time
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perturbjax.errors import InputError
from perturbjax.tasks.countdown import Countdown
from perturbjax.tasks.safe_eval import MAX_DEPTH, MAX_DIGITS, MAX_LENGTH, evaluate


@cache
def _reachable(numbers: tuple[int, ...]) -> frozenset[Fraction]:
    """Every value of an expression that uses each number exactly once: by brute force over which subset stands on the left."""
    if len(numbers) == 1:
        return frozenset([Fraction(numbers[0])])
    values: set[Fraction] = set()
    for mask in range(1, 2 ** len(numbers) - 1):
        left = tuple(n for i, n in enumerate(numbers) if mask >> i & 1)
        right = tuple(n for i, n in enumerate(numbers) if not mask >> i & 1)
        for a in _reachable(left):
            for b in _reachable(right):
                values |= {a + b, a - b, a * b}
                if b:
                    values.add(a / b)
    return frozenset(values)


def test_every_puzzle_is_solvable_and_says_so_truthfully() -> None:
    for example in Countdown(count=200, seed=3).examples():
        numbers, target = example.fields["numbers"], example.fields["target"]
        assert Fraction(target) in _reachable(numbers)
        solution = evaluate(example.answer)
        assert solution is not None
        assert solution.value == target and sorted(solution.numbers) == sorted(numbers)
        assert example.question == f"Numbers: {', '.join(map(str, numbers))}\nTarget: {target}"
        assert len(numbers) in (3, 4) and all(1 <= n <= 99 for n in numbers) and 10 <= target <= 100


def test_brute_force_oracle_finds_what_is_not_solvable() -> None:
    assert Fraction(41) in _reachable((3, 7, 20))
    assert Fraction(99) not in _reachable((1, 2, 3))


def test_puzzles_are_a_function_of_the_seed_alone() -> None:
    first = Countdown(count=30).examples()
    assert [e.id for e in first[:4]] == ["5-10-15-70=90", "20-36-98=82", "2-28-35-87=78", "10-33-42=85"]
    assert Countdown(count=30).examples() == first
    assert Countdown(count=10).examples() == first[:10]
    assert not {e.id for e in Countdown(count=30, seed=1).examples()} & {e.id for e in first}


def test_puzzles_are_distinct_and_varied() -> None:
    examples = Countdown().examples()
    assert len({(tuple(sorted(e.fields["numbers"])), e.fields["target"]) for e in examples}) == len(examples) == 2000
    sizes = Counter(len(e.fields["numbers"]) for e in examples)
    assert min(sizes[3], sizes[4]) > 600
    signs = Counter(char for e in examples for char in e.answer if char in "+-*/")
    assert min(signs[sign] for sign in "+-*/") > 100, signs
    assert len({e.fields["target"] for e in examples}) == 91


@pytest.mark.parametrize("count", [0, -1, 1.5, "many"])
def test_a_bad_count_is_refused(count: object) -> None:
    with pytest.raises(InputError, match="a positive number of puzzles"):
        Countdown(count=count)  # pyright: ignore[reportArgumentType]


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
