import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import perturbjax as pj


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
