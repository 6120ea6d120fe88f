"""Dynamic time warping of tokenizations, against hand-computed cases and unbanded, unvectorized twins."""

import itertools
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_tokenizers import CORPUS, byte_level, marked_spaces, permuted

from perturbjax.ivl.alignment import best_of_rows, dtw_alignment
from perturbjax.ivl.tokens import token_table
from perturbjax.ivl.warping import count_pairs, edit_distances, pair_costs, warp


def distance(a, b):
    """Edit distance as in the textbook."""
    table = [[max(i, j) if not i or not j else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + (a[i - 1] != b[j - 1]))
    return table[-1][-1]


short = st.binary(max_size=9).map(lambda data: bytes(97 + byte % 3 for byte in data))


@given(st.lists(st.tuples(short, short), min_size=1, max_size=30))
@settings(max_examples=30)
def test_edit_distances_equal_the_textbook(pairs):
    firsts, seconds = map(list, zip(*pairs, strict=True))
    assert edit_distances(firsts, seconds).tolist() == [distance(a, b) for a, b in pairs]
    wanted = [0.0 if a == b else 0.1 if a in b or b in a else float(distance(a, b)) for a, b in pairs]
    assert pair_costs(firsts, seconds).tolist() == wanted


def test_costs_of_long_tokens_beside_short_ones():
    firsts, seconds = [b"x" * 200 + b"y", b"ab", b"abc"], [b"z" + b"x" * 200, b"cd", b"b"]
    assert pair_costs(firsts, seconds).tolist() == [2.0, 2.0, 0.1]


def test_a_path_computed_by_hand():
    """Tokens "ab" "c" against "a" "bc": costs 0.1 2 / 1 0.1, and the way over the diagonal costs 0.2."""
    costs = pair_costs([b"ab", b"ab", b"c", b"c"], [b"a", b"bc", b"a", b"bc"])
    assert costs.tolist() == [0.1, 2.0, 1.0, 0.1]
    assert warp([0, 0], [2, 2], costs) == [0, 3]
    # "abc" against "a" "b" "c" meets all three; a band without the corner goes around it.
    assert warp([0], [3], np.full(3, 0.1)) == [0, 1, 2]
    assert warp([0, 1], [2, 3], np.array([0.0, 9.0, 0.0, 0.0])) == [0, 2, 3]


def whole_path_cost(costs):
    total = np.full((len(costs) + 1, len(costs[0]) + 1), np.inf)
    total[0, 0] = 0
    for i, row in enumerate(costs):
        for j, cost in enumerate(row):
            total[i + 1, j + 1] = cost + min(total[i, j], total[i, j + 1], total[i + 1, j])
    return total[-1, -1]


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 10**6))
def test_the_path_is_the_cheapest(rows, columns, seed):
    costs = np.random.default_rng(seed).random((rows, columns))
    path = warp([0] * rows, [columns] * rows, costs.ravel())
    places = [divmod(cell, columns) for cell in path]
    assert places[0] == (0, 0) and places[-1] == (rows - 1, columns - 1)
    steps = {(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(places)}
    assert steps <= {(0, 1), (1, 0), (1, 1)}
    assert sum(costs.ravel()[path]) == pytest.approx(whole_path_cost(costs.tolist()))


@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(2, 6))
def test_the_best_of_rows_equal_the_dense_matrix(seed, rows, columns):
    rng = np.random.default_rng(seed)
    dense = rng.integers(0, 4, (rows, columns)) * (rng.random((rows, columns)) < 0.6)
    pairs = np.argwhere(dense)
    if not len(pairs):
        return
    centered = dense - dense.mean(axis=1, keepdims=True)
    spread = np.ptp(centered, axis=0)
    scaled = np.where(spread > 0, (centered - centered.min(axis=0)) / np.where(spread > 0, spread, 1), 0)
    found = dict(best_of_rows(pairs, dense[dense > 0].astype(float), rows, columns))
    assert set(found) == set(np.flatnonzero(dense.any(axis=1)))
    for row, column in found.items():
        counted = scaled[row][dense[row] > 0]
        assert dense[row, column] > 0 and scaled[row, column] == pytest.approx(counted.max())


@cache
def plain():
    return byte_level(420)


@cache
def byte_level_259():
    return byte_level(259)


@cache
def byte_level_300():
    return byte_level(300)


def test_a_permuted_vocabulary_is_recovered():
    base = plain()
    value = permuted(base, np.random.default_rng(0).permutation(base.vocab_size).tolist())
    vocabulary_map = dtw_alignment(value, base, CORPUS)
    seen = sorted({index for text in CORPUS for index in base.encode(text)})
    texts = token_table(value).texts
    recovered = [texts[vocabulary_map.indices[u, 0]] == token_table(base).texts[u] for u in seen]
    assert np.mean(recovered) >= 0.99
    assert vocabulary_map.matched.sum() == len(seen) + len(token_table(base).roles)
    assert set(vocabulary_map.weights[vocabulary_map.matched].ravel()) == {1.0}


def test_characters_against_words():
    """Every word token is aligned with one of its own characters, and characters with themselves."""
    value, base = byte_level(259), plain()
    vocabulary_map = dtw_alignment(value, base, CORPUS)
    ours, theirs = token_table(value), token_table(base)
    seen = sorted({index for text in CORPUS for index in base.encode(text)})
    for row in seen:
        found, text = ours.texts[vocabulary_map.indices[row, 0]], theirs.texts[row]
        assert vocabulary_map.matched[row] and found is not None and text is not None and found in text
        assert vocabulary_map.exact[row] == (len(text) == 1)


def test_a_prefix_that_one_tokenizer_adds_does_not_shift_the_rest():
    value, base = marked_spaces(["▁the", "▁token", "▁dog", "▁sleep"]), plain()
    text = "the token dog " * 40
    vocabulary_map = dtw_alignment(value, base, [text])
    for word in (b" token", b" dog"):
        row = token_table(base).ids[word]
        assert token_table(value).texts[vocabulary_map.indices[row, 0]] == word


def test_one_long_text_counts_as_its_lines_do():
    """The band loses nothing on real text: many lines, or all in one."""
    table_base, value = token_table(plain()), byte_level(300)
    lines = [text + "\n" for text in CORPUS]
    parts = count_pairs(table_base, token_table(value), [(plain().encode(text), value.encode(text)) for text in lines])
    whole = "".join(lines)
    joined = count_pairs(table_base, token_table(value), [(plain().encode(whole), value.encode(whole))])
    np.testing.assert_array_equal(parts[0], joined[0])
    np.testing.assert_array_equal(parts[1], joined[1])


def check_path(first, second):
    """Every token of both sequences is on the path, which wastes no step."""
    pairs, counts = count_pairs(token_table(byte_level_259()), token_table(byte_level_300()), [(first, second)])
    for side, sequence in enumerate((first, second)):
        found = np.bincount(pairs[:, side], counts, minlength=300)
        assert (found >= np.bincount(sequence, minlength=300)).all() and set(np.flatnonzero(found)) == set(sequence)
    assert max(len(first), len(second)) <= counts.sum() < len(first) + len(second)


@given(st.lists(st.integers(0, 258), min_size=1, max_size=60), st.lists(st.integers(0, 299), min_size=1, max_size=60))
@settings(max_examples=50)
def test_there_is_a_path_whatever_the_sequences_spell(first, second):
    check_path(first, second)


def test_special_tokens_alone_against_a_long_text():
    check_path([0, 1, 2], list(range(40, 130)))
    check_path(list(range(40, 130)), [0, 1, 2])
    check_path([0], [1, 2])


def test_no_text_leaves_only_the_roles():
    vocabulary_map = dtw_alignment(plain(), plain(), ["", ""])
    assert vocabulary_map.matched.sum() == 3 and vocabulary_map.exact.sum() == 3
