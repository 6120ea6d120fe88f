"""The training loop against a plain one, and what must not change a training: parts, layers made again, kills, devices."""

import json
from functools import cache
from time import perf_counter
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.logits import logits_of
from support.paths import FIXTURES

from perturbjax import sharding
from perturbjax.errors import InputError
from perturbjax.pretrained import load_model
from perturbjax.runs.files import MetricsLog
from perturbjax.train import Training, loop
from perturbjax.train.demonstrations import EncodedDemonstration
from perturbjax.train.language import fine_tuning_loss
from perturbjax.train.loop import fit
from perturbjax.train.optimizer import make_optimizer
from perturbjax.train.problem import Auxiliary, Problem
from perturbjax.train.rows import Rows, pack_rows
from perturbjax.tree import fingerprint, leaf_paths

TRAINING = Training(steps=6, batch_rows=4, row_tokens=24, every=2, learning_rate=3e-3, warmup=0.2)


@pytest.fixture(scope="module")
def model():
    return load_model(str(FIXTURES / "tiny_llama_tied"))


def demonstrations(model, count, seed):
    rng = np.random.default_rng(seed)
    return [
        EncodedDemonstration(
            str(i),
            tuple(int(t) for t in rng.integers(0, model.config.vocab_size, rng.integers(2, 8))),
            tuple(int(t) for t in rng.integers(0, model.config.vocab_size, rng.integers(1, 6))),
        )
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def rows(model):
    return pack_rows(demonstrations(model, 30, 0), TRAINING.row_tokens)


@pytest.fixture(scope="module")
def validation(model):
    return pack_rows(demonstrations(model, 10, 1), TRAINING.row_tokens)


def norm_scale(params):
    return {"scale": float(np.mean(params["norm"]["scale"]))}


@cache
def loss_of(config, remat=False):
    return fine_tuning_loss(config, jnp.float32, remat)


@cache
def sums_of(config):
    return jax.jit(loss_of(config))


def train(model, rows, folder, training=TRAINING, validation=None, on_step=lambda *_: None, remat=False, params=None, accuracy=norm_scale):
    folder.mkdir(exist_ok=True)
    losses = [(loss_of(model.config, remat), None)]
    problem = Problem(model.params if params is None else params, losses, rows, validation, accuracy=accuracy)
    metrics = MetricsLog(folder / "metrics.jsonl")
    return fit(problem, training, 0, folder / "state", {"seed": 0}, sharding.make_mesh(), metrics, on_step)


def assert_same_training(one, other, start):
    """Equal to a thousandth of the way that training went. Element by element it is not: Adam divides small gradients by their own size."""
    one, other, start = (np.concatenate([np.ravel(leaf) for leaf in leaf_paths(tree).values()]) for tree in (one, other, start))
    assert np.linalg.norm(one - other) < 1e-3 * np.linalg.norm(one - start)


@pytest.fixture(scope="module")
def trained(model, rows, validation, tmp_path_factory):
    return train(model, rows, tmp_path_factory.mktemp("trained"), validation=validation)


def test_the_loss_is_that_of_the_demonstrations_one_by_one(model, rows):
    some = demonstrations(model, 30, 0)
    total = weight = 0.0
    for logits, each in zip(logits_of(model, [(*d.prompt, *d.response) for d in some]), some, strict=True):
        found = logits[len(each.prompt) - 1 : -1]
        total += np.sum(np.logaddexp.reduce(found, axis=-1) - found[np.arange(len(found)), each.response], dtype=np.float64)
        weight += len(each.response)
    sums = sums_of(model.config)(model.params, None, rows.batch(np.arange(len(rows))))
    np.testing.assert_allclose([sums["loss"], sums["weight"]], [total, weight], rtol=1e-5)


def test_training_is_the_plain_loop(model, rows, trained):
    import grain

    order = grain.MapDataset.range(len(rows)).seed(0).shuffle().repeat().batch(TRAINING.batch_rows)
    optimizer = make_optimizer(TRAINING, 6)
    params, moments = model.params, jax.jit(optimizer.init)(model.params)
    loss = loss_of(model.config)

    @jax.jit
    def step(params, moments, batch):
        def mean(params):
            sums = loss(params, None, batch)
            return sums["loss"] / sums["weight"]

        value, gradients = jax.value_and_grad(mean)(params)
        updates, moments = optimizer.update(gradients, moments, params)
        return optax.apply_updates(params, updates), moments, value

    losses = []
    for number in range(6):
        params, moments, value = step(params, moments, rows.batch(order[number]))
        losses.append(float(value))
    assert_same_training(trained.params, params, model.params)
    assert [look.step for look in trained.looks] == [2, 4, 6]
    assert trained.looks[0].losses["loss"] == pytest.approx(np.mean(losses[:2]), rel=0.02)
    assert trained.step == 6 and not trained.stopped_early


def test_parts_of_a_batch_and_layers_made_again_change_nothing(model, rows, trained, tmp_path):
    other = train(model, rows, tmp_path / "run", Training(**{**vars(TRAINING), "accumulate": 2}), remat=True)
    assert_same_training(trained.params, other.params, model.params)


@pytest.mark.parametrize("stop", [1, 3, 4, 5])
def test_a_training_that_was_stopped_goes_on_to_the_same_bytes(model, rows, validation, trained, tmp_path, stop):
    class Stop(Exception):
        pass

    def on_step(step, steps, look):
        if step == stop:
            raise Stop

    with pytest.raises(Stop):
        train(model, rows, tmp_path / "run", validation=validation, on_step=on_step)
    seen = []
    again = train(model, rows, tmp_path / "run", validation=validation, on_step=lambda step, *_: seen.append(step))
    assert seen[0] == stop // 2 * 2
    assert fingerprint(again.params) == fingerprint(trained.params)
    values = [(look.step, look.losses, look.validation, look.gradient_norm, look.accuracy) for look in again.looks]
    assert values == [(look.step, look.losses, look.validation, look.gradient_norm, look.accuracy) for look in trained.looks]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]


def test_an_accuracy_is_of_the_weights_at_each_look_and_takes_no_time_of_steps(model, rows, tmp_path, monkeypatch):
    asked, skew = [], [0.0]
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: perf_counter() + skew[0]))

    def accuracy(params):
        skew[0] += 1e6
        asked.append(fingerprint(params))
        return {"set": len(asked) / 8}

    fitted = train(model, rows, tmp_path / "run", accuracy=accuracy)
    assert [look.accuracy for look in fitted.looks] == [{"set": 0.125}, {"set": 0.25}, {"set": 0.375}]
    assert len(set(asked)) == 3 and asked[-1] == fingerprint(fitted.params) and fitted.looks[-1].seconds < 1e6
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["accuracy"]["set"] for line in lines] == [0.125, 0.25, 0.375]


def test_patience_keeps_the_weights_of_the_lowest_validation_loss(model, rows, validation, tmp_path):
    training = Training(**{**vars(TRAINING), "steps": 40, "learning_rate": 0.05, "patience": 2})
    fitted = train(model, rows, tmp_path / "run", training, validation)
    losses = [look.validation["loss"] for look in fitted.looks]
    best = int(np.argmin(losses))
    assert fitted.stopped_early and len(losses) == best + 1 + 2
    assert fitted.step == fitted.looks[best].step
    sums = sums_of(model.config)(fitted.params, None, validation.batch(np.arange(len(validation))))
    assert float(sums["loss"] / sums["weight"]) == pytest.approx(losses[best], rel=1e-5)


def test_a_loss_that_is_not_finite_stops_and_leaves_the_last_good_commit(model, rows, tmp_path):
    def spoil(batch):
        return {**batch, "weights": batch["weights"] * np.float32(np.nan)}

    class Spoiled:
        tokens = rows.tokens
        calls = 0

        def __len__(self):
            return len(rows)

        def batch(self, numbers):
            self.calls += 1
            return spoil(rows.batch(numbers)) if self.calls == 3 else rows.batch(numbers)

    with pytest.raises(FloatingPointError, match="not finite at step 3; try a lower learning rate"):
        train(model, Spoiled(), tmp_path / "run")
    seen = []
    train(model, rows, tmp_path / "run", on_step=lambda step, *_: seen.append(step))
    assert seen[0] == 2


def test_frozen_leaves_have_no_optimizer_state(model, rows, tmp_path):
    trained_leaves = {"norm": model.params["norm"]}

    def loss(params, frozen, batch):
        return fine_tuning_loss(model.config, jnp.float32)({**frozen, **params}, None, batch)

    frozen = jax.tree.map(jnp.asarray, {name: leaf for name, leaf in model.params.items() if name != "norm"})
    before = fingerprint(frozen)
    problem = Problem(trained_leaves, [(loss, frozen)], rows)
    (tmp_path / "run").mkdir()
    states = []
    fitted = fit(
        problem, TRAINING, 0, tmp_path / "run" / "state", {}, sharding.make_mesh(), MetricsLog(tmp_path / "m.jsonl"), on_state=states.append
    )
    assert fingerprint(frozen) == before
    assert set(leaf_paths(fitted.params)) == {"norm/scale"}
    assert sum(leaf.size for leaf in jax.tree.leaves(states[0].tree["state"])) == 3 * model.params["norm"]["scale"].size + 2


def test_a_problem_whose_arrays_lie_on_the_device_can_be_trained_twice(tmp_path):
    one = np.zeros((8, 1), np.int32)
    rows = Rows({"tokens": one, "segments": one, "weights": np.ones((8, 1), np.float32)}, 8, ())

    def loss(params, given, batch):
        return {"loss": jnp.sum(batch["weights"] * (params["w"] - 1) ** 2), "weight": jnp.sum(batch["weights"])}

    auxiliary = Auxiliary(
        {"updates": jnp.int32(0)}, due=lambda step: True, update=lambda state, *_: ({"updates": state["updates"] + 1}, {})
    )
    problem = Problem({"w": jnp.float32(0)}, [(loss, None)], rows, auxiliary=auxiliary)
    found = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        metrics = MetricsLog(tmp_path / name / "metrics.jsonl")
        fitted = fit(problem, TRAINING, 0, tmp_path / name / "state", {}, sharding.make_mesh(), metrics)
        found.append((int(fitted.auxiliary["updates"]), float(fitted.params["w"])))
    assert found[0] == found[1] and found[0][0] == 6 and int(auxiliary.state["updates"]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_rows": 0}, "`batch_rows` 0: an integer of at least 1 is required"),
        ({"accumulate": 3}, "`batch_rows` 4: `accumulate` 3 must divide it"),
        ({"learning_rate": float("nan")}, "`learning_rate` nan: a number above 0 is required"),
        ({"warmup": 1.5}, "`warmup` 1.5: a fraction of the steps, from 0 to 1, is required"),
        ({"schedule": "linear"}, "`schedule` linear: one of cosine, constant is required"),
        ({"patience": -1}, "`patience` -1: an integer of at least 0 is required"),
        (
            {"batch_rows": 2**30, "row_tokens": 4},
            "`batch_rows` 1073741824, `row_tokens` 4: a step of 4294967296 tokens; at most 2147483647 are required",
        ),
        ({"steps": 10**400}, f"`steps` 1{'0' * 400}: at most 2147483647 is required"),
        ({"epochs": 0.0}, "`epochs` 0.0: a number above 0 is required"),
    ],
)
def test_settings_are_checked(change, message):
    with pytest.raises(InputError) as error:
        Training(**{**vars(TRAINING), **change}).validate()
    assert str(error.value) == message
