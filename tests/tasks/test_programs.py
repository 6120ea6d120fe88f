"""MBPP and HumanEval: the program in a reply, and what the data sets' tests make of it."""

import time

import pytest
from support.sandboxed import require_sandbox_or_skip

from perturbjax.errors import InputError
from perturbjax.tasks import Example, load_task, programs, sandbox
from perturbjax.tasks.programs import HumanEval, Mbpp, find_program

F = "def f(x):\n    return x"


@pytest.fixture
def available():
    require_sandbox_or_skip()


@pytest.mark.parametrize(
    ("reply", "strict", "lenient"),
    [
        (f"```python\n{F}\n```", F, F),
        (f"Here:\n\n```python\n{F}\n```\nIt returns x.\n```python\nprint(f(1))\n```", F, F),
        (f"```\n{F}\n```", F, F),
        (f"```py\r\n{F}\r\n```".replace("x):\n", "x):\r\n"), F, F),
        (f"```python\n\n{F}   \n\n```", F, F),
        ("```python\n    return x\n```", "    return x", "    return x"),  # the body of a function whose head was given
        (F, F, F),
        (f"\n{F}\n\n\nThis returns x.", F, F),
        ("\n    return x\n\n\nThe function\n    ends", "    return x", "    return x"),
        (f"import math\n@cache\n{F}\ny = 3\nprint(f(y))", f"import math\n@cache\n{F}\ny = 3", f"import math\n@cache\n{F}\ny = 3"),
        (f"from math import *\n{F}", f"from math import *\n{F}", f"from math import *\n{F}"),
        ("x = [\n    1,\n]\n", None, None),
        ("\n    return x\n\ndef g(y):\n    return", "    return x", "    return x"),  # what follows may be broken off
        (f"```\n\n```python\n{F}\n```\nIt returns x.", F, F),
        (f"```\n\n```python\n{F}", None, F),
        # Strict asks for the block to be closed, and for no words before bare code.
        (f"```python\n{F}", None, F),
        (f"Sure:\n{F}\n\nDone.", None, F),
        ("from here on it is easy", None, None),
        ("define f to return x", None, None),
        ("```python\n```", None, None),
        ("", None, None),
        ("no program", None, None),
    ],
)
def test_the_program_in_a_reply(reply, strict, lenient):
    assert find_program(reply) == strict
    assert find_program(reply, strict=False) == lenient


def test_mbpp_asks_with_its_tests_and_grades_with_them(available):
    task = load_task("mbpp")
    example = task.examples()[0]
    assert example.id == "test-11" and example.question.endswith('assert remove_Occ("PHP","P") == "H"')
    assert "\r" not in "".join((example.question, example.answer, example.fields["tests"]))
    assert task.score("def remove_Occ(s, c):\n    return s.replace(c, '', 1)[::-1].replace(c, '', 1)[::-1]", example) == 1.0
    for wrong in ("def remove_Occ(s, c):\n    return s", "def other(s, c):\n    return s", "import os; os._exit(0)", "\ud800", "\0", "("):
        assert task.score(wrong, example) == 0.0
    trees = next(e for e in task.examples() if "root2 = Node(1)" in e.fields["tests"])  # the one with code before its tests
    assert task.score(trees.answer, trees) == 1.0 and "root2 = Node" not in trees.question


def test_a_reply_to_humaneval_is_a_function_or_its_body(available):
    task = load_task("humaneval")
    example = next(e for e in task.examples() if e.id == "HumanEval/38")  # whose tests and solution use another function of the prompt
    assert isinstance(task, HumanEval) and "def encode_cyclic" in example.question
    head, _, body = example.answer.rpartition('"""')
    whole = "def decode_cyclic(s: str):" + body
    assert "def decode_cyclic" in head and "\n    return" in body
    for template, reply, score in (
        ("plain", body, 1.0),
        ("complete", f"```python\n{whole}\n```", 1.0),
        ("complete", f"```python\n{example.answer}\n```", 1.0),
        ("complete", "```python\ndef decode_cyclic(s):\n    return s\n```", 0.0),
        ("plain", "\n    return s", 0.0),
        ("plain", "\n    pass\n\ndef check(f):\n    pass", 0.0),
    ):
        answer = task.extract(reply, example)
        assert answer is not None and task.score(answer, example) == score, (template, reply)


@pytest.mark.parametrize("name", ["mbpp", "humaneval"])
def test_the_shots_pass_their_own_tests_and_are_no_rows(name, available):
    task = load_task(name)
    shots = {"mbpp": programs._MBPP_SHOTS, "humaneval": programs._HUMAN_EVAL_SHOTS}[name]
    tests = ("assert count_even([1, 2, 4]) == 2\nassert count_even([]) == 0", "assert initials('tea for two') == 'tft'")
    for (values, reply), checks in zip(shots, tests, strict=True):
        given = values["question"] if name == "humaneval" else ""
        example = Example("shot", values["question"], "", fields={"tests": checks, "given": given})
        assert task.score(task.extract(reply, example), example) == 1.0
        assert all(values["question"] != each.question for each in task.examples())


def test_programs_vote_by_their_text():
    task, example = Mbpp(), Example("e", "q", "")
    key = task.vote_key(f"# Returns x.\n{F}   \n", example)
    assert key == task.vote_key("def f(x):\n\n    # as it is\n    return x", example) == task.vote_key(key, example) == F
    assert task.vote_key("def f(x):\n    return 1 * x", example) != key


def test_a_program_is_run_once(available, monkeypatch):
    ran = []
    monkeypatch.setattr(programs, "run_tests", lambda *asked: ran.append(asked) or sandbox.Verdict(True))
    task, example = Mbpp(), Example("e", "q", "", fields={"tests": f"# {time.time()}", "given": ""})
    assert [task.score(F, example) for _ in range(3)] == [1.0] * 3 and len(ran) == 1
    assert task.score(None, example) == 0.0 and len(ran) == 1


def test_without_a_sandbox_the_task_is_refused_before_anything_runs(monkeypatch):
    monkeypatch.setattr(sandbox.sys, "platform", "win32")
    monkeypatch.setattr(programs, "require_sandbox", sandbox.require_sandbox.__wrapped__)
    with pytest.raises(InputError, match=r"`task`: generated code runs only in a sandbox, which is not to be had here \(this is win32\)"):
        load_task("humaneval").examples()
