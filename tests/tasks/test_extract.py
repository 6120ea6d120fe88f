"""Answers found in replies as models write them (GSM8K, arithmetic, Countdown, strict and lenient), and numbers brought to one spelling."""

import time
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perturbjax.tasks import Example, load_task
from perturbjax.tasks.arithmetic import Arithmetic
from perturbjax.tasks.countdown import Countdown
from perturbjax.tasks.gsm8k import Gsm8k
from perturbjax.tasks.quantity import find_numbers, first_line, normalize_number

PUZZLE = Example("p", "Numbers: 3, 7, 20\nTarget: 41", "20 + (3 * 7)", fields={"numbers": (3, 7, 20), "target": 41})
EIGHTEEN = Example("g", "How much?", "18")
THOUSAND = Example("g", "How much?", "1000")
FIFTY_FIVE = Example("a", "18 + 37", "55")


@pytest.mark.parametrize(
    ("reply", "strict", "lenient"),
    [
        ("She makes 9 * 2 = $18.\n#### 18", "18", "18"),
        ("#### 18", "18", "18"),
        ("####18", "18", "18"),
        ("... so 18 dollars. #### 18", "18", "18"),
        ("#### $18", "$18", "$18"),
        ("#### \\$18", "$18", "$18"),
        ("#### **18**", "18", "18"),
        ("#### 18 dollars", "18", "18"),
        ("#### 18.00", "18.00", "18.00"),
        ("#### 18.", "18", "18"),
        ("#### 1,000", "1,000", "1,000"),
        ("#### -3", "-3", "-3"),
        ("#### -$3", "-$3", "-$3"),
        # The first mark counts: what follows is the model posing itself another problem.
        ("#### 18\n\nQuestion: Tom has 3 pears...\nAnswer: 5 + 2\n#### 7", "18", "18"),
        ("#### 18\n#### 20", "18", "18"),
        # The instruction repeated before it is obeyed.
        ('I will end with "#### N".\nThe total is 18.\n#### 18', "18", "18"),
        # No mark, or not the format: strict finds nothing.
        ("The answer is 18.", None, "18"),
        ("The answer is \\boxed{18}.", None, "18"),
        ("16 - 3 - 4 = 9, and 9 * 2 = 18", None, "18"),
        ("She makes $18 every day.", None, "$18"),
        ("#### 9 * 2 = 18", None, "18"),
        ("#### 3/4", None, "4"),
        ("#### The answer is 18", None, "18"),
        ("### 18", None, "18"),
        ("The first 16 eggs are 13 less 4, so 9\n####", None, "9"),
        ("eighteen", None, None),
        ("", None, None),
        ("####", None, None),
        ("I don't know.\n\nQuestion: What is 2 + 2?\n#### 4", None, None),
    ],
)
def test_gsm8k(reply: str, strict: str | None, lenient: str | None) -> None:
    task = Gsm8k()
    assert task.extract(reply, EIGHTEEN) == strict
    assert task.extract(reply, EIGHTEEN, strict=False) == lenient


def test_numbers_score_and_vote_by_value() -> None:
    for task in (Gsm8k(), Arithmetic()):
        for written in ("1000", "1,000", "1000.0", "$1000", "1000."):
            assert task.score(written, THOUSAND) == 1.0
            assert task.vote_key(written, THOUSAND) == "1000"
        for wrong in ("1000.5", "-1000", "100", "10000", "1000 1000", ""):
            assert task.score(wrong, THOUSAND) == 0.0
            assert task.vote_key(wrong, THOUSAND) != "1000"
        assert task.score(None, THOUSAND) == 0.0


@pytest.mark.parametrize(
    ("reply", "strict", "lenient"),
    [
        (" 55", "55", "55"),
        ("55", "55", "55"),
        ("55.", "55.", "55."),
        (" 55\n\n12 + 30 = 42", "55", "55"),
        ("\n\n55\n", "55", "55"),
        ("1,055", "1,055", "1,055"),
        ("**55**", "**55**", "**55**"),
        ("-19", "-19", "-19"),
        ("18 + 37 = 55", None, "55"),
        ("The answer is 55.", None, "55"),
        ("The answer is:\n55", None, "55"),
        ("55 and that is it", None, "55"),
        ("x = 55", None, "55"),
        ("fifty-five", None, None),
        ("", None, None),
    ],
)
def test_arithmetic(reply: str, strict: str | None, lenient: str | None) -> None:
    task = Arithmetic()
    assert task.extract(reply, FIFTY_FIVE) == strict
    assert task.extract(reply, FIFTY_FIVE, strict=False) == lenient


@pytest.mark.parametrize(
    ("reply", "strict", "lenient"),
    [
        ("20 + 3 * 7", "20 + 3 * 7", "20 + 3 * 7"),
        (" 20+3*7\n\nNumbers: 1, 2\nTarget: 3", "20+3*7", "20+3*7"),
        ("(3 * 7) + 20", "(3 * 7) + 20", "(3 * 7) + 20"),
        ("Expression: 20 + 3 * 7", "20 + 3 * 7", "20 + 3 * 7"),
        ("Answer: 20 + 3 * 7", "20 + 3 * 7", "20 + 3 * 7"),
        ("I multiply first. <answer> 20 + 3 * 7 </answer>", "20 + 3 * 7", "20 + 3 * 7"),
        ("<answer>20 - 3 - 7</answer> no: <answer>20 + 3 * 7</answer>", "20 + 3 * 7", "20 + 3 * 7"),
        # Legal but not the target: an answer all the same.
        ("20 - 3 - 7", "20 - 3 - 7", "20 - 3 - 7"),
        # Not the format.
        ("20 + 3 * 7 = 41", None, "20 + 3 * 7"),
        ("41 = 20 + 3 * 7", None, "20 + 3 * 7"),
        ("The expression is 20 + 3 * 7.", None, "20 + 3 * 7"),
        ("First 3 * 7 = 21.\nThen 20 + 3 * 7 = 41.", None, "20 + 3 * 7"),
        ("20 + 3 \u00d7 7", None, "20 + 3 * 7"),
        ("`20 + 3 * 7`", None, "20 + 3 * 7"),
        ("<answer>20 + 3 * 7 = 41</answer>", None, "20 + 3 * 7"),
        # Breaks the rules: a number missing, used twice, or not given.
        ("20 + 21", None, None),
        ("41", None, None),
        ("20 + 3 * 7 + 3 - 3", None, None),
        ("3 + 7", None, None),
        ("20 + 3 * 7 * 1", None, None),
        ("20 ** 3 + 7", None, None),
        ("20 / (3 * 7 - 21)", None, None),
        ("__import__('os').system('true')", None, None),
        ("", None, None),
    ],
)
def test_countdown(reply: str, strict: str | None, lenient: str | None) -> None:
    task = Countdown(count=1)
    assert task.extract(reply, PUZZLE) == strict
    assert task.extract(reply, PUZZLE, strict=False) == lenient


def test_countdown_votes_by_value_and_scores_by_rules_and_target() -> None:
    task = Countdown(count=1)
    assert task.vote_key("20 + 3 * 7", PUZZLE) == task.vote_key("(7*3)+20", PUZZLE) == "41"
    assert task.vote_key("20 - 7 / 3", PUZZLE) == "53/3"
    assert task.score("(7*3)+20", PUZZLE) == 1.0
    assert task.score("20 - 3 - 7", PUZZLE) == 0.0
    # The right value by other numbers is worth nothing, wherever the answer came from.
    assert task.score("41", PUZZLE) == task.score("20 + 21", PUZZLE) == task.score("not arithmetic", PUZZLE) == 0.0


REPLIES = st.text(alphabet=st.sampled_from("0123456789 \n.,$#*+-/()=:<>answerANSWERxpio'\u00d7\u0663"), max_size=80)


@given(REPLIES)
def test_lenient_finds_whatever_strict_finds(reply: str) -> None:
    for task, example in ((Gsm8k(), EIGHTEEN), (Arithmetic(), FIFTY_FIVE), (Countdown(count=1), PUZZLE)):
        strict = task.extract(reply, example)
        lenient = task.extract(reply, example, strict=False)
        if strict is not None:
            assert lenient == strict
        if lenient is not None:
            assert task.score(lenient, example) in (0.0, 1.0)
            assert task.vote_key(lenient, example)


@pytest.mark.parametrize(
    "unit", ["#", "#### ", "(", "9", "9**", "1,", "<answer>", "answer:", "\n", "\nQuestion:", " ", "#### 1 2\n", "-", "1 + 1\n"]
)
def test_a_million_characters_are_neither_an_error_nor_slow(unit: str) -> None:
    reply = unit * (1_000_000 // len(unit))
    for name in ("gsm8k", "arithmetic", "countdown"):
        task = load_task(name)
        example = {"gsm8k": EIGHTEEN, "arithmetic": FIFTY_FIVE, "countdown": PUZZLE}[name]
        start = time.process_time()  # of this process, whatever else the machine does
        for strict in (True, False):
            answer = task.extract(reply, example, strict)
            assert task.score(answer, example) == 0.0
        assert time.process_time() - start < 5, name


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
def test_numbers_in_a_million_characters_are_found_at_once(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    start = time.process_time()
    find_numbers(text)
    normalize_number(text)
    assert time.process_time() - start < 5


def test_first_line() -> None:
    assert first_line("\n  \n 42 \n7") == "42"
    assert first_line(" \n\t\n") == ""
