"""``top_k`` and ``AskTell``: the best, ties to the lower index; every candidate asked for once; resume from JSON."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import perturbjax as pj

POPULATION = pj.Population(seed=1, size=23, sigmas=(0.1, 0.3))
PARAMS = {"w": jnp.zeros(5)}


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.data())
def test_top_k_is_the_sort_by_score_then_index(values, data):
    k = data.draw(st.integers(1, len(values)))
    scores = np.array(values, np.float32) / 4
    oracle = sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]
    assert pj.top_k(scores, k).tolist() == oracle


def test_top_k_of_a_matrix_ranks_the_means():
    matrix = np.array([[0, 1, 0], [1, 1, 0], [1, 0, 1], [1, 1, 1]], np.float32)
    assert pj.top_k(matrix, 3).tolist() == [3, 1, 2]
    np.testing.assert_array_equal(pj.top_k(matrix, 4), pj.top_k(matrix.mean(1), 4))


def test_top_k_of_means_that_differ_in_the_last_bit_of_float32_is_exact():
    # Many float32 ones and a few zeros: a float32 running sum may tie or swap rows, float64 may not.
    matrix = np.ones((2, 100_000), np.float32)
    matrix[0, 0] = 1 - 2**-24
    assert pj.top_k(matrix, 1).tolist() == [1]


@pytest.mark.parametrize("k", [0, -1, 4, 1.0, True, None])
def test_top_k_refuses_k_out_of_range(k):
    with pytest.raises(ValueError, match="3 candidates"):
        pj.top_k(np.zeros(3), k)


def test_top_k_refuses_candidates_without_scores():
    with pytest.raises(ValueError, match="1 of 3 are NaN \\(first: candidate 1\\)"):
        pj.top_k([0.5, np.nan, 0.5], 2)
    with pytest.raises(ValueError, match="shape"):
        pj.top_k(np.zeros((2, 2, 2)), 1)


@jax.jit
def score(candidates):
    return jax.vmap(lambda candidate: -jnp.sum((pj.perturb(PARAMS, candidate, pj.Noise())["w"] - 0.2) ** 2))(candidates)


def test_the_best_are_those_of_score_population():
    search = pj.AskTell(POPULATION)
    asked = []
    while len((batch := search.ask(5))[0]):
        np.testing.assert_array_equal(batch[1].index, batch[0])
        asked.append(batch)
    assert np.concatenate([indices for indices, _ in asked]).tolist() == list(range(23))
    for indices, candidates in reversed(asked):
        search.tell(indices[::-1], score(candidates)[::-1])
    scores = pj.score_population(lambda p, _: -jnp.sum((p["w"] - 0.2) ** 2), PARAMS, POPULATION, pj.Noise(), None)
    np.testing.assert_array_equal(search.best(7), pj.top_k(scores, 7))


def test_resume_asks_again_for_what_was_not_told():
    search = pj.AskTell(POPULATION)
    first, second = search.ask(8), search.ask(8)
    search.tell(second[0], score(second[1]))
    resumed = pj.AskTell(POPULATION, json.loads(json.dumps(search.state())))
    np.testing.assert_array_equal(resumed.best(8), search.best(8))
    again, candidates = resumed.ask(100)
    assert again.tolist() == [*range(8), *range(16, 23)]
    np.testing.assert_array_equal(candidates.key_data[:8], first[1].key_data)


def test_scores_per_example_count_by_their_mean():
    search = pj.AskTell(POPULATION)
    indices, candidates = search.ask(3)
    assert indices.tolist() == candidates.index.tolist() == [0, 1, 2]
    search.tell(indices, [[0.0, 1.0], [5.0, 1.0], [1.0, 1.0]])
    assert search.best(2).tolist() == [1, 2]
    assert pj.Ensemble(search.population, search.best(2), pj.Noise(), PARAMS).members.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("indices", "scores", "message"),
    [
        ([0], [np.nan], "candidates \\[0\\] are not finite"),
        ([0, 1], [1.0], "shape \\(1,\\) for indices of shape \\(2,\\)"),
        ([0, 0], [1.0, 1.0], "each candidate once"),
        ([9], [1.0], "only what ask has handed out"),
        ([-1], [1.0], "only what ask has handed out"),
        ([3], [1.0], "candidates \\[3\\] have their scores"),
    ],
)
def test_what_cannot_be_told(indices, scores, message):
    search = pj.AskTell(POPULATION)
    search.ask(4)
    search.tell([3], [2.0])
    with pytest.raises(ValueError, match=message):
        search.tell(indices, scores)
    assert search.state()["indices"] == [3]


def test_a_state_of_another_population_and_an_empty_question_are_refused():
    with pytest.raises(ValueError, match="state of population"):
        pj.AskTell(POPULATION, pj.AskTell(pj.Population(seed=1, size=5)).state())
    with pytest.raises(ValueError, match="at least one"):
        pj.AskTell(POPULATION).ask(0)
