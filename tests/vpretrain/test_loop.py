"""The steered loop: plain where alpha is 0, the same bytes after a stop, and an update that is skipped where its value is NaN."""

import dataclasses

import jax
import numpy as np
import pytest
from support import vpretrain_cases as cases

from perturbjax import sharding
from perturbjax.runs.files import MetricsLog
from perturbjax.train import Training
from perturbjax.train.loop import fit
from perturbjax.train.optimizer import learning_rates
from perturbjax.train.rows import join_rows
from perturbjax.tree import fingerprint
from perturbjax.vpretrain.arms import Experiment
from perturbjax.vpretrain.steering import Steering, feedback_batches

STEPS = 5
TRAINING = Training(steps=STEPS, batch_rows=2, row_tokens=20, every=2, learning_rate=3e-3)
SETS = {"one": cases.rows(seed=1), "two": cases.rows(6, seed=2)}


def experiment(alpha=0.5, feedback=SETS, **steering):
    designer = dataclasses.replace(cases.DESIGNER, alpha_max=alpha)
    task = cases.task(designer, sets=tuple(SETS), learner=cases.SMALL)
    settings = Steering(**{"every": 2, "learning_rate": 0.01, "burn_in": 1, **steering})
    rows, rate = cases.rows(20), learning_rates(TRAINING, STEPS)
    start = cases.params(cases.SMALL.config), None, designer.init(0)
    return Experiment(task, *start, settings, rows, feedback, 2, rate, {"one": SETS["one"]}, {})


def train(problem, folder, on_step=lambda *_: None):
    folder.mkdir(exist_ok=True)
    metrics = MetricsLog(folder / "metrics.jsonl")
    return fit(problem, TRAINING, 0, folder / "state", {"seed": 0}, sharding.make_mesh(), metrics, on_step)


@pytest.fixture(scope="module")
def steered(tmp_path_factory):
    return train(experiment().problem("value"), tmp_path_factory.mktemp("steered"))


def test_alpha_0_is_plain_next_token_training_bit_for_bit(tmp_path, steered):
    plain = train(experiment().problem("plain"), tmp_path / "plain")
    silent = train(experiment(alpha=0.0).problem("value"), tmp_path / "silent")
    assert fingerprint(silent.params) == fingerprint(plain.params) != fingerprint(steered.params)
    # The figures are sums that two programs add up in their own order; what is trained is the same to the bit.
    assert [look.losses["plain"] for look in silent.looks] == pytest.approx([look.losses["loss"] for look in plain.looks], rel=1e-6)


def test_a_steered_training_that_was_stopped_goes_on_to_the_same_bytes(tmp_path, steered):
    class Stop(Exception):
        pass

    def on_step(step, steps, look):
        if step == 3:
            raise Stop

    with pytest.raises(Stop):
        train(experiment().problem("value"), tmp_path / "run", on_step)
    again = train(experiment().problem("value"), tmp_path / "run")
    assert fingerprint(again.params) == fingerprint(steered.params)
    assert fingerprint(again.auxiliary) == fingerprint(steered.auxiliary)
    assert [look.updates for look in again.looks] == [look.updates for look in steered.looks]
    assert [each["step"] for look in steered.looks for each in look.updates] == [1, 3]
    for each in (update for look in steered.looks for update in look.updates):
        assert {"value", "predicted", "realized", "feedback_loss", "alpha", "entropy"} <= each.keys() and each["skipped"] == 0


def test_an_update_whose_value_is_nan_is_skipped_and_counted(tmp_path):
    class Spoiled:
        """Feedback whose first batch, that of step 1, is NaN."""

        tokens, calls = 0, 0

        def __len__(self):
            return len(SETS["two"])

        def batch(self, numbers):
            self.calls += 1
            found = SETS["two"].batch(numbers)
            return found | {"weights": found["weights"] * np.float32(np.nan)} if self.calls == 1 else found

    fitted = train(experiment(feedback=SETS | {"two": Spoiled()}).problem("value"), tmp_path / "run")
    first, second = (update for look in fitted.looks for update in look.updates)
    assert first["skipped"] == 1 and "value" not in first and second["skipped"] == 0
    counts = jax.device_get((fitted.auxiliary["updates"], fitted.auxiliary["skipped"]))
    assert counts == (1, 1) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(fitted.params)))


def test_updates_begin_after_burn_in_and_read_their_own_feedback():
    steering = Steering(every=3, burn_in=2, seed=7)
    assert [step for step in range(12) if steering.due(step)] == [2, 5, 8, 11]
    batches = feedback_batches(SETS, 2, steering)
    one, other = batches(5), batches(8)
    assert one.keys() == SETS.keys() and one["one"]["tokens"].shape == (2, 20)
    np.testing.assert_array_equal(one["one"]["tokens"], batches(5)["one"]["tokens"])
    assert np.any(one["one"]["tokens"] != other["one"]["tokens"])


def test_joined_rows_keep_their_order_and_take_their_weights():
    joined = join_rows(SETS, {"one": 1.0, "two": 0.25})
    first, second = (len(rows) for rows in SETS.values())
    assert len(joined) == first + second
    np.testing.assert_array_equal(joined.arrays["tokens"][first:], SETS["two"].arrays["tokens"])
    assert joined.arrays["weights"][first:].sum() == pytest.approx(0.25 * SETS["two"].arrays["weights"].sum())
