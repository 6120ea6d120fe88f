"""What reads a model's reply takes time linear in its length: 100 kB of anything, adversarial text included, in under 50 ms."""

import time
from collections.abc import Callable
from itertools import cycle

import pytest

from perturbjax.tasks import Example
from perturbjax.tasks.arithmetic import Arithmetic
from perturbjax.tasks.countdown import Countdown
from perturbjax.tasks.gsm8k import Gsm8k
from perturbjax.tasks.jsonl import JsonlGeneration
from perturbjax.tasks.math500 import Math500
from perturbjax.tasks.programs import Mbpp
from perturbjax.tasks.safe_eval import evaluate

SIZE = 100_000
LIMIT = 0.05  # seconds for SIZE characters, on a machine of ordinary speed
PIECES = (
    *("1", "a", " ", "\n", "\t", "-", ".", ",", "#", "(", ")", "$", "\u00a0", "\u2212", "\ud7ff", "\U0001f600", "\\"),
    *("1,111", ",111", "1,", "1.1", "-1", "$1", "1 ", "1\n", "0", "1,111,1111", ".1", "1e1"),
    *("answer", "answer is ", "answer is\n", "answer is: 3\n", "Answer:", "Answer: 5\n", "answer ::", "is ", "answer x is"),
    *("\n ", "\n\t ", "\nQuestion", "\n  Question:", "#### ", "####\n", "#### 3 + 4\n", "#### $1,1", "*", "_", "**1**", "the ", "an "),
    *(
        "<answer>",
        "</answer>",
        "<answer>1",
        "<answer></answer>",
        "<",
        "1+2+3 x",
        "1 2 3 x",
        "(1+2)*3 x",
        "((1",
        "1)+",
        "1/0 ",
        "x=3 ",
        "1+2*3\n",
    ),
    *("```\n", "```", "```python\ndef f():\n", "def f", "def f():\n    x\n", "\n    ", "import a\n", "from a import", "x=\n", "async "),
    *("\\boxed{", "\\boxed{1}", "{", "}", "$", "$a", "$a$", "answer is $", "\\text{", "\\text{a}", "^", "\\left", "\nProblem"),
)
ENDS = (("", ""), ("1", "x"), ("answer", "1111"), ("####", "\n"), ("<answer>", "</answer>"), ("\n", "Question:"), ("the", ""))
TEXTS = [head + piece * (SIZE // len(piece)) + tail for (head, tail), piece in zip(cycle(ENDS), PIECES, strict=False)]
EXAMPLE = Example("e", "q", "6", fields={"numbers": (1, 2, 3), "target": 6})
WORDS = JsonlGeneration("words", "", (Example("e", "q", "red"),))
EXACT = JsonlGeneration("exact", "", (Example("e", "q", "CC(=O)O", fields={"match": "exact"}),))
NUMBERS = JsonlGeneration("numbers", "", (EXAMPLE,))
READERS: dict[str, Callable[[str], object]] = {"evaluate": evaluate}
for task in (Countdown(), Gsm8k(), Arithmetic(), Mbpp(), Math500(), WORDS, EXACT, NUMBERS):
    READERS[f"strict {task.name}"] = lambda text, task=task: task.extract(text, EXAMPLE)
    READERS[f"lenient {task.name}"] = lambda text, task=task: task.extract(text, EXAMPLE, strict=False)
    READERS[f"key {task.name}"] = lambda text, task=task: task.vote_key(text, EXAMPLE)


def seconds(read, text):
    """CPU seconds of a reading: the best of three, or the first that is below the limit."""
    taken = []
    while len(taken) < 3 and (not taken or min(taken) >= LIMIT):  # again where another process was in the way
        start = time.process_time()
        read(text)
        taken.append(time.process_time() - start)
    return min(taken)


@pytest.mark.parametrize("name", READERS)
def test_replies_are_read_in_linear_time(name):
    for text in TEXTS:
        taken = seconds(READERS[name], text)
        if taken >= LIMIT:  # a slow machine, or a reader that is not linear: on half the text it would take a quarter of the time
            half = seconds(READERS[name], text[: SIZE // 2])
            assert taken < 10 * LIMIT and taken < 3 * half, (taken, half, text[:40])
