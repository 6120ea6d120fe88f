"""MATH-500: answers in replies, what counts as equal, and a comparison that model output cannot hold up."""

import importlib.util
import time

import pytest

from perturbjax.errors import InputError
from perturbjax.line_process import LineProcess
from perturbjax.tasks import Example, load_task, math500
from perturbjax.tasks.equality import AnswerGroups
from perturbjax.tasks.math500 import SOURCE, Math500, boxed, normalize_latex

TASK = Math500()
HALF = Example("h", "How much?", "\\frac{1}{2}")
needs_math_verify = pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="math-verify is not installed")


@pytest.mark.parametrize(
    ("reply", "strict", "lenient"),
    [
        ("So $x = \\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}", "\\frac{1}{2}"),
        ("\\boxed{3} and then \\boxed{ 4 }", "4", "4"),
        ("\\boxed{\\text{a}{b}}", "\\text{a}{b}", "\\text{a}{b}"),
        ("\\boxed{5}\n\nProblem: What is 1 + 1?\nSolution: \\boxed{2}", "5", "5"),
        ("The answer is $\\frac{1}{2}$.", None, "\\frac{1}{2}"),
        ("The final answer is: 12 apples.", None, "12 apples"),
        ("Answer: $x = 5$ and so on\nNo more.", None, "x = 5"),
        ("answer is **0.5**", None, "0.5"),
        (" p - q\n", None, "p - q"),
        ("\\text{Evelyn}", None, "\\text{Evelyn}"),
        ("We find $a = 3$ and then $b = 7$, so done.", None, "b = 7"),
        ("It makes 3 or 4 of them", None, "4"),
        ("A box\n\\boxed{1", None, "1"),
        ("It is \\boxed{} of them", None, None),
        ("no idea", None, None),
        ("", None, None),
    ],
)
def test_the_answer_in_a_reply(reply, strict, lenient):
    assert TASK.extract(reply, HALF) == strict
    assert TASK.extract(reply, HALF, strict=False) == lenient


def test_votes_join_what_is_written_alike():
    key = normalize_latex("\\left( 3, \\dfrac{1}{2} \\right)")
    assert key == normalize_latex("(3,\\frac{1}{2})") == normalize_latex("$(3,\\, \\tfrac{1}{2})$.") == normalize_latex(key)
    assert {normalize_latex(text) for text in ("1,000", "1000.0", "$1000$", "1000^\\circ", "\\text{1000}")} == {"1000"}
    assert normalize_latex("\\leftarrow x") == "\\leftarrowx" and normalize_latex("1/2") != normalize_latex("0.5")


@needs_math_verify
def test_votes_join_what_is_equal_but_written_otherwise(monkeypatch):
    groups = AnswerGroups(TASK)
    answers = ("\\frac{1}{2}", "0.51", "0.5", "$1/2$", "\\sqrt{8}", "2\\sqrt{2}", "x" * 400)
    found = [groups.key(answer, TASK.vote_key(answer, HALF), HALF) for answer in answers]
    assert found[:6] == ["\\frac{1}{2}", "0.51", "\\frac{1}{2}", "\\frac{1}{2}", "\\sqrt{8}", "\\sqrt{8}"] and len(set(found)) == 4
    monkeypatch.setattr(math500, "_equal", pytest.fail)
    assert not TASK.same("0.51", "1,000", HALF)  # numbers have canonical keys


@needs_math_verify
def test_the_solutions_of_the_set_are_right_and_boxed():
    task = load_task("math500")
    for row, example in zip(SOURCE.rows(), task.examples(), strict=True):
        assert task.score(task.extract(row["solution"], example), example) == 1.0
    assert {example.fields["level"] for example in task.examples()} == {1, 2, 3, 4, 5}
    assert not any("\\iny" in example.answer or "\\le(" in example.answer for example in task.examples())


@needs_math_verify
@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("\\frac{1}{2}", "0.5", 1),
        ("\\frac{1}{2}", "1/2", 1),
        ("\\frac{1}{2}", "\\frac{2}{4}", 1),
        ("\\frac{1}{2}", "$\\dfrac12$", 1),
        ("3", "x = 3", 1),
        ("2k+2", "2(k + 1)", 1),
        ("\\sqrt{8}", "2\\sqrt{2}", 1),
        ("5", "5 \\text{ cm}", 1),
        ("(-\\infty, 2)", "(-\\infty,2)", 1),
        ("\\text{Evelyn}", "Evelyn", 1),
        ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", 1),
        ("\\frac{1}{2}", "0.51", 0),
        ("(1,2)", "(2,1)", 0),
        ("p - q", "q - p", 0),
        ("\\text{Evelyn}", "Angela", 0),
        ("3", "", 0),
        ("3", "{", 0),
        ("3", "3" * 301, 0),
        ("3", "__import__('os').getpid()", 0),
        ("3", "\ud800\0", 0),
    ],
)
def test_what_is_equal(gold, answer, right):
    assert TASK.score(answer, Example("e", "q", gold)) == right


@needs_math_verify
def test_an_answer_that_takes_too_long_is_wrong_and_the_next_is_compared():
    start = time.monotonic()
    assert TASK.score("10^{10^{10}}!", HALF) == 0.0
    assert time.monotonic() - start < 20
    assert TASK.score("0.50", HALF) == 1.0


def test_nothing_is_asked_about_answers_written_alike_or_too_long(monkeypatch):
    monkeypatch.setattr(math500, "_equal", None)
    assert TASK.score("\\dfrac{1}{2}", HALF) == 1.0 and TASK.score("9" * 301, HALF) == TASK.score(None, HALF) == 0.0


def test_without_math_verify_the_extra_is_named(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "math_verify" else real(name, *rest))
    with pytest.raises(InputError, match=r"pip install 'perturbjax\[math\]'"):
        load_task("math500").examples()


@needs_math_verify
def test_a_math_verify_that_does_not_work_is_refused(monkeypatch, tmp_path):
    (tmp_path / "math_process.py").write_text("import no_such_module_here")
    monkeypatch.setattr(math500, "_PROCESS", LineProcess(str(tmp_path / "math_process.py")))
    monkeypatch.setattr(math500, "_equal", math500._equal.__wrapped__)
    with pytest.raises(InputError, match="which does not work here"):
        load_task("math500").examples()


def test_boxes_need_closing():
    assert boxed("\\boxed{" * 3) is None and boxed("\\boxed{a}}") == "a"
