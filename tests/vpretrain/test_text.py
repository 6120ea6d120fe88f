"""Candidates, targets and the designed loss against one-liners over the whole vocabulary; what feedback can and cannot reach."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import vpretrain_cases as cases

from perturbjax.train.config import Training
from perturbjax.train.optimizer import make_optimizer
from perturbjax.train.step import TrainState, make_step
from perturbjax.vpretrain.candidates import candidates, log_probs_of
from perturbjax.vpretrain.steering import Steering, designer_auxiliary
from perturbjax.vpretrain.text import Designed, Fixed, Oracle, designed_loss

PARAMS = cases.params()
ROWS, FEEDBACK = cases.rows(), cases.rows(seed=1)


def test_candidates_are_the_true_token_and_the_likeliest_others():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(2, 7, cases.VOCABULARY)).astype(np.float32), rng.integers(0, cases.VOCABULARY, (2, 7))
    found = np.asarray(candidates(jnp.asarray(logits), jnp.asarray(labels), cases.K))
    for place in np.ndindex(2, 7):
        others = [token for token in np.argsort(-logits[place]) if token != labels[place]]
        assert found[place].tolist() == [labels[place], *others[: cases.K - 1]]
    expected = np.asarray(jax.nn.log_softmax(logits, axis=-1))
    np.testing.assert_allclose(log_probs_of(jnp.asarray(logits), jnp.asarray(found)), np.take_along_axis(expected, found, -1), rtol=1e-5)


@pytest.mark.parametrize("blocks", [2, 12])
def test_log_probabilities_by_block_are_those_of_the_whole_vocabulary(blocks):
    rng = np.random.default_rng(1)
    logits = jnp.asarray(rng.normal(size=(2, 5, 24)), jnp.float32)
    ids = jnp.asarray(rng.integers(0, 24, (2, 5, 9)), jnp.int32)

    def both(logits):
        return [jax.vjp(lambda logits, n=n: log_probs_of(logits, ids, n), logits) for n in (1, blocks)]

    (whole, slope), (by_block, other) = jax.jit(both)(logits)
    np.testing.assert_array_equal(by_block, whole)
    for found, expected in zip(other(jnp.sin(whole)), slope(jnp.sin(whole)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def designed(designer_params, updates=1):
    return {"designer": designer_params, "updates": jnp.int32(updates)}


@pytest.mark.parametrize("kind", ["designer", "self"])
def test_the_designed_loss_is_the_cross_entropy_of_its_targets(kind):
    phi, batch = cases.designer_params(), cases.batch(ROWS)
    targets = Designed(cases.DESIGNER) if kind == "designer" else Fixed(kind, 0.3)

    def both(params, auxiliary):
        found = designed_loss(cases.LEARNER, cases.K, targets)(params, (None, auxiliary), batch)
        prepared = targets.prepare(params, None, auxiliary, batch)
        log_probs = jax.nn.log_softmax(all_logits(params, batch), axis=-1)
        ids = candidates(log_probs, batch["labels"], cases.K)
        alpha, r = targets.at(prepared, auxiliary, ids, jnp.take_along_axis(log_probs, ids, -1))
        onehot = jax.nn.one_hot(batch["labels"], cases.VOCABULARY)
        q = (1 - alpha)[..., None] * onehot + alpha[..., None] * jnp.einsum("bqk,bqkv->bqv", r, jax.nn.one_hot(ids, cases.VOCABULARY))
        return found, -jnp.sum(batch["weights"] * jnp.sum(q * log_probs, axis=-1)), q

    found, expected, q = jax.jit(both)(PARAMS, designed(phi))
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(q.sum(-1), 1, rtol=1e-5)
    assert float(found["weight"]) == pytest.approx(float(batch["weights"].sum()))
    assert 0 < float(found["alpha"]) <= 0.5 * float(found["weight"])


def all_logits(params, batch):
    from perturbjax.train.language import hidden_at_queries

    decoder = cases.CONFIG.build(params)
    return decoder.logits(hidden_at_queries(decoder, batch))


def test_no_targets_have_a_higher_value_than_the_oracle():
    task, phi, batch = cases.task(), cases.designer_params(), cases.batch(ROWS)
    rng = np.random.default_rng(5)
    direction = {path: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) for path, leaf in task.subset.take(PARAMS).items()}
    oracle = Oracle(cases.LEARNER, task.subset, cases.K, 0.5)

    def values(phi):
        prepared = task.prepare(PARAMS, None, direction, batch)
        auxiliary = {"direction": direction, "updates": jnp.int32(1)}
        alpha, best = oracle.at(oracle.prepare(PARAMS, None, auxiliary, batch), auxiliary, prepared["ids"], prepared["log_probs"])
        scores = prepared["scores"]
        own = (1 - alpha) * scores[..., 0] + alpha * jnp.sum(best * scores, axis=-1)
        top = 0.5 * scores[..., 0] + 0.5 * scores.max(axis=-1)
        sums = task.value(phi, PARAMS, None, prepared)
        return own, top, jnp.sum(batch["weights"] * own), sums["value"], sums["value"] - jnp.sum(batch["weights"] * scores[..., 0])

    own, top, total, of_designer, moved = jax.jit(values)(phi)
    np.testing.assert_allclose(own, top, rtol=1e-4, atol=1e-6)
    assert float(total) > float(of_designer) and abs(float(moved)) > 1e-4


@pytest.mark.parametrize("better", [True, False])
@pytest.mark.parametrize("bias", [-30.0, 30.0])
def test_a_gate_at_its_bound_comes_back_and_goes_no_further(bias, better):
    """The slope of the value at a gate that has shut (opened): there where the other candidates are better (worse) than the true token."""
    task, phi, batch = cases.task(), cases.designer_params(), cases.batch(ROWS)
    phi["gate"] = {"kernel": np.zeros_like(phi["gate"]["kernel"]), "bias": np.full(1, bias, np.float32)}
    shape = (*batch["labels"].shape, cases.K)
    scores = jnp.zeros(shape).at[..., 0].set(-1.0 if better else 1.0)
    prepared = batch | {"scores": scores, "log_probs": jnp.full(shape, -1.0), "ids": jnp.zeros(shape, jnp.int32)}

    def value(gate):
        return task.value(phi | {"gate": gate}, None, None, prepared)["value"]

    slope = np.asarray(jax.jit(jax.grad(value))(phi["gate"])["bias"]).item()
    back = better if bias < 0 else not better
    assert (slope > 1e-3 if better else slope < -1e-3) if back else slope == 0


def test_feedback_reaches_the_learner_through_the_designer_alone():
    """The derivative of a learner's step with respect to feedback, at fixed designer, is exactly 0; the designer itself does change."""
    task, phi, params = cases.task(learner=cases.SMALL), cases.designer_params(), cases.params(cases.SMALL.config)
    optimizer = make_optimizer(Training(steps=9), 9)
    auxiliary = designer_auxiliary(task, Steering(every=1, learning_rate=0.1, probe=False), phi, lambda step: {}, lambda step: 1e-3)
    loss = designed_loss(cases.SMALL, cases.K, Designed(cases.DESIGNER))
    step = make_step(loss, optimizer)
    state = TrainState(params, optimizer.init(params))
    batch = {name: array[None] for name, array in cases.batch(ROWS).items()}
    feedback = {name: array[None] for name, array in cases.batch(FEEDBACK).items()}

    def learner_after(weights, labels, fixed):
        given = {"one": feedback | {"weights": weights, "labels": labels}}
        new, _ = auxiliary.update(auxiliary.state, state, None, batch, given, jnp.int32(0))
        return step(state, (None, auxiliary.state | {"updates": jnp.int32(1)} if fixed else new), batch)[0].params, new["designer"]

    def size(weights, fixed):
        params, _ = learner_after(weights, feedback["labels"], fixed)
        return sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(params))

    def everything(weights):
        other = jnp.roll(feedback["labels"], 1, axis=-1)
        slope = jax.grad(size)(weights, False)
        return slope, [learner_after(weights, labels, True) for labels in (feedback["labels"], other)]

    slope, ((one, designer), (other, another)) = jax.jit(everything)(feedback["weights"])
    assert not np.any(slope)  # targets are constants to the learner, whatever made them
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert any(np.any(np.asarray(a) != np.asarray(b)) for a, b in zip(jax.tree.leaves(designer), jax.tree.leaves(another), strict=True))
