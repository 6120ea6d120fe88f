"""Packing: every token, query and choice arrives where the program looks for it, for any mix of lengths."""

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from perturbjax.scoring.forced import packed_mask
from perturbjax.scoring.packing import ScoringExample, common_prefix, pack, unpack

tokens = st.integers(1, 1000)
examples = st.lists(
    st.builds(
        ScoringExample,
        st.lists(tokens, min_size=1, max_size=90).map(tuple),
        st.lists(st.lists(tokens, min_size=1, max_size=4).map(tuple), min_size=2, max_size=5).map(tuple),
    ),
    min_size=1,
    max_size=40,
)


@given(examples, st.lists(tokens, max_size=50))
@settings(max_examples=40, deadline=None)
def test_packed_rows_hold_every_example_once_and_queries_see_its_tokens(items, prefix):
    packings = pack(prefix, items)
    assert sorted(n for packing in packings for n in packing.examples) == list(range(len(items)))
    for packing in packings:
        check(packing, [items[n] for n in packing.examples], prefix)


def check(packing, items, prefix):
    batch = packing.batch
    used = batch.example >= 0
    assert used.sum() + len(prefix) == packing.tokens and not used[batch.count :].any()
    assert batch.prefix[0, : batch.prefix_length].tolist() == list(prefix)
    slots, _, width = batch.tokens.shape
    asked: dict[tuple[int, int], list[int]] = {}
    for s, q, e, c in packing.owner:
        row, column = divmod(int(batch.query[s, q]), width)
        mask = np.asarray(packed_mask(jnp.asarray(batch.example[s]), jnp.asarray(batch.branch[s])))[row, column]
        seen = batch.tokens[s, row][mask].tolist()
        assert batch.positions[s, row][mask].tolist() == list(range(len(prefix), len(prefix) + len(seen)))
        if packing.single:
            assert seen == list(items[e].prompt)
            assert batch.ids[s, q, : len(items[e].choices)].tolist() == [choice[0] for choice in items[e].choices]
        else:
            done = asked.setdefault((int(e), int(c)), [])
            assert seen == [*items[e].prompt, *done]
            done.append(int(batch.ids[s, q, 0]))
    if packing.single:
        assert sorted(packing.owner[:, 2]) == list(range(len(items)))
    else:
        assert asked == {(e, c): list(choice) for e, item in enumerate(items) for c, choice in enumerate(item.choices)}
    assert slots >= batch.count >= 1


def test_shapes_depend_on_length_buckets_only():
    shape = lambda items: [{k: np.shape(v) for k, v in packing.batch.arrays().items()} for packing in pack([1, 2], items)]  # noqa: E731
    few = [ScoringExample((3,) * 5, ((7,), (8,)))] * 2
    many = [ScoringExample((3,) * n, ((7,), (8,))) for n in range(1, 200)]
    assert shape(few) == shape(many)
    long = ScoringExample((3,) * 300, ((7,), (8,)))
    assert shape([*few, long, *few])[0] == shape(few)[0] != shape([long])[0] == shape([*few, long])[1]


def test_common_prefix_leaves_each_sequence_a_token():
    assert common_prefix([[1, 2, 3], [1, 2, 4]]) == 2
    assert common_prefix([[1, 2], [1, 2, 3]]) == 1
    assert common_prefix([[5, 6, 7]]) == 2
    assert common_prefix([[1], [2]]) == 0


def test_unpack_normalises_over_the_choices_of_each_example():
    (packing,) = pack([], [ScoringExample((1, 2), ((3,), (4,))), ScoringExample((5,), ((3,), (4,), (6,)))])
    values = np.random.default_rng(0).standard_normal((2, *packing.batch.ids.shape)).astype(np.float32)
    log_probs = unpack([packing], [values])
    assert log_probs.shape == (2, 2, 3) and (log_probs[:, 0, 2] == -np.inf).all()
    np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1)
    slot, query = next((s, q) for s, q, e, _ in packing.owner if e == 1)
    np.testing.assert_allclose(np.diff(log_probs[:, 1], axis=-1), np.diff(values[:, slot, query, :3], axis=-1), rtol=1e-5)


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ValueError, match="8193 tokens"):
        pack([], [ScoringExample((1,) * 8193, ((2,),))])
    with pytest.raises(ValueError, match="choice tokens"):
        pack([], [ScoringExample((1,), tuple((2, 3) for _ in range(65)))])
