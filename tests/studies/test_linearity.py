"""Linearity: predictions against finite differences through the engine; r against numpy; the command."""

import json

import numpy as np
import pytest
from support.chapter import call
from support.cli_tiny import MODEL, write_questions
from support.toy import one_batch_size

from perturbjax.errors import InputError
from perturbjax.studies import linearity


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    one_batch_size(monkeypatch)


def test_r_and_slope_are_numpys():
    x, noise = np.random.default_rng(0).normal(size=(2, 30))
    y = 2 * x + noise + 5
    row = linearity.row_of("all", 0.1, x, y)
    assert row.r.value == pytest.approx(np.corrcoef(x, y)[0, 1]) and row.slope == pytest.approx(np.polyfit(x, y, 1)[0])
    assert row.mean == pytest.approx(y.mean()) and row.r.above
    still = linearity.row_of("all", 0.1, x, np.zeros(30))
    assert (still.r.value, still.slope) == (0, 0) and not still.r.above
    with pytest.raises(InputError, match=r"`sigmas` 9: gives log-odds that are not finite with noise in mlp; lower it"):
        linearity.row_of("mlp", 9.0, x, np.where(x > 0, y, np.nan))


def test_the_command(tmp_path, capsys):
    questions = write_questions(tmp_path / "even.jsonl", 12)
    arguments = ["--model", str(MODEL), "--task", str(questions), "--groups", "mlp", "--sigmas", "0.0001,0.001"]
    arguments = ["study", "linearity", *arguments, "--candidates", "5", "--questions", "4", "--out", str(tmp_path)]
    code, out, err = call(arguments, capsys)
    assert code == 0, err
    rows = json.loads((tmp_path / "linearity.json").read_text())["results"]["rows"]
    assert [(row["group"], row["sigma"]) for row in rows] == [("mlp", 1e-4), ("mlp", 1e-3)]
    # Small noise, measured through the engine: a finite difference, which the backward pass must predict.
    assert rows[0]["r"]["value"] > 0.99 and rows[0]["slope"] == pytest.approx(1, abs=0.05)
    np.testing.assert_allclose(np.array(rows[1]["predicted"]), 10 * np.array(rows[0]["predicted"]), rtol=1e-5)
    assert (tmp_path / "linearity.png").exists() and "One backward pass predicts" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "arithmetic"], "--task arithmetic: a multiple-choice task is required"),
        (["--candidates", "3"], "--candidates 3: at least 4 are required"),
        (["--groups", "head"], "--groups head: some of all,embedding"),
        (["--sigmas", "0.1,-1"], "--sigmas -1.0: each must be positive"),
        (["--mesh", "1x2"], "--mesh, --coordinator: the backward pass of this study is made on one device"),
        (["--questions", "0"], "--questions 0: an integer"),
        (["--seed", "-1"], "--seed -1: an integer"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(["study", "linearity", "--model", str(MODEL), *arguments], capsys)
    assert (code, out) == (2, ""), err
    assert err.splitlines()[-1].startswith("perturbjax: error: ") and message in err.splitlines()[-1]
