"""The caulks of heads: kept, answered with and exported; and tasks whose questions have choices of their own."""

import functools
import json
import shutil

import numpy as np
import pytest
from support.chapter import call
from support.paths import FIXTURES

from perturbjax.caulking.cells import read_cells
from perturbjax.caulking.reopen import reopen
from perturbjax.cli import main
from perturbjax.inference import Engine
from perturbjax.noise import Noise
from perturbjax.pretrained import load_model
from perturbjax.tasks import load_task

TIED, WITH_HEAD = FIXTURES / "tiny_llama_tied", FIXTURES / "tiny_llama3"
SETTINGS = ["--seeds", "2", "--test-examples", "8", "--steps", "6", "--batch", "4"]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_questions(path):
    """Of choices of one token each."""
    return write(path, [{"question": f"is {n} odd", "choices": ["a", "b"], "answer": "ab"[n % 2]} for n in range(24)])


def train(questions, base, out, *more, samples="4,8"):
    arguments = [
        "caulking",
        "--base",
        str(base),
        "--target",
        str(questions),
        "--methods",
        "head",
        "--samples",
        samples,
        *SETTINGS,
        "--out",
        str(out),
        *more,
    ]
    assert main(arguments) == 0
    return arguments


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """base -> the folder of questions and of a run on them, and the command of the run."""

    @functools.cache
    def of(base):
        folder = tmp_path_factory.mktemp(base.name)
        questions = write_questions(folder / "odd.jsonl")
        return folder, train(questions, base, folder / "run", "--learning-rates", "0.5", "--sigmas", "0,0.1")

    return of


@pytest.mark.parametrize("base", [TIED, WITH_HEAD])
def test_a_head_is_kept_and_answers_as_it_was_measured(base, trained, tmp_path, capsys):
    folder, _ = trained(base)
    questions, run = folder / "odd.jsonl", folder / "run"
    cell = next(cell for cell in read_cells(run / "cells.parquet") if cell.name == "head-q0.1-n8-s1")
    assert cell.norm > 0 and len(list((run / "caulks").iterdir())) == 8
    code, out, _ = call(["export", str(run), "--cell", cell.name, "--out", str(tmp_path / "model")], capsys)
    assert code == 0 and "merged into it" in out
    exported = load_model(str(tmp_path / "model"))
    assert not exported.config.tied_head
    caulked = reopen(run, cell.name, lambda _: None)
    start = caulked.base.params["head"]["kernel"] if "head" in caulked.base.params else caulked.base.params["embed"]["embedding"].T
    changed = np.flatnonzero(np.any(exported.params["head"]["kernel"] != np.asarray(start), axis=0))
    task = load_task(str(questions))
    choices = task.prompt(caulked.known[0], task.templates[0]).choices
    assert [*map(list, map(exported.tokenizer.encode, choices))] == [[token] for token in changed]
    engine = Engine(exported, task, Noise(), chunk=1)
    tested = caulked.known[-8:]
    scores = engine.run_plain(engine.prepare(tested, task.templates[0])).scores[0]
    assert 1 - scores.mean() == pytest.approx(cell.error)
    asked = write(tmp_path / "asked.jsonl", [{"question": example.question} for example in tested])
    assert call(["predict", str(run), "--cell", cell.name, "--questions", str(asked), "--out", str(tmp_path / "a.jsonl")], capsys)[0] == 0
    answers = [json.loads(line)["answer"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [answer == example.answer for answer, example in zip(answers, tested, strict=True)] == scores.astype(bool).tolist()


def test_a_lost_head_comes_back(trained, tmp_path, capsys):
    folder, arguments = trained(TIED)
    run = shutil.copytree(folder / "run", tmp_path / "run")
    (run / "caulks" / "head-q0-n4-s0.safetensors").unlink()
    arguments = [str(run) if word == str(folder / "run") else word for word in arguments]
    assert call([*arguments, "--resume"], capsys)[0] == 0
    for path in (folder / "run" / "caulks").iterdir():
        assert path.read_bytes() == (run / "caulks" / path.name).read_bytes()


PAIRS = """
import itertools
from perturbjax.tasks.base import Example, Prompt, Template

class Pairs:
    name, kind, templates, max_new_tokens, source = "pairs", "choice", (Template("plain", "First?"),), 1, "made here"

    def examples(self):
        return [Example(a + b, f"{a} or {b}", a, (a, b)) for a, b in itertools.pairwise("abcdfimoprstw")]

    def prompt(self, example, template):
        return Prompt((), example.question, tuple(f" {choice}" for choice in example.choices))

    def extract(self, text, example, strict=True):
        return text

    def score(self, answer, example):
        return float(answer == example.answer)

    def vote_key(self, answer, example):
        return answer
"""


def test_choices_that_test_questions_alone_have_are_scored_as_themselves(tmp_path):
    """With a rate of nothing a head is the base, whose answers the engine knows."""
    (tmp_path / "my_task.py").write_text(PAIRS)
    task, run = f"{tmp_path / 'my_task.py'}:Pairs", tmp_path / "run"
    train(task, TIED, run, "--learning-rates", "1e-30", samples="2,3")
    cells, caulked = read_cells(run / "cells.parquet"), reopen(run, None, lambda _: None, [task])
    tested = caulked.known[-8:]
    assert {c for each in tested for c in each.choices} - {c for each in caulked.known[:-8] for c in each.choices}
    engine = Engine(caulked.base, caulked.task, Noise(), chunk=1)
    scores = engine.run_plain(engine.prepare(tested, caulked.template)).scores[0]
    assert 0 < scores.mean() < 1 and [cell.error for cell in cells] == pytest.approx([1 - scores.mean()] * len(cells))


def test_a_head_of_the_whole_vocabulary_is_not_kept(tmp_path, capsys):
    run = tmp_path / "run"
    rows = [{"question": f"is {n} even", "choices": ["yes it is", "no it is not"], "answer": "yes it is"} for n in range(24)]
    train(write(tmp_path / "long.jsonl", rows), TIED, run)
    assert not (run / "caulks").exists()
    code, _, err = call(["export", str(run), "--out", str(tmp_path / "out")], capsys)
    assert code == 2 and "caulks of head are not kept; train some of adapter, bitfit, lora" in err.splitlines()[-1]
