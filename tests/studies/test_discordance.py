"""Discordance against scipy, on scores whose discordance is known, and through the command."""

import json

import numpy as np
import pytest
from scipy.stats import spearmanr
from support.chapter import call
from support.cli_tiny import MODEL, write_questions
from support.toy import one_batch_size

from perturbjax.studies import discordance

CONFIG = discordance.Config(tasks=("a", "b", "c"))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    one_batch_size(monkeypatch)
    monkeypatch.setattr(discordance, "RESAMPLES", 50)
    monkeypatch.setattr(discordance, "SPLITS", 10)


def drawn(skills: np.ndarray, questions: int) -> np.ndarray:
    """Right-or-wrong scores (M, N, D) of skills (M, N)."""
    return (np.random.default_rng(1).random((*skills.shape, questions)) < skills[..., None]).astype(np.float64)


def test_d_is_one_less_the_mean_rank_correlation():
    scores = drawn(np.random.default_rng(0).random((3, 20)), 12)
    found = discordance.measure(CONFIG, "m", [0.5] * 3, scores)
    expected = np.asarray(spearmanr(scores.mean(2).T))[0]
    np.testing.assert_allclose(found.correlations, expected, atol=1e-9)
    assert found.discordance.value == pytest.approx(1 - expected[~np.eye(3, dtype=bool)].mean())
    assert found.discordance.interval[0] < found.discordance.value < found.discordance.interval[1]


@pytest.mark.parametrize(("shared", "above"), [(True, False), (False, True)])
def test_noise_is_no_discordance(shared, above):
    """Few questions: D is large for one ranking too, but then halves of one task disagree as much."""
    generator = np.random.default_rng(2)
    skills = np.tile(generator.random(60), (3, 1)) if shared else generator.random((3, 60))
    found = discordance.measure(CONFIG, "m", [0.5] * 3, drawn(skills, 8))
    assert found.discordance.value > 0.2 and found.excess.above == above
    assert found.excess.value == pytest.approx(found.across.value - found.within.value)
    assert ("more than noise makes by" in found.sentence) == above


def test_a_task_without_a_ranking_is_named_and_counts_as_no_correlation():
    scores = drawn(np.random.default_rng(0).random((3, 20)), 12)
    scores[1] = 1
    found = discordance.measure(CONFIG, "m", [0.5] * 3, scores)
    assert found.correlations[1] == (0, 0, 0) and found.sentence.endswith("On b all candidates score the same.")


def test_the_command(tmp_path, capsys):
    tasks = [str(write_questions(tmp_path / f"{name}.jsonl", 12)) for name in ("one", "two")]
    arguments = ["--model", str(MODEL), "--tasks", ",".join(tasks), "--candidates", "4", "--questions", "4", "--sigma", "0.3"]
    code, out, err = call(["study", "discordance", *arguments, "--out", str(tmp_path / "made")], capsys)
    assert code == 0, err
    results = json.loads((tmp_path / "made" / "discordance.json").read_text())["results"]
    # The same questions twice, in one order: one ranking.
    assert results["tasks"][0]["scores"] == results["tasks"][1]["scores"] and len(results["tasks"][0]["scores"]) == 4
    assert (tmp_path / "made" / "discordance.png").exists() and "D                       " in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "sst2"], "--tasks sst2: at least 2 are required, each once"),
        (["--tasks", "sst2,sst2"], "--tasks sst2,sst2: at least 2"),
        (["--tasks", "sst2,nowhere"], "nowhere"),
        (["--sigma", "0"], "--sigma 0.0: each must be positive"),
        (["--candidates", "3"], "--candidates 3: at least 4 are required"),
        (["--questions", "100000"], "--questions 100000: task"),
        (["--rank", "0"], "--rank 0: an integer"),
        (["--seed", "-1"], "--seed -1: an integer"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tasks = [] if "--tasks" in arguments else ["--tasks", "sst2,rte"]
    code, out, err = call(["study", "discordance", "--model", str(MODEL), *tasks, *arguments], capsys)
    assert (code, out) == (2, ""), err
    assert err.splitlines()[-1].startswith("perturbjax: error: ") and message in err.splitlines()[-1]
