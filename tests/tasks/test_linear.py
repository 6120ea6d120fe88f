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
from perturbjax.tasks.safe_eval import evaluate

SIZE = 100_000
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
)
ENDS = (("", ""), ("1", "x"), ("answer", "1111"), ("####", "\n"), ("<answer>", "</answer>"), ("\n", "Question:"), ("the", ""))
TEXTS = [head + piece * (SIZE // len(piece)) + tail for (head, tail), piece in zip(cycle(ENDS), PIECES, strict=False)]
EXAMPLE = Example("e", "q", "6", fields={"numbers": (1, 2, 3), "target": 6})
WORDS = JsonlGeneration("words", "", (Example("e", "q", "red"),))
NUMBERS = JsonlGeneration("numbers", "", (EXAMPLE,))
READERS: dict[str, Callable[[str], object]] = {"evaluate": evaluate}
for task in (Countdown(), Gsm8k(), Arithmetic(), WORDS, NUMBERS):
    READERS[f"strict {task.name}"] = lambda text, task=task: task.extract(text, EXAMPLE)
    READERS[f"lenient {task.name}"] = lambda text, task=task: task.extract(text, EXAMPLE, strict=False)
    READERS[f"key {task.name}"] = lambda text, task=task: task.vote_key(text, EXAMPLE)


@pytest.mark.parametrize("name", READERS)
def test_replies_are_read_in_linear_time(name):
    slowest = (0.0, "")
    for text in TEXTS:
        taken = []
        while len(taken) < 3 and (not taken or min(taken) >= 0.05):  # again where another process was in the way
            start = time.process_time()
            READERS[name](text)
            taken.append(time.process_time() - start)
        slowest = max(slowest, (min(taken), text[:40]))
    print(slowest)
    assert slowest[0] < 0.05, slowest
