"""Screening: recall and gain on made figures; the command, whose products a small noise must confirm; bad input."""

import json

import numpy as np
import pytest
from support.chapter import call
from support.cli_tiny import MODEL, write_questions
from support.toy import one_batch_size

from perturbjax.studies import screening


def test_recall_counts_ties_by_the_places_that_are_left():
    products = np.arange(8.0)
    assert screening.recall(products, products, 2, 0.25) == 1 and screening.recall(-products, products, 2, 0.25) == 0
    tied = np.array([0, 0, 0, 0, 1, 1, 1, 1.0])  # K = 2 of four that tie: two of them are kept
    assert screening.recall(products, tied, 2, 0.25) == 0.5 and screening.recall(products, np.zeros(8), 2, 0.5) == 0.5


def test_a_screening_that_knows_nothing_has_chance_recall_and_no_gain():
    generator = np.random.default_rng(0)
    products, changes = generator.normal(size=400), generator.normal(size=440)
    row = screening.row_of(screening.Config(top_k=80), "other", "accuracy", products, changes)
    assert [abs(each.value - share) < 0.15 for each, share in zip(row.recall, screening.KEPT, strict=True)] == [True, True]
    assert row.r is not None and not row.r.above and not row.gain.above and row.gain.interval[0] < row.gain.value < row.gain.interval[1]
    better = screening.row_of(screening.Config(top_k=80), "other", "accuracy", products, np.r_[changes[:400], changes[400:] + 2])
    assert better.gain.above and better.gain.value == pytest.approx(row.gain.value + 2)


def test_candidates_that_all_change_alike_have_no_correlation():
    row = screening.row_of(screening.Config(), "other", "accuracy", np.arange(24.0), np.full(32, -0.25))
    assert row.r is None and row.r_words == "undefined" and row.gain.value == 0


def test_the_command(tmp_path, capsys, monkeypatch):
    one_batch_size(monkeypatch)
    questions = write_questions(tmp_path / "even.jsonl", 12)
    arguments = [
        "--model",
        str(MODEL),
        "--task",
        str(questions),
        "--sigma",
        "0.001",
        "--group",
        "mlp",
        "--population",
        "100",
        "--candidates",
        "10",
    ]
    arguments = ["study", "screening", *arguments, "--promising", "3", "--top-k", "2", "--questions", "4", "--out", str(tmp_path)]
    code, out, err = call(arguments, capsys)
    assert code == 0, err
    results = json.loads((tmp_path / "screening.json").read_text())["results"]
    seen = next(row for row in results["rows"] if (row["questions"], row["measure"]) == ("gradient", "log-odds"))
    # Small noise: the engine's own change is the predicted one, for random and promising candidates.
    predicted = np.array(results["random_products"] + results["promising_products"])
    np.testing.assert_allclose(seen["random"] + seen["promising"], predicted, rtol=0.1, atol=0.1 * results["deviation"])
    assert seen["r"]["value"] > 0.99 and [each["value"] for each in seen["recall"]] == [1, 1] and seen["gain"]["interval"][0] > 0
    assert results["cost"]["formula"] > 0 and results["cost"]["seconds"] > 0
    assert (tmp_path / "screening.png").exists() and "The gradient predicts log-odds with r" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "arithmetic"], "--task arithmetic: a multiple-choice task is required"),
        (["--candidates", "7"], "--candidates 7: at least 8 are required"),
        (["--top-k", "24"], "--top-k 24: fewer than the 24 --candidates"),
        (["--population", "31"], "--population 31: at least 32 are required"),
        (["--population", str(2**33)], f"--population {2**33}: at most 2147483647 is required"),
        (["--sigma", "0"], "--sigma 0.0: each must be positive"),
        (["--group", "head"], "--group head: one of all, embedding"),
        (["--rank", "0"], "--rank 0: an integer"),
        (["--rank", "4000"], "--rank 4000: no matrix"),
        (["--mesh", "1x2"], "--mesh, --coordinator: the backward pass"),
        (["--objective", "loss"], "loss"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(["study", "screening", "--model", str(MODEL), *arguments], capsys)
    assert (code, out) == (2, ""), err
    assert message in err and list(tmp_path.iterdir()) == []
