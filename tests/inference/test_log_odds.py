"""Log-odds against the engine's probabilities; the gradient slot by slot against a finite difference through the engine."""

import jax
import numpy as np
import pytest
from support.cli_tiny import MODEL
from support.toy import TEMPLATE, Toy, one_batch_size

from perturbjax.inference import Engine
from perturbjax.inference.log_odds import log_odds, objective_gradient, objective_values, policy_gradient, right_choices
from perturbjax.noise import Candidate, Noise, scales
from perturbjax.pretrained import load_model
from perturbjax.searchers import gradient_step


@pytest.mark.parametrize(("choices", "objective"), [(("a", "i"), "log_odds"), (("x", "y and z", "w"), "probability")])
def test_the_gradient_predicts_a_small_step(choices, objective, monkeypatch):
    """Choices of one token and of several; several slots of several examples, some of them padded."""
    one_batch_size(monkeypatch)
    model, task, noise = load_model(str(MODEL), "float32"), Toy("choice", choices), Noise()
    examples = tuple(example for example in task.examples() if example.answer in choices)
    engine = Engine(model, task, noise)
    batch, right = engine.prepare(examples, TEMPLATE), right_choices(examples)
    assert batch.packings[0].single == (objective == "log_odds")
    slots = engine.prepare(examples, TEMPLATE, slot_tokens=1)
    if objective == "probability":  # enough questions for two slots
        monkeypatch.setattr("perturbjax.inference.packing.ROW_BUCKETS", (64, 128, 256))
        slots = engine.prepare(examples, TEMPLATE, slot_tokens=1)
        assert int(slots.packings[0].arrays["num_valid"]) > 1
    value, gradient = objective_gradient(model.params, model.config, slots, objective)

    base = engine.run(Candidate.base(1), batch)
    found = log_odds(base.log_probs, right)
    assert base.log_probs is not None
    mine = np.exp(base.log_probs[0])[np.arange(len(right)), right]
    np.testing.assert_allclose(1 / (1 + np.exp(-found[0])), mine / np.exp(base.log_probs[0]).sum(axis=1), atol=1e-6)
    assert value == pytest.approx(objective_values(found, objective)[0], abs=1e-5)

    # d log-odds = d log p / (1 - p), d p = p d log p: both objectives are policy gradients with these advantages of the right choice.
    p, advantages = 1 / (1 + np.exp(-found[0])), np.zeros(base.log_probs.shape[1:], np.float32)
    advantages[np.arange(len(right)), right] = 1 / (1 - p) if objective == "log_odds" else p
    as_policy = policy_gradient(model.params, model.config, slots, advantages)
    for mine, other in zip(jax.tree.leaves(as_policy), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-5 * float(np.abs(other).max()))

    leaf_scales, length = scales(model.params, noise), 0.002
    norm = np.sqrt(sum(float(np.square(leaf).sum()) for leaf in jax.tree.leaves(gradient)))
    ends = []
    for sign in (1, -1):
        engine.rebase(gradient_step(model.params, gradient, leaf_scales, sign * length))
        ends.append(objective_values(log_odds(engine.run(Candidate.base(1), batch).log_probs, right), objective)[0])
    assert (ends[0] - ends[1]) / (2 * length) == pytest.approx(norm, rel=0.02)
    assert engine.traces == 1  # another base compiles nothing
