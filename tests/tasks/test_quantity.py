"""Numbers found in text and brought to one spelling."""

import time
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perturbjax.tasks.quantity import find_numbers, first_line, normalize_number


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("so she has 18 eggs.", ["18"]),
        ("$1,250.50 and 3,000", ["$1,250.50", "3,000"]),
        ("16-3-4=9", ["16", "3", "4", "9"]),
        ("x = -5", ["-5"]),
        ("-$20, $-20", ["-$20", "-20"]),
        ("from 10-12", ["10", "12"]),
        ("(2)-1", ["2", "1"]),
        ("1, 2, 3", ["1", "2", "3"]),
        ("1,2,3", ["1", "2", "3"]),
        (".5 and 0.5", [".5", "0.5"]),
        ("wait...5", ["5"]),
        ("3.", ["3"]),
        ("3.14.", ["3.14"]),
        ("12,345,678", ["12,345,678"]),
        ("\u22127", ["\u22127"]),
        ("50%", ["50"]),
        ("3/4", ["3", "4"]),
        ("CO2 and H2O, v1", []),
        ("\u0663", []),
        ("none", []),
        ("", []),
    ],
)
def test_find_numbers(text: str, found: list[str]) -> None:
    assert find_numbers(text) == found


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("1000", "1000"),
        ("1,000", "1000"),
        ("1000.0", "1000"),
        ("$1000", "1000"),
        ("$1,000.00", "1000"),
        ("\\$1000", "1000"),
        (" 1000. ", "1000"),
        ("**1000**", "1000"),
        ("**1000.**", "1000"),
        ("`1000`", "1000"),
        ("\u20ac1000", "1000"),
        ("-0.50", "-0.5"),
        ("-$5", "-5"),
        ("\u22125", "-5"),
        ("0", "0"),
        ("-0", "0"),
        ("-0.00", "0"),
        ("000", "0"),
        ("007", "7"),
        (".5", "0.5"),
        ("25%", "25"),
    ],
)
def test_one_spelling_for_each_value(written: str, canonical: str) -> None:
    assert normalize_number(written) == canonical


@pytest.mark.parametrize(
    "text", ["", " ", "$", "-", ".", "ten", "3 + 4", "1 000", "1,00", "1,0000", "3 apples", "1e3", "3/4", "1.2.3", "--1", "\u0663"]
)
def test_what_is_not_one_number(text: str) -> None:
    assert normalize_number(text) is None


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**12), max_value=10**12))
def test_spelling_agrees_with_decimal_and_is_stable(value: Decimal) -> None:
    for written in (f"{value:f}", f"{value:,f}", f"{value:f}000", f"${value:,f}" if value >= 0 else f"-${-value:,f}"):
        canonical = normalize_number(written)
        assert canonical is not None
        assert Decimal(canonical) == value
        assert normalize_number(canonical) == canonical
        assert canonical == normalize_number(f"{value.normalize():f}")


@pytest.mark.parametrize("unit", ["9", "1,", "1,111,", ",", "-", "$", ".", "1.", "1 ", "\u0663"])
def test_a_million_characters_are_neither_an_error_nor_slow(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    start = time.process_time()
    find_numbers(text)
    normalize_number(text)
    assert time.process_time() - start < 5


def test_first_line() -> None:
    assert first_line("\n  \n 42 \n7") == "42"
    assert first_line(" \n\t\n") == ""
