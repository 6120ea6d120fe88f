"""Rivals: every searcher within the budget, through the command; what each chose; fine-tuning that learns; bad input."""

import json

import numpy as np
import pytest
from support.chapter import call
from support.cli_tiny import MODEL, write_questions
from support.toy import one_batch_size

from perturbjax.inference.log_odds import GRADIENT_TOKENS, right_choices
from perturbjax.noise import Noise
from perturbjax.pretrained import load_model
from perturbjax.runs.config import Machine
from perturbjax.searchers import Cost
from perturbjax.studies.asking import make_engine
from perturbjax.studies.tuning import PolicyTuner, Tuner, demonstration_rows, group_advantages
from perturbjax.tasks import load_task
from perturbjax.tree import leaf_paths

SMALL = ["--candidates", "12", "--top-k", "3", "--es-size", "4", "--screen", "16", "--sigma", "0.05", "--group", "mlp"]
SMALL += ["--search-examples", "5", "--select-examples", "4", "--test-examples", "6"]


@pytest.fixture
def questions(tmp_path):
    return str(write_questions(tmp_path / "even.jsonl", 16))


def test_the_command(questions, tmp_path, capsys, monkeypatch):
    one_batch_size(monkeypatch)
    arguments = ["study", "rivals", "--model", str(MODEL), "--tasks", questions, *SMALL, "--learning-rate", "0.01"]
    code, out, err = call([*arguments, "--out", str(tmp_path / "made")], capsys)
    assert code == 0, err
    results = json.loads((tmp_path / "made" / "rivals.json").read_text())["results"]
    (task,) = results["tasks"]
    rows = {row["name"]: row for row in task["rows"]}
    assert list(rows) == ["base", "search", "search, log-odds", "screening", "es", "one gradient step", "sft", "grpo"]
    # An update of ES is on top of the budget's forward passes.
    assert all(row["flops"] <= task["budget"] for name, row in rows.items() if name != "es")
    assert task["budget"] == rows["search"]["flops"] < rows["es"]["flops"] < 2 * task["budget"]
    assert rows["search"]["search_tokens"] % 12 == 0 and rows["es"]["search_tokens"] == rows["search"]["search_tokens"]
    once = rows["search"]["search_tokens"] // 12
    assert rows["one gradient step"]["search_tokens"] == 3 * once and rows["base"]["search_tokens"] == 0
    run = int(rows["screening"]["what"].split("; ")[1].removesuffix(" run"))
    assert 3 <= run < 12 and rows["screening"]["search_tokens"] == (run + 3) * once
    steps = int(rows["grpo"]["what"].split(" of ")[1])
    assert steps == 3 and rows["grpo"]["search_tokens"] == 4 * steps * once
    assert rows["base"]["over_base"]["difference"] == rows["search"]["over_search"]["difference"] == 0
    for row in rows.values():
        difference = row["accuracy"]["value"] - rows["base"]["accuracy"]["value"]
        assert row["over_base"]["difference"] == pytest.approx(difference)
    assert (tmp_path / "made" / "rivals.png").exists() and "comparisons with the base at equal cost" in out
    assert "--learning-rate 0.01" in out.splitlines()[-1]


def test_a_screening_that_the_budget_does_not_pay_is_refused(questions, tmp_path, capsys, monkeypatch):
    one_batch_size(monkeypatch)
    arguments = ["study", "rivals", "--model", str(MODEL), "--tasks", questions, *SMALL, "--screen", "100000", "--out", str(tmp_path / "x")]
    code, out, err = call(arguments, capsys)
    assert (code, out) == (2, "") and not (tmp_path / "x").exists()
    assert "--screen 100000: a gradient and so many products leave 0 of the 12 --candidates" in err.splitlines()[-1]


def test_fine_tuning_learns_its_questions_and_leaves_the_base(questions):
    model, task = load_model(str(MODEL), "float32"), load_task(questions)
    before = {path: np.asarray(leaf).copy() for path, leaf in leaf_paths(model.params).items()}
    tuner = Tuner(model, demonstration_rows(model, task, task.templates[0], task.examples()[:4]), 0.003)
    tuner.advance(1)
    first = tuner.loss
    tuner.advance(7)
    assert tuner.step == 8 and tuner.loss < first - 0.5 and tuner.tokens > 0
    for path, leaf in leaf_paths(model.params).items():
        np.testing.assert_array_equal(leaf, before[path])


def test_policy_gradient_steps_earn_more_reward(questions):
    model, task = load_model(str(MODEL), "float32"), load_task(questions)
    engine = make_engine(model, task, Noise(), Machine())
    asked = task.examples()[:6]
    answered, differentiated = (engine.prepare(asked, task.templates[0], *tokens) for tokens in ((), (GRADIENT_TOKENS,)))
    tuner = PolicyTuner(engine, model, answered, differentiated, right_choices(asked), 16, 0.0005, 0)
    tuner.advance(1)
    first = tuner.reward
    tuner.advance(20)
    assert tuner.step == 21 and first < 0.7 and tuner.reward > 0.9


def test_advantages_of_a_group_are_standardized_rewards():
    log_probs, right = np.array([[-0.7, -1.2, -1.6], [-0.4, -1.2, -np.inf]], np.float32), np.array([1, 0])
    found, reward = group_advantages(log_probs, right, 8, np.random.default_rng(0))
    drawn = (log_probs[None] + np.random.default_rng(0).gumbel(size=(8, 2, 3))).argmax(axis=2)
    expected = np.zeros((2, 3))
    for question in range(2):
        rewards = [float(draw == right[question]) for draw in drawn[:, question]]
        for draw, each in zip(drawn[:, question], rewards, strict=True):
            expected[question, draw] += (each - np.mean(rewards)) / np.std(rewards) / 8
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert reward == np.mean(drawn == right[None]) and found[1, 2] == 0
    agreed, _ = group_advantages(np.log([[1 - 1e-9, 1e-9]]), np.array([0]), 8, np.random.default_rng(0))
    assert not agreed.any()


def test_the_formula_counts_layers_and_noise():
    model = load_model(str(MODEL), "float32")
    shapes = {path: leaf.shape for path, leaf in leaf_paths(model.params).items()}
    layers = sum(int(np.prod(shape)) for path, shape in shapes.items() if path.startswith("layers/"))
    cost = Cost.of(model.config, model.params, Noise(rank=2, stacked="^layers/"))
    assert abs(cost.weights - layers) <= model.config.hidden_size  # the last norm
    matrices = {path: shape for path, shape in shapes.items() if len(shape) - path.startswith("layers/") == 2}
    vectors = sum(int(np.prod(shape)) for path, shape in shapes.items() if path not in matrices)
    assert cost.drawn == vectors + sum(2 * int(np.prod(shape[:-2])) * sum(shape[-2:]) for shape in matrices.values())
    assert cost.gradient(10) == 3 * cost.forward(10) == 60 * cost.weights and cost.products(5) == 20 * cost.moved


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "arithmetic"], "--tasks arithmetic: multiple-choice tasks are required"),
        (["--tasks", "sst2,sst2"], "--tasks sst2,sst2: at least 1 is required, each once"),
        (["--top-k", "49"], "--top-k 49: at most the 48 --candidates"),
        (["--es-size", "1"], "--es-size 1: from 2 to the 48"),
        (["--es-size", "5", "--antithetic"], "--es-size 5: antithetic candidates come in pairs; use 6"),
        (["--screen", "47"], "--screen 47: at least the 48"),
        (["--explore", "1.5"], "--explore 1.5: a share from 0 to 1"),
        (["--es-length", "0"], "--es-length 0.0: a number above 0"),
        (["--draws", "1"], "--draws 1: at least 2 are required"),
        (["--learning-rate", "nan"], "--learning-rate nan: a number above 0"),
        (["--sigma", "-1"], "--sigma -1.0: each must be positive"),
        (["--group", "head"], "--group head: one of all, embedding"),
        (["--test-examples", "0"], "--test-examples 0: a positive integer"),
        (["--mesh", "1x2"], "--mesh, --coordinator: the backward pass"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(["study", "rivals", "--model", str(MODEL), *arguments], capsys)
    assert (code, out) == (2, ""), err
    assert message in err.splitlines()[-1] and list(tmp_path.iterdir()) == []
