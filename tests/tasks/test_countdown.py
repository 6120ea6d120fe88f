"""Countdown puzzles: solvable by an independent search, reproducible, varied."""

from collections import Counter
from fractions import Fraction
from functools import cache

import pytest

from perturbjax.errors import InputError
from perturbjax.tasks.countdown import Countdown
from perturbjax.tasks.safe_eval import evaluate


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
