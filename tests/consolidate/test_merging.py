"""Merges against the dense sum of members, their weights, and the gate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perturbjax.consolidate.gate import DIVISIONS, choose, divisions
from perturbjax.consolidate.merging import Move, Part, moved_by, reward_weights, uniform_weights
from perturbjax.noise import Noise, Population, Rule, perturb
from perturbjax.randopt.ensemble import merge
from perturbjax.tree import leaf_paths

NOISES = [Noise(), Noise("rademacher", scale="rms", rules=(Rule("bias", None),)), Noise(rank=2, scale="modular")]
FIRST, SECOND = Population(3, 8, (0.1, 0.3), antithetic=True), Population(4, 6, (0.2,))
RNG = np.random.default_rng(0)
KERNEL, BIAS, HEAD = (jnp.asarray(RNG.standard_normal(shape), jnp.float32) for shape in ((2, 8, 16), (16,), (16, 4)))
BASE = {"body": {"kernel": KERNEL, "bias": BIAS}, "head": HEAD, "steps": jnp.arange(3)}
dense = jax.jit(perturb, static_argnames="noise")


@pytest.mark.parametrize("noise", NOISES)
def test_a_move_is_the_dense_weighted_sum_of_its_candidates_from_any_populations(noise):
    move = Move((Part(FIRST, (5, 2), (0.5, 0.2)), Part(SECOND, (0,), (0.3,))), 1.5)
    moved = leaf_paths(moved_by(BASE, noise, (move,)))
    members = [(0.5, FIRST[5]), (0.2, FIRST[2]), (0.3, SECOND[0])]
    for path, leaf in leaf_paths(BASE).items():
        wide = np.asarray(leaf, np.float64)
        steps = [w * (np.asarray(leaf_paths(dense(BASE, c, noise=noise))[path], np.float64) - wide) for w, c in members]
        np.testing.assert_allclose(moved[path], wide + 1.5 * np.sum(steps, axis=0), rtol=2e-5, atol=3e-6)
    assert float(jnp.abs(moved["head"] - BASE["head"]).max()) > 1e-3


def test_the_uniform_merge_of_length_1_is_that_of_export():
    move = Move((Part(FIRST, (7, 0, 4), uniform_weights(3)),), 1.0)
    exported = merge(BASE, FIRST[[7, 0, 4]], Noise())
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=2e-6), moved_by(BASE, Noise(), (move,)), exported)


def test_moves_follow_each_other_and_the_base_is_not_written():
    moves = [Move((Part(FIRST, (index,), (1.0,)),), length) for index, length in ((1, 0.5), (6, 2.0))]
    before = jax.tree.map(np.array, BASE)
    two = moved_by(moved_by(BASE, NOISES[1], moves[:1]), NOISES[1], moves[1:])
    jax.tree.map(np.testing.assert_array_equal, moved_by(BASE, NOISES[1], moves), two)
    jax.tree.map(np.testing.assert_array_equal, BASE, before)


def test_a_model_in_bfloat16_moves_in_float32():
    base = {"w": jnp.ones((4, 4), jnp.bfloat16)}
    moved = moved_by(base, Noise(), (Move((Part(SECOND, (1, 2), (0.5, 0.5)),), 0.01),))
    assert moved["w"].dtype == jnp.float32 and np.asarray(moved["w"] != 1).all() and base["w"].dtype == jnp.bfloat16


def test_reward_weights_are_gains_over_the_center_and_uniform_without_any():
    assert reward_weights(np.array([0.9, 0.7, 0.6]), 0.5) == pytest.approx((4 / 7, 2 / 7, 1 / 7))
    assert reward_weights(np.array([0.9, 0.5, 0.1]), 0.5) == (1.0, 0.0, 0.0)
    assert reward_weights(np.array([0.5, 0.4]), 0.5) == uniform_weights(2) == (0.5, 0.5)


scores = st.lists(st.tuples(*[st.integers(0, 1)] * 4), min_size=2, max_size=12)


@given(scores)
def test_the_gate_is_a_loop_over_halves_and_no_easier_than_the_best_option(rows):
    table = np.array(rows, np.float64).T
    base, options = table[0], table[1:]
    found, total = choose(base, options), 0.0
    for half in divisions(len(base)):
        assert half.sum() == len(base) // 2
        for chooses in (True, False):
            means = [[row[i] for i in range(len(row)) if half[i] == chooses] for row in options]
            picked = max(range(3), key=lambda i: (sum(means[i]), -i))
            total += sum(options[picked][i] - base[i] for i in range(len(base)) if half[i] != chooses)
    best = (options.sum(axis=1) - base.sum()).max() / len(base)
    assert found.gain == pytest.approx(total / len(base) / DIVISIONS) and found.gain <= best + 1e-12
    assert options[found.best].sum() == options.sum(axis=1).max()


@pytest.mark.parametrize("order", ["sorted", "alternating", "drawn"])
def test_an_option_that_leans_to_one_answer_does_not_shut_the_gate(order):
    """It is right on all positives and no negative. An option that is right on most of both is what halves of both answers choose."""
    positive = np.arange(64) < 32
    if order == "alternating":
        positive = np.arange(64) % 2 == 0
    elif order == "drawn":
        positive = np.random.default_rng(1).permutation(positive)
    rng, base = np.random.default_rng(2), np.zeros(64)
    base[rng.permutation(64)[:40]] = 1
    better = np.ones(64)
    better[rng.permutation(64)[:12]] = 0
    found = choose(base, np.stack([positive.astype(float), better]))
    assert found.best == 1 and 0.1 < found.gain < 0.2


def test_with_one_option_the_gate_reads_its_difference_and_a_tie_is_refused():
    base = np.array([1.0, 0, 0, 1, 0])
    assert choose(base, np.array([[1.0, 1, 0, 1, 0]])).gain == pytest.approx(0.2)
    assert not choose(base, base[None]).taken
