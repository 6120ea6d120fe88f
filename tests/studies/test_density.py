"""Density: its figures against loops over halves, what luck and skill look like in it, and both of its commands."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from support.chapter import call
from support.cli_tiny import MODEL, write_questions
from support.searched import searched_parts, searched_run
from support.toy import one_batch_size

from perturbjax.models.noise_groups import GROUPS, decoder_noise
from perturbjax.noise.spec import moving
from perturbjax.studies import density
from perturbjax.tree import derived_seed

CONFIG = density.Config(margins=(0.0, 0.1))
SCORES = np.array([[1, 0, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0], [1, 1, 0, 0]], np.float32)


def drawn(skills: np.ndarray, questions: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of candidates that are right with these probabilities, and of a base that is on half of the questions."""
    scores = np.random.default_rng(seed).random((len(skills), questions)) < skills[:, None]
    return scores.astype(np.float32), (np.arange(questions) % 2).astype(np.float32)


def test_split_halves_are_those_of_a_loop(monkeypatch):
    monkeypatch.setattr(density, "SPLITS", 7)
    scores, base = drawn(np.linspace(0.3, 0.7, 9), 11, 1)
    row = density.measure("all", 0.1, scores, base, CONFIG)
    gains = scores.astype(np.float64) - base
    np.testing.assert_allclose(row.gains, gains.mean(1))
    generator = np.random.default_rng(derived_seed(0, "halves"))
    for level in row.levels:
        generator = np.random.default_rng(derived_seed(0, "halves"))
        chosen, again, others, kept = 0, 0, [], []
        for _ in range(7):
            first = np.zeros(11, bool)
            first[generator.permutation(11)[:5]] = True
            for half in (first, ~first):
                one, other = gains[:, half].mean(1), gains[:, ~half].mean(1)
                picked = one >= level.margin - 1e-9
                chosen, again = chosen + picked.sum(), again + (picked & (other >= level.margin - 1e-9)).sum()
                kept += (other[picked] - other.mean()).tolist()
                others += (other >= level.margin - 1e-9).tolist()
        assert level.repeats == pytest.approx(again / chosen) and level.by_chance == pytest.approx(np.mean(others))
        assert level.kept is not None and level.kept.value == pytest.approx(np.mean(kept))
        assert level.density.value == pytest.approx((gains.mean(1) >= level.margin - 1e-9).mean())


def test_candidates_that_trade_questions_fall_behind_and_the_sentence_says_so():
    scores = ((np.arange(16) % 2)[:, None] == (np.arange(40) < 20)).astype(np.float32)
    row = density.measure("all", 0.1, scores, np.full(40, 0.5, np.float32), density.Config())
    sentence = density.Results(density.Config(), "made", 40, 0.5, (row,)).sentence
    kept = row.levels[0].kept
    assert kept is not None and kept.below and "nowhere clearly ahead" in sentence and "fall clearly behind in 1 of 1 rows" in sentence


def test_luck_is_told_from_skill():
    """Candidates that are all as good as the base look better than it as often as those that are not; only skill is kept."""
    kept, net, measured = ({"luck": [], "skill": []} for _ in range(3))
    for seed in range(10):
        for name, skills in (("luck", np.full(60, 0.5)), ("skill", np.repeat([0.3, 0.7], 30))):
            row = density.measure("all", 0.1, *drawn(skills, 64, seed), replace(CONFIG, margins=(0.05,)))
            (level,) = row.levels
            assert level.kept is not None
            kept[name].append(level.kept)
            net[name].append(level.net)
            measured[name].append(level.density.value)
    assert np.mean([e.value for e in kept["luck"]]) == pytest.approx(0, abs=0.01)
    assert sum(e.above for e in kept["luck"]) <= 2 and all(e.above for e in kept["skill"])
    assert np.mean([e.value for e in kept["skill"]]) == pytest.approx(0.2, abs=0.03)  # half of them gain .2, the mean is 0
    assert np.mean(net["luck"]) < 0.05 and np.mean(measured["luck"]) > 0.15  # 5 points are .8 standard errors of a score


def test_the_net_share_is_that_of_the_skills_where_they_are_normal():
    normal = NormalDist(0.5, 0.12)
    skills = np.array([normal.inv_cdf((i + 0.5) / 60) for i in range(60)])
    net = []
    for seed in range(10):
        (level,) = density.measure("all", 0.1, *drawn(skills, 64, seed), replace(CONFIG, margins=(0.1,))).levels
        net.append(level.net)
    assert np.mean(net) == pytest.approx((skills >= 0.6).mean(), abs=0.03)


def test_the_mean_gain_holds_the_luck_of_the_base(monkeypatch):
    monkeypatch.setattr(density, "RESAMPLES", 2)
    bases = np.random.default_rng(5).random((40, 64)) < 0.5
    found = [density.measure("all", 0.1, drawn(np.full(60, 0.5), 64, seed)[0], base, CONFIG).mean_gain for seed, base in enumerate(bases)]
    assert sum(gain.above or gain.below for gain in found) <= 5


def test_where_all_candidates_are_the_base_all_of_them_tie():
    base = np.array([1, 0, 1, 1], np.float32)
    row = density.measure("all", 0.1, np.tile(base, (5, 1)), base, CONFIG)
    assert (row.tied, row.spread, row.mean_gain.value) == (1, 0, 0)
    assert [(level.density.value, level.net, level.repeats) for level in row.levels] == [(1, 1, 1), (0, 0, None)]
    assert row.levels[0].kept is not None and row.levels[0].kept.value == 0 and row.levels[1].kept is None


def test_groups_share_out_the_parameters_of_a_decoder():
    from perturbjax.pretrained import load_model
    from perturbjax.tree import leaf_paths

    for name in ("tiny_llama3", "tiny_qwen3"):
        params = load_model(str(MODEL.parent / name), "float32").params
        moved = {group: set(moving(params, decoder_noise(scale="rms", rules=GROUPS[group]))) for group in GROUPS}
        parts = [moved[group] for group in GROUPS if group != "all"]
        assert set.union(*parts) == moved["all"] == set(leaf_paths(params)) and sum(map(len, parts)) == len(moved["all"]), name


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    one_batch_size(monkeypatch)


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    return write_questions(tmp_path_factory.mktemp("questions") / "even.jsonl", 24)


def test_of_a_search(tmp_path, capsys):
    parts = searched_parts(tmp_path)
    searched_run(parts, tmp_path / "run", SCORES)
    code, out, err = call(["study", "density", str(tmp_path / "run")], capsys)
    assert code == 0, err
    found = density.run(density.Config(run=tmp_path / "run"))
    assert [row.sigma for row in found.rows] == list(parts.population.sigmas) and found.questions == 4
    base = np.mean(SCORES[0::2]) - found.rows[0].mean_gain.value
    assert found.base_score == pytest.approx(base) and np.mean(SCORES[1::2]) - found.rows[1].mean_gain.value == pytest.approx(base)
    assert out.splitlines()[: len(list(density.table(found)))] == list(density.table(found)) and found.sentence in out
    assert sorted(path.name for path in (tmp_path / "run-studies").iterdir()) == ["density.json", "density.png"]
    assert out.splitlines()[-1] == f"command  perturbjax study density {tmp_path / 'run'}"


def test_of_groups(questions, tmp_path, capsys):
    arguments = ["--model", str(MODEL), "--task", str(questions), "--groups", "norms", "--sigmas", "0.1,0.5", "--scale", "rms"]
    arguments += ["--candidates", "4", "--questions", "6"]
    code, out, err = call(["study", "density", *arguments, "--out", str(tmp_path)], capsys)
    assert code == 0, err
    rows = json.loads((tmp_path / "density.json").read_text())["results"]["rows"]
    assert [(row["group"], row["sigma"], len(row["gains"])) for row in rows] == [
        ("norms", 0.1, 4),
        ("norms", 0.5, 4),
    ]
    command = out.splitlines()[-1]
    assert all(word in command for word in ("--groups norms", "--sigmas 0.1,0.5", "--scale rms", f"--model {MODEL}"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--groups", "all,heads"], "--groups all,heads: some of all,embedding,attention,mlp,norms are required, each once"),
        (["--margins", "0,2"], "--margins 0.0,2.0: shares from 0 to 1 are required"),
        (["--sigmas", "0.1,0.1"], "--sigmas 0.1,0.1: a noise scale occurs twice"),
        (["--candidates", "3"], "--candidates 3: at least 4 are required"),
        (["--questions", "25"], "--questions 25: task even has 24 different ones; lower it"),
        (["--rank", "0"], "--rank 0: an integer of at least 1 is required"),
        (["--template", "none"], "--template none: task even has no such template"),
        (["--seed", "-1"], "--seed -1: an integer from 0"),
        (["nowhere"], "--model: with RUN it is that of the search"),
        (["--trust", "a:b"], "--trust a:b: only a run names code"),
    ],
)
def test_bad_input_is_one_line(arguments, message, questions, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(["study", "density", "--model", str(MODEL), "--task", str(questions), *arguments], capsys)
    assert (code, out) == (2, ""), err
    assert err.splitlines()[-1].startswith("perturbjax: error: ") and message in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nowhere: no run directory"),
        (["--groups", "mlp"], "--groups: with RUN it is that of the search; leave it out, or leave out RUN"),
        (["--candidates", "8"], "--candidates: with RUN"),
    ],
)
def test_a_search_has_its_own_settings(arguments, message, tmp_path, capsys):
    code, out, err = call(["study", "density", str(tmp_path / "nowhere"), *arguments], capsys)
    assert (code, out) == (2, "") and message in err.splitlines()[-1]
