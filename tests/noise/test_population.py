"""Candidates are metadata: indices, sigmas, signs and keys, the same however one gets at them."""

import jax
import numpy as np
import pytest

from perturbjax.noise import Candidate, Population

SIGMAS = (5e-4, 1e-3, 2e-3)


def test_sigmas_go_round_robin_and_keys_are_folded_in():
    population = Population(seed=11, size=7, sigmas=SIGMAS)
    root = jax.random.key(11, impl="threefry2x32")
    for i in range(7):
        candidate = population[i]
        assert int(candidate.index) == i
        assert candidate.sigma == np.float32(SIGMAS[i % 3]) and candidate.sign == 1
        np.testing.assert_array_equal(candidate.key_data, jax.random.key_data(jax.random.fold_in(root, i)))


def test_slices_and_lists_of_indices_are_batched_candidates():
    population = Population(seed=1, size=20, sigmas=SIGMAS)
    part = population[4:16:3]
    assert isinstance(part, Candidate) and part.index.tolist() == [4, 7, 10, 13]
    assert population[-1].index == 19 and population[30:].index.size == 0 and population[::-1].index.tolist() == list(range(19, -1, -1))
    for i, index in enumerate((4, 7, 10, 13)):
        for batched, one in zip(part, population[index], strict=True):
            np.testing.assert_array_equal(batched[i], one)
    for a, b in zip(part, population[np.array([4, 7, 10, 13])], strict=True):
        np.testing.assert_array_equal(a, b)
    assert population[np.int64(7)].index.shape == ()


def test_antithetic_pairs_share_key_and_sigma():
    population = Population(seed=0, size=8, sigmas=SIGMAS, antithetic=True)
    for j in range(4):
        plus, minus = population[2 * j], population[2 * j + 1]
        np.testing.assert_array_equal(plus.key_data, minus.key_data)
        assert plus.sigma == minus.sigma == np.float32(SIGMAS[j % 3])
        assert (plus.sign, minus.sign) == (1, -1)
    assert population[1:4].sign.tolist() == [-1, 1, -1]
    assert population[0:3].index.tolist() == [0, 1, 2]


def test_a_population_costs_no_memory():
    population = Population(seed=0, size=2**32, sigmas=SIGMAS)
    assert int(population[2**32 - 1].index) == 2**32 - 1


def test_base_is_a_candidate_of_sigma_zero():
    assert Candidate.base().sigma == 0 and Candidate.base(3).key_data.shape == (3, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(seed=-1, size=2), "seed -1"),
        (dict(seed=0, size=-1), "size -1"),
        (dict(seed=0, size=2**32 + 1), "2\\*\\*32"),
        (dict(seed=0, size=2, sigmas=()), "at least one"),
        (dict(seed=0, size=2, sigmas=(0.0,)), "positive"),
        (dict(seed=0, size=2, sigmas=(float("nan"),)), "finite"),
        (dict(seed=0, size=2, sigmas=(1e-50,)), "float32"),
        (dict(seed=0, size=2, sigmas=(1e39,)), "float32"),
        (dict(seed=0, size=2, sigmas=(0.001, 0.002, 0.001)), "twice"),
        (dict(seed=0, size=3, antithetic=True), "use 4"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Population(**settings)


def test_indices_outside_are_refused():
    population = Population(0, 5)
    for index in (5, -6):
        with pytest.raises(IndexError):
            population[index]
    for indices in ([2, 5], [-1], [[1]]):
        with pytest.raises(IndexError, match="from 0 to 4"):
            population[np.array(indices)]
