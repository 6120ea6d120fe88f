"""The toy of ``scripts/recipes/ivl`` at a small size: a behavior that is learned beside A moves to B, which knows more."""

import numpy as np
import pytest
from recipes.ivl.toy import Arm, Base, Experiment, Toy, logits_of

from perturbjax.ivl.combined import CombinedConfig
from perturbjax.ivl.value import make_value
from perturbjax.tree import fingerprint

SMALL = Toy(
    keys=16,
    values=8,
    demonstrations=64,
    small=Base(8, 16, 120, 6e-3),
    large=Base(32, 256, 250, 6e-3),
    batch=128,
    steps=80,
    rate=4e-3,
    tuned_rate=1e-3,
    demonstration_batch=16,
)


@pytest.fixture(scope="module")
def experiment():
    return Experiment(SMALL, 0)


@pytest.fixture(scope="module")
def bases(experiment):
    return experiment.pretrained("small"), experiment.pretrained("large")


def test_a_behavior_moves_to_a_base_that_knows_more(experiment, bases):
    a, b = bases
    before = fingerprint(b)
    value, params = experiment.value(Arm(penalty=1.0), a)

    def accuracy(config, params):
        return experiment.accuracy(config, params, question=True)

    moved = accuracy(CombinedConfig("value", experiment.large, (value,)), {"base": b, "value": params})
    beside_a = accuracy(CombinedConfig("value", experiment.small, (value,)), {"base": a, "value": params})
    tuned = accuracy(experiment.large, experiment.tuned(experiment.large, b))
    figures = {
        "A": accuracy(experiment.small, a),
        "B": accuracy(experiment.large, b),
        "A + V": beside_a,
        "B + V": moved,
        "B fine-tuned": tuned,
        "facts of A": experiment.accuracy(experiment.small, a, question=False),
        "facts of B": experiment.accuracy(experiment.large, b, question=False),
    }
    print(figures)
    assert figures["facts of B"] > 0.95 > 0.6 > figures["facts of A"]
    assert moved - figures["B"] >= 0.5
    assert moved >= 0.9 * tuned
    assert moved - beside_a >= 0.5
    assert fingerprint(b) == before


@pytest.mark.parametrize("connection", ["residual", "cascade", "cascade_plus", "multiplicative"])
def test_a_value_network_that_says_nothing_leaves_the_logits_as_they_are(experiment, bases, connection):
    a, b = bases
    value, params = make_value(experiment.small, a, connection)
    prompts = experiment.language.prompts(experiment.language.asked, True)
    joined = logits_of(CombinedConfig("value", experiment.large, (value,)), {"base": b, "value": params}, prompts)
    np.testing.assert_array_equal(joined, logits_of(experiment.large, b, prompts))
