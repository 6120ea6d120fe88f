"""What --task may say: names, files, and a user's own objects."""

import importlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from perturbjax.errors import InputError
from perturbjax.inference.outputs import grade
from perturbjax.tasks import TASK_NAMES, checked, load_task
from perturbjax.tasks.equality import AnswerGroups
from perturbjax.tasks.mmlu import SUBJECTS
from perturbjax.tasks.registry import names_code

MODULE = """
import os
import sys
from perturbjax.tasks import Example, GenerationTask, Layout, Prompt, Template

class Parity:
    name, kind, max_new_tokens, source = "parity", "choice", 0, "made here"
    templates = (Template("plain", "Even or odd?"),)
    def examples(self):
        return [Example(str(n), str(n), "odd" if n % 2 else "even", ("even", "odd")) for n in range(9)]
    def prompt(self, example, template):
        return Prompt((), f"{template.instruction} {example.question}:", (" even", " odd"))
    def extract(self, text, example, strict=True):
        return text.strip() or None
    def score(self, answer, example):
        return float(answer == example.answer)
    def vote_key(self, answer, example):
        return answer

task = Parity()

def make():
    return Parity()

class Holder:
    inner = task

def changed(**attributes):
    made = Parity()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made

class Bare:
    name = "bare"

class Few(Parity):
    def __init__(self, count, *, names=()):
        self.count, self.names = count, names
    def examples(self):
        return super().examples()[:self.count]

class Sums(GenerationTask):
    name, source, max_new_tokens = "sums", "made here", 4
    templates, layouts = (Template("plain", "Add.", "plain"),), {"plain": Layout("{question}", "Sum:")}
    def load(self):
        return [Example(str(n), f"{n} + {n}", str(2 * n)) for n in range(9)]
    def extract(self, text, example, strict=True):
        return text.strip() or None

class Needs(Parity):
    def __init__(self, path):
        self.path = path

def breaks():
    raise RuntimeError("no disk\\nno data")

number = 5
wrong_kind = changed(kind="regression")
no_templates = changed(templates=())
twin_templates = changed(templates=(Template("a", "x"), Template("a", "y")))
no_budget = changed(kind="generation")
no_score = changed(score=None)
no_same = changed(same=True)
no_rows = changed(examples=lambda: [])
not_rows = changed(examples=lambda: iter([]))
dict_rows = changed(examples=lambda: [{"question": "q"}])
twins = changed(examples=lambda: [Example("a", "q", "even", ("even", "odd"))] * 2)
one_choice = changed(examples=lambda: [Example("a", "q", "even", ("even",))])
no_gold = changed(examples=lambda: [Example("a", "q", "both", ("even", "odd"))])
int_answer = changed(examples=lambda: [Example("a", "q", 3, ("even", "odd"))])
exits = changed(examples=lambda: sys.exit(0))
text_prompt = changed(prompt=lambda example, template: "Even?")
empty_prompt = changed(prompt=lambda example, template: Prompt(()))
short_choices = changed(prompt=lambda example, template: Prompt((), "Even?", (" yes",)))
number_choices = changed(prompt=lambda example, template: Prompt((), "Even?", (1, 2)))
number_text = changed(prompt=lambda example, template: Prompt((), 5, (" yes", " no")))
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A user's module in the working directory, which is not on the path of a console script."""
    (tmp_path / "my_tasks_under_test.py").write_text(MODULE)
    (tmp_path / "broken_under_test.py").write_text("def f(:\n")
    (tmp_path / "needy_under_test.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield "my_tasks_under_test"
    for name in ("my_tasks_under_test", "broken_under_test", "needy_under_test"):
        sys.modules.pop(name, None)


def refused(spec: str) -> str:
    with pytest.raises(InputError) as caught:
        load_task(spec)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(("task '", 'task "'))
    return message


@pytest.mark.parametrize("attribute", ["task", "make", "Parity", "Holder.inner"])
def test_a_users_task(module: str, attribute: str) -> None:
    before = list(sys.path)
    task = load_task(f"{module}:{attribute}")
    assert task.name == "parity" and len(task.examples()) == 9
    assert sys.path == before


def test_a_users_task_is_called_with_literals(module: str) -> None:
    assert len(load_task(f"{module}:Few(3)").examples()) == 3
    spec = f"{module}:Few(count=4, names=['a(b', 'c,d'])"
    assert load_task(spec).names == ["a(b", "c,d"] and names_code(spec)  # pyright: ignore[reportAttributeAccessIssue]
    sums = load_task(f"{module}:Sums")
    first = sums.examples()[1]
    assert sums.prompt(first, sums.templates[0]).messages[0]["content"] == "Add.\n\n1 + 1" and sums.score("2.0", first) == 1
    assert "calling it with these arguments failed (TypeError" in refused(f"{module}:Few(3, 4)")
    assert "task is a Parity, which takes no arguments" in refused(f"{module}:task(3)")
    code = ("(open('x'))", "(__import__('os'))", "(n)", "(*[1])", "(**{'count': 1})")
    for arguments in (*code, "(1", "(1) + (2)", "(1)(2)", "(1).x(2)", "(1))", "(" + "[" * 5000 + ")"):
        message = refused(f"{module}:Few{arguments}")
        assert "its arguments must be" in message or "not a task name" in message, message


def test_a_users_task_in_a_file(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my tasks"
    folder.mkdir()
    (folder / "beside_under_test.py").write_text("from my_tasks_under_test import Few\n")
    (folder / "json.py").write_text("from beside_under_test import Few\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert len(load_task("my tasks/json.py:Few(2)").examples()) == 2
    assert len(load_task(f"{folder}/json.py:Few(5)").examples()) == 5
    assert importlib.import_module("json").loads("1") == 1 and names_code("my tasks/json.py:Few(2)")
    assert refused("my tasks/json.py").endswith("Write its name after a colon: my tasks/json.py:my_task")
    message = refused("my tasks/jsn.py:Few")
    assert f"there is no file {folder / 'jsn.py'}" in message
    (folder / "bad.py").write_text("1 / 0\n")
    assert "importing my tasks/bad.py failed (ZeroDivisionError" in refused("my tasks/bad.py:Few")
    sys.modules.pop("beside_under_test")


@pytest.mark.parametrize(
    ("attribute", "complaint"),
    [
        ("Bare", "Bare is not a Task: kind is missing"),
        ("Bare", "method vote_key() is missing"),
        ("number", "int is not a Task: name is missing"),
        ("wrong_kind", 'kind must be "choice" or "generation"'),
        ("no_templates", "templates must be a non-empty tuple of Template with unique names"),
        ("twin_templates", "templates must be a non-empty tuple of Template with unique names"),
        ("no_budget", "max_new_tokens must be 1 or more for a generation task"),
        ("no_score", "method score() is missing"),
        ("no_same", "same must be a method same(a, b, example), or left out"),
        ("no_rows", "examples() must return a non-empty sequence of Example"),
        ("not_rows", "examples() must return a non-empty sequence of Example, not list_iterator"),
        ("dict_rows", "example 0: dict where perturbjax.tasks.Example is required"),
        ("twins", "example 1: the id 'a' occurs twice"),
        ("one_choice", "example 0: a choice task needs at least two choices"),
        ("no_gold", "example 0: the answer 'both' is not one of its choices"),
        ("int_answer", "example 0: id, question, answer and choices must be strings"),
        ("exits", "examples() failed (SystemExit: 0); correct the task"),
        ("text_prompt", "template 'plain': prompt() of example '0' returned str"),
        ("empty_prompt", "template 'plain': prompt() of example '0' returned an empty prompt"),
        ("short_choices", "template 'plain': prompt() of example '0' returned 1 choices for the 2 of the example"),
        ("number_choices", "template 'plain': prompt() of example '0' returned choices that are not texts"),
        ("number_text", "template 'plain': prompt() of example '0' returned a prompt whose text, messages and choices"),
        ("Needs", "calling it without arguments failed (TypeError:"),
        ("breaks", "calling it without arguments failed (RuntimeError: no disk no data)"),
        ("tusk", "has no attribute tusk; did you mean task?"),
        ("Holder.outer", "has no attribute Holder.outer"),
    ],
)
def test_a_users_task_that_breaks_the_contract(module: str, attribute: str, complaint: str) -> None:
    message = refused(f"{module}:{attribute}")
    assert message.startswith(f"task '{module}:{attribute}': ") and complaint in message


def test_os_exit_ends_a_process_that_a_task_forked_and_none_other(monkeypatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(checked, "_LEAVE", ended.append)
    with checked.exits_raised():
        with pytest.raises(SystemExit, match=r"os\._exit\(3\)"):
            os._exit(3)
        monkeypatch.setattr(os, "getpid", lambda: 0)
        with pytest.raises(SystemExit):  # the recorder returns, where the real one does not
            os._exit(4)
    assert ended == [4]
    monkeypatch.undo()
    os._exit = checked._LEAVE


@pytest.mark.parametrize("kind", ["choice", "generation"])
@pytest.mark.parametrize(
    ("method", "code", "complaint"),
    [
        ("prompt", "1 / 0", "template 'plain': prompt() of example '3' failed (ZeroDivisionError: division by zero); correct the task"),
        ("extract", "text[99]", "extract() of example '3' failed (IndexError: string index out of range)"),
        ("extract", "5", "extract() of example '3' returned int, a text or None is required"),
        ("score", "sys.exit(0)", "score() of example '3' failed (SystemExit: 0)"),
        ("score", "os._exit(0)", "score() of example '3' failed (SystemExit: os._exit(0))"),
        ("score", "1.5", "score() of example '3' returned 1.5, a number from 0 to 1 is required"),
        ("score", "float('nan')", "score() of example '3' returned nan, a number from 0 to 1 is required"),
        ("score", "'1'", "score() of example '3' returned '1', a number from 0 to 1 is required"),
        ("score", "None", "score() of example '3' failed (TypeError: float() argument"),
        ("vote_key", "['even']", "vote_key() of example '3' returned list, a text is required"),
        ("vote_key", "{}['a']", "vote_key() of example '3' failed (KeyError: 'a')"),
    ],
)
def test_what_a_users_task_does_to_an_example_is_checked(kind, method, code, complaint, module, tmp_path) -> None:
    shown = {
        "prompt": "example, template",
        "extract": "text, example, strict=True",
        "score": "answer, example",
        "vote_key": "answer, example",
    }
    inherited = ", ".join(word.split("=")[0] for word in shown[method].split(", "))
    body = f"({code}) if example.id == '3' else super().{method}({inherited})"
    source = (
        f"class Bad(Parity):\n    kind, max_new_tokens = {kind!r}, {int(kind == 'generation')}\n    def {method}(self, {shown[method]}):\n"
    )
    Path(f"{module}.py").write_text(f"{MODULE}\n{source}        return {body}\n")
    task = load_task(f"{module}:Bad")
    examples = task.examples()
    good = [e for e in examples if e.id != "3"]
    answers, keys, scores = grade(task, good, [["even"] * 8], np.array([True]))
    assert answers == keys == [["even"] * 8] and scores.tolist() == [[[1, 0, 1, 1, 0, 1, 0, 1]]] * 2
    if kind == "choice" and method == "extract":
        return  # a choice is its own answer
    with pytest.raises(InputError) as caught:
        _ = [task.prompt(example, task.templates[0]) for example in examples]
        grade(task, examples, [["even"] * 9], np.array([True]))
    assert str(caught.value).startswith(f"task '{module}:Bad': {complaint}"), caught.value


def test_a_users_comparison_is_checked(module: str) -> None:
    body = "{}['a'] if example.id == '3' else a[0] == b[0] if example.id == '2' else a[0] in b and 'yes'"
    Path(f"{module}.py").write_text(f"{MODULE}\nclass Pairs(Parity):\n    def same(self, a, b, example):\n        return {body}\n")
    task = load_task(f"{module}:Pairs", None)
    assert AnswerGroups(task).task is task
    by_id = {example.id: example for example in task.examples()}
    groups = AnswerGroups(task)
    assert [groups.key(answer, answer, by_id["2"]) for answer in ("even", "odd", "eve")] == ["even", "odd", "even"]
    for number, complaint in (("3", "failed (KeyError: 'a')"), ("4", "returned str, True or False is required")):
        with pytest.raises(InputError) as caught:
            [groups.key(answer, answer, by_id[number]) for answer in ("even", "e")]
        assert str(caught.value) == f"task '{module}:Pairs': same() of example '{number}' {complaint}; correct the task"


def test_modules_that_cannot_be_imported(module: str) -> None:
    assert "importing no_such_module_here failed (ModuleNotFoundError" in refused("no_such_module_here:task")
    assert "importing broken_under_test failed (SyntaxError" in refused("broken_under_test:f")
    assert "No module named 'a_package_that_is_not_there'" in refused("needy_under_test:task")
    for spec in ("a b:c", ":task", "module:", "C:/tasks/mine", "os:path:join", "../up:task"):
        assert "not a task name, a path.jsonl, module:attribute" in refused(spec)


@pytest.mark.parametrize("spec", ["", "sst", "SST2", "gsm8", "imdb", "mine.json", "path/to/rows.csv"])
def test_an_unknown_name_lists_the_names(spec: str) -> None:
    message = refused(spec)
    assert "unknown task" in message
    for name in ("sst2", "boolq", "rte", "arc_easy", "mmlu:<subject>", "gsm8k", "arithmetic", "countdown"):
        assert name in message


def test_near_names_come_first() -> None:
    assert "use one of gsm8k," in refused("gsm8")
    assert "use one of arithmetic," in refused("aritmetic")
    message = refused("mmlu:anatomi")
    assert "unknown subject; use one of anatomy, " in message
    assert all(subject in message for subject in SUBJECTS)
    assert "abstract_algebra" in refused("mmlu") and "abstract_algebra" in refused("mmlu:")


def test_every_name_loads() -> None:
    for name in TASK_NAMES:
        assert load_task(name).name == name
