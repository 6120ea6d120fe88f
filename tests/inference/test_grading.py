"""Grading against a loop over every reply, and how often the task's own code is asked."""

from collections import Counter

import numpy as np
import pytest
from support.numpy_engine import ColorTask

from perturbjax.inference import outputs
from perturbjax.inference.fingerprint import task_fingerprint
from perturbjax.inference.outputs import grade


class CountingTask(ColorTask):
    """Counts what it is asked; a hesitant reply is half right."""

    def __init__(self, kind):
        super().__init__(kind, count=6)
        self.asked: Counter = Counter()

    def extract(self, text, example, strict=True):
        self.asked["extract", example.id, text, strict] += 1
        return super().extract(text, example, strict)

    def score(self, answer, example):
        self.asked["score", example.id, answer] += 1
        return 0.25 if answer is None else super().score(answer, example)


@pytest.mark.parametrize("kind", ["choice", "generation"])
def test_every_reply_is_graded_as_by_itself_and_equal_ones_once(kind):
    task, naive, rng = CountingTask(kind), ColorTask(kind, count=6), np.random.default_rng(0)
    examples, words = task.examples(), ["red", "RED", "green", "blue?", "red?"]
    texts = [[str(word) for word in rng.choice(words, 6)] for _ in range(30)]
    finite = rng.random(30) < 0.8
    answers, keys, scores = grade(task, examples, texts, finite)
    for m, replies in enumerate(texts):
        for b, example in enumerate(examples):
            loose = replies[b] if finite[m] else None
            strict = loose
            if loose is not None and kind == "generation":
                strict, loose = naive.extract(replies[b], example), naive.extract(replies[b], example, strict=False)
            assert answers[m][b] == strict and keys[m][b] == (None if strict is None else naive.vote_key(strict, example))
            expected = [0.25 if each is None else naive.score(each, example) for each in (strict, loose)]
            assert scores[:, m, b].tolist() == expected
    if kind == "generation":
        assert {task.asked[key] for key in task.asked if key[0] == "extract"} == {1}
    distinct = len({(b, text if finite[m] else None) for m, row in enumerate(texts) for b, text in enumerate(row)})
    calls = sum(count for key, count in task.asked.items() if key[0] == "score")
    assert calls == distinct * (2 if kind == "generation" else 1)
    assert scores.dtype == np.float32 and scores.shape == (2, 30, 6)


def test_what_earlier_chunks_said_is_not_graded_again(monkeypatch):
    task = CountingTask("generation")
    examples, worths = task.examples(), [{} for _ in range(6)]
    texts = [["red"] * 6, ["green?"] * 6, ["blue"] * 6]
    first = grade(task, examples, texts[:2], np.ones(2, bool), worths)
    asked = sum(task.asked.values())
    again = grade(task, examples, texts[:2], np.ones(2, bool), worths)
    assert first[:2] == again[:2] and np.array_equal(first[2], again[2]) and sum(task.asked.values()) == asked
    grade(task, examples, texts, np.ones(3, bool), worths)
    assert sum(task.asked.values()) == asked * 3 / 2
    monkeypatch.setattr(outputs, "REMEMBERED", 1)
    few = [{} for _ in range(6)]
    assert grade(task, examples, texts, np.ones(3, bool), few)[0] == [["red"] * 6, [None] * 6, ["blue"] * 6]
    assert [list(each) for each in few] == [["red"]] * 6  # memory is bounded


def test_a_version_is_part_of_what_a_task_is_known_by():
    task = ColorTask("generation", count=6)
    first = task_fingerprint(task, task.examples())
    assert task_fingerprint(task, task.examples()) == first != task_fingerprint(task, task.examples()[:5])
    task.version = 2  # pyright: ignore[reportAttributeAccessIssue]
    assert task_fingerprint(task, task.examples()) != first
