"""Packing: every token, query and choice arrives where the program looks for it, for any mix of lengths; and outputs of several models:
rows taken and chunks joined are those of the whole."""

from types import SimpleNamespace

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from perturbjax.inference.outputs import Outputs
from perturbjax.inference.packing import SHARED, ScoringExample, common_prefix, pack, unpack
from perturbjax.inference.programs import packed_mask

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


@given(examples, st.lists(tokens, max_size=50), st.sampled_from([1, 512, 1024, 4096]))
@settings(max_examples=40)
def test_packed_rows_hold_every_example_once_and_queries_see_its_tokens(items, prefix, slot_tokens):
    packings = pack(prefix, items, slot_tokens)
    assert sorted(n for packing in packings for n in packing.examples) == list(range(len(items)))
    for packing in packings:
        check(packing, [items[n] for n in packing.examples], prefix)


def check(packing, items, prefix):
    batch = SimpleNamespace(**packing.arrays)
    used = batch.example >= 0
    assert used.sum() + len(prefix) * batch.num_valid == packing.tokens and not used[batch.num_valid :].any()
    shown = batch.tokens[: batch.num_valid, 0, : len(batch.lead)][:, batch.lead]
    assert (shown == np.array(prefix, int)).all() and batch.lead.sum() == len(prefix)
    assert ((batch.example == SHARED).sum(axis=(1, 2))[: batch.num_valid] == len(prefix)).all()
    slots, _, width = batch.tokens.shape
    asked: dict[tuple[int, int], list[int]] = {}
    for s, q, e, c in packing.owner:
        row, column = divmod(int(batch.query[s, q]), width)
        mask = np.array(packed_mask(jnp.asarray(batch.example[s]), jnp.asarray(batch.branch[s]))[row, column])
        if row == 0:
            assert mask[: len(prefix)].all(), "the first row sees the prefix that it holds"
            mask[: len(prefix)] = False
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
    assert slots >= batch.num_valid >= 1


def test_shapes_depend_on_buckets_only():
    def shapes(items):
        return [{k: np.shape(v) for k, v in packing.arrays.items()} for packing in pack([1, 2], items, 1024)]

    few = [ScoringExample((3,) * 5, ((7,), (8,)))] * 2
    more = [ScoringExample((3,) * n, ((7,), (8,))) for n in range(1, 21)]
    many = [ScoringExample((3,) * n, ((7,), (8,))) for n in range(1, 200)]
    assert shapes(few) == shapes(more) and shapes(many)[0]["tokens"] == (64, 4, 256)
    long = ScoringExample((3,) * 300, ((7,), (8,)))
    assert shapes([*few, long, *few])[0] == shapes(few)[0] != shapes([long])[0] == shapes([*few, long])[1]


def test_slots_are_few_and_rows_no_more_than_they_need():
    items = [ScoringExample((3,) * 100, ((7,), (8,)))] * 18  # two a row beside a short prefix
    for slot_tokens, (slots, rows) in {256: (9, 1), 1024: (3, 3), 4096: (1, 10)}.items():
        (packing,) = pack([1, 2], items, slot_tokens)
        assert (packing.arrays["num_valid"], packing.arrays["tokens"].shape[1]) == (slots, rows)


def test_common_prefix_leaves_each_sequence_a_token():
    assert common_prefix([[1, 2, 3], [1, 2, 4]]) == 2
    assert common_prefix([[1, 2], [1, 2, 3]]) == 1
    assert common_prefix([[5, 6, 7]]) == 2
    assert common_prefix([[1], [2]]) == 0


def test_unpack_normalises_over_the_choices_of_each_example():
    (packing,) = pack([], [ScoringExample((1, 2), ((3,), (4,))), ScoringExample((5,), ((3,), (4,), (6,)))], 1024)
    values = np.random.default_rng(0).standard_normal((2, *packing.arrays["ids"].shape)).astype(np.float32)
    log_probs = unpack([packing], [values])
    assert log_probs.shape == (2, 2, 3) and (log_probs[:, 0, 2] == -np.inf).all()
    np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1)
    slot, query = next((s, q) for s, q, e, _ in packing.owner if e == 1)
    np.testing.assert_allclose(np.diff(log_probs[:, 1], axis=-1), np.diff(values[:, slot, query, :3], axis=-1), rtol=1e-5)


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ValueError, match="8193 tokens"):
        pack([], [ScoringExample((1,) * 8193, ((2,),))], 1024)
    with pytest.raises(ValueError, match="choice tokens"):
        pack([], [ScoringExample((1,), tuple((2, 3) for _ in range(513)))], 1024)


def outputs(models: range, choice: bool = True) -> Outputs:
    """Of models whose every figure is made of their number, on two examples."""
    number = np.array(models)[:, None] + np.zeros(2, np.float32)
    answers = tuple((str(i), None) for i in models)
    log_probs = np.repeat(number[..., None], 3, axis=2) if choice else None
    row_steps = None if choice else number.astype(np.int64)
    keys = tuple((str(i % 2), None) for i in models)
    reply_tokens = None if choice else np.repeat(number[..., None], 4, axis=2).astype(np.int32)
    return Outputs(answers, keys, number, -number, np.array(models, np.int64), 0.5, 1, log_probs, row_steps, reply_tokens)


def assert_equal(mine: Outputs, theirs: Outputs) -> None:
    assert (mine.answers, mine.keys) == (theirs.answers, theirs.keys)
    for name in ("scores", "lenient", "tokens", "log_probs", "row_steps", "reply_tokens"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))


def test_chunks_joined_are_the_whole():
    for choice in (True, False):
        joined = Outputs.concatenate([outputs(range(3), choice), outputs(range(3, 7), choice), outputs(range(7, 8), choice)])
        assert_equal(joined, outputs(range(8), choice))
        assert (joined.seconds, joined.nonfinite) == (1.5, 3)


def test_taken_rows_stand_in_the_given_order():
    whole = outputs(range(6))
    taken = whole.take([4, 1, 1])
    parts = [outputs(range(i, i + 1)) for i in (4, 1, 1)]
    assert_equal(taken, Outputs.concatenate(parts))
    assert (taken.seconds, taken.nonfinite) == (whole.seconds, whole.nonfinite)
    assert outputs(range(2), choice=False).take(np.array([1])).log_probs is None
