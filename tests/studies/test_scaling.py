"""N and K curves and the diagnosis of a vote, against loops; the command on a search."""

import json

import numpy as np
import pytest
from support.chapter import call
from support.searched import searched_parts, searched_run
from support.toy import one_batch_size

from perturbjax.inference.outputs import Outputs
from perturbjax.randopt.voting import vote
from perturbjax.studies import scaling

SCORES = np.array([[1, 0, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0], [1, 1, 0, 0]], np.float32)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    one_batch_size(monkeypatch)
    monkeypatch.setattr(scaling, "RESAMPLES", 20)


def test_more_candidates_keep_more_only_where_they_differ():
    generator = np.random.default_rng(0)
    skills = np.clip(generator.normal(0.5, 0.15, 64), 0, 1)
    for spread, chances in ((True, skills), (False, np.full(64, 0.5))):
        scores = (generator.random((64, 200)) < chances[:, None]).astype(np.float32)
        gains = [scaling.kept(scores, n, 4, 0) for n in scaling.prefixes(64, 4)]
        assert (gains[-1].value > gains[0].value + 0.1 and gains[-1].above) == spread
        assert spread or abs(gains[-1].value) < 0.03
    # Whoever wins one kind of question loses the other: all are as good, and the best of one half are the worst of the other.
    traded = ((skills > 0.5)[:, None] == (np.arange(20) < 10)).astype(np.float32)
    assert scaling.kept(traded, 64, 4, 0).below
    assert scaling.kept(np.tile(skills[:, None] > 0.5, (1, 4)), 64, 1, 0).value == pytest.approx(1 - (skills > 0.5).mean())


def test_a_diagnosis_is_that_of_a_loop_and_splits_a_difference_exactly():
    generator, found = np.random.default_rng(3), []
    for right in (0.6, 0.1):
        gold = generator.integers(0, 4, 300)
        given = np.where(generator.random((5, 300)) < right, gold, generator.integers(0, 4, (5, 300)))
        answers = tuple(tuple(map(str, row)) for row in given)
        scores = (given == gold).astype(np.float32)
        curve, diagnosis = scaling.diagnose(Outputs(answers, answers, scores, scores, np.ones(5, np.int64), 0.0, 0))
        votes = np.array([vote([row[b] for row in answers]) == str(gold[b]) for b in range(300)])
        np.testing.assert_array_equal(curve[-1], votes)
        np.testing.assert_array_equal(curve[0], scores[0])
        for m in range(6):
            mine = scores.sum(0) == m
            assert diagnosis.p[m] == mine.mean() and diagnosis.q[m] == (votes[mine].mean() if mine.any() else None)
        assert diagnosis.accuracy == pytest.approx(votes.mean())
        found.append(diagnosis)
    support, voting = scaling.shares(*found)
    assert support + voting == pytest.approx(found[0].accuracy - found[1].accuracy) and support > abs(voting)
    assert scaling.shares(found[0], found[0]) == (0, 0)


def test_the_command_on_a_search(tmp_path, capsys):
    run = tmp_path / "run"
    searched_run(searched_parts(tmp_path), run, SCORES)
    code, out, err = call(["study", "scaling", str(run), "--top-k", "2", "--out", str(tmp_path / "made")], capsys)
    assert code == 0, err
    results = json.loads((tmp_path / "made" / "scaling.json").read_text())["results"]
    assert {(row["n"], row["k"]) for row in results["recorded"]} == {(3, 1), (3, 2), (6, 1), (6, 2)}
    assert [(vote["n"], vote["k"], vote["random"]) for vote in results["votes"]] == [
        (3, 2, False),
        (6, 1, False),
        (6, 2, False),
        (6, 1, True),
        (6, 2, True),
    ]
    votes = {(vote["n"], vote["k"], vote["random"]): vote["accuracy"]["value"] for vote in results["votes"]}
    assert results["support"] + results["voting"] == pytest.approx(votes[6, 2, False] - votes[6, 2, True])
    assert results["asked"] == 5 and (tmp_path / "made" / "scaling.png").exists() and "3 best of" not in out and "2 best of 3" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top-k", "4"], "--top-k 4: 6 candidates of"),
        (["--top-k", "0"], "--top-k 0: an integer of at least 1 is required"),
        (["--questions", "0"], "--questions 0: an integer"),
        (["--seed", "-1"], "--seed -1: an integer from 0"),
        (["--top-k", "2", "--mesh", "64x1"], "--mesh 64x1: "),
        (["--out", "RUN/inside"], "lies in the run directory"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path, capsys):
    run = tmp_path / "run"
    searched_run(searched_parts(tmp_path), run, SCORES)
    code, out, err = call(["study", "scaling", str(run), *(word.replace("RUN", str(run)) for word in arguments)], capsys)
    assert (code, out) == (2, ""), err
    assert err.splitlines()[-1].startswith("perturbjax: error: ") and message in err.splitlines()[-1]
    code, out, err = call(["study", "scaling"], capsys)
    assert (code, out) == (2, "") and "required" in err
