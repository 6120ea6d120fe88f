"""Noise is a function of the flat index: blocks against the whole, low rank against its factors, moments, and what is refused.

Under ``jit``: made operation by operation, each small program of each shape would be compiled by itself."""

import math
from functools import cache, partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.extend.core.primitives import threefry2x32_p
from support.noise_oracle import DRAWS

from perturbjax.noise import DISTRIBUTIONS, Block, Noise, Slice
from perturbjax.noise import values as noise
from perturbjax.noise.low_rank import low_rank

KEY = noise.root_key_data(7)


def jax_key(key_data):
    return jax.random.wrap_key_data(key_data, impl="threefry2x32")


def dense(key_data, block, distribution):
    return DISTRIBUTIONS[distribution].values(key_data, block)


@cache
def values(shape, distribution, rank):
    """Of a whole leaf."""
    fn = partial(low_rank, rank=rank, distribution=distribution) if rank else partial(dense, distribution=distribution)
    return np.asarray(jax.jit(lambda key: fn(key, Block(shape)))(KEY))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("shape", [(6, 5), (3, 40, 17)])
@pytest.mark.parametrize("rank", [1, 4])
def test_low_rank_is_the_product_of_its_factors(distribution, shape, rank):
    *leading, rows, columns = shape
    draws = ((1, (*leading, rows, rank)), (2, (*leading, columns, rank)))
    a, b = jax.jit(lambda key: [DRAWS[distribution](jax_key(noise.fold_in(key, n)), size) for n, size in draws])(KEY)
    expected = np.asarray(a, np.float64) @ np.swapaxes(np.asarray(b, np.float64), -1, -2) / math.sqrt(rank)
    got = values(shape, distribution, rank)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert np.linalg.matrix_rank(got.reshape(-1, rows, columns)[0]) == min(rank, rows, columns)


def block_and_index(draw, shape, leaf=None):
    """A block of a leaf of ``leaf``, or ``shape``, that lies within ``shape``; and the numpy index that takes the same block."""
    chosen, index = [], []
    for n in shape:
        kind = draw(st.sampled_from(("all", "slice", "list")))
        if kind == "slice":
            size = draw(st.integers(1, min(n, 6)))
            start = draw(st.integers(0, n - size))
            chosen.append(Slice(jnp.int32(start) if draw(st.booleans()) else start, size))
            index.append(range(start, start + size))
        elif kind == "list" or n > 200:
            ids = draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=4))
            chosen.append(jnp.array(ids, jnp.int32))
            index.append(ids)
        else:
            chosen.append(None)
            index.append(range(n))
    return Block(tuple(leaf or shape), tuple(chosen)), index


@given(
    data=st.data(),
    shape=st.sampled_from([(7,), (33,), (5, 3), (70, 6), (3, 40, 5), (2, 2, 65, 4)]),
    kind=st.sampled_from([*((name, None) for name in DISTRIBUTIONS), ("gaussian", 1), ("rademacher", 2)]),
)
@settings(max_examples=60)
def test_any_block_equals_that_block_of_the_whole(data, shape, kind):
    distribution, rank = kind
    block, index = block_and_index(data.draw, shape)
    assert block.shape == tuple(map(len, index))
    if rank is None or len(shape) < 2:
        part = jax.jit(lambda key: dense(key, block, distribution))(KEY)
        np.testing.assert_array_equal(part, values(shape, distribution, None)[np.ix_(*index)])
    else:
        part = jax.jit(lambda key: low_rank(key, block, rank, distribution))(KEY)
        np.testing.assert_allclose(part, values(shape, distribution, rank)[np.ix_(*index)], rtol=1e-6, atol=1e-6)


@given(data=st.data(), shape=st.sampled_from([(80, 8192, 28672), (2**20, 2**13), (2**33,), (3, 5)]))
@settings(max_examples=60)
def test_counters_are_the_flat_index_beyond_32_bits(data, shape):
    within = [min(n, 2**31 - 1) for n in shape]
    block, index = block_and_index(data.draw, within, shape)
    # "All of it" is all of what a test can hold.
    block = Block(shape, tuple(Slice(0, n) if part is None else part for part, n in zip(block.dims, within, strict=True)))
    hi, lo = jax.jit(lambda: noise.counters(block))()
    flat = sum(part.astype(np.uint64) * np.uint64(math.prod(shape[d + 1 :])) for d, part in enumerate(np.ix_(*map(np.array, index))))
    np.testing.assert_array_equal(
        np.broadcast_to(np.asarray(hi, np.uint64), block.shape) << np.uint64(32) | np.asarray(lo, np.uint64), flat
    )


def test_leaves_beyond_2_to_the_32_use_the_high_counter_word():
    # Stacked layers of a 70B model: 1.9e10 elements, of which one row around the boundary is made.
    shape = (80, 8192, 28672)
    layer, rest = divmod(2**32, 8192 * 28672)
    row, column = divmod(rest, 28672)
    block = Block(shape, (Slice(layer, 1), Slice(row, 1), Slice(column - 4, 8)))
    hi, _ = noise.counters(block)
    np.testing.assert_array_equal(np.asarray(hi).ravel(), [0] * 4 + [1] * 4)
    both = noise.bits(KEY, block)
    low = jax.random.bits(jax_key(KEY), (4,))
    assert not np.array_equal(both.ravel()[4:], low), "counter 2**32 must not repeat counter 0"
    expected = threefry2x32_p.bind(*KEY, jnp.repeat(jnp.uint32([0, 1]), 4), jnp.arange(-4, 4).astype(jnp.uint32))
    np.testing.assert_array_equal(both.ravel(), expected[0] ^ expected[1])


def test_vmapped_equals_looped():
    keys = jax.vmap(noise.fold_in, (None, 0))(KEY, jnp.arange(3, dtype=jnp.uint32))
    for distribution in DISTRIBUTIONS:
        one = partial(dense, block=Block((40, 9)), distribution=distribution)
        batched = jax.jit(jax.vmap(one))(keys)
        for i in range(3):
            np.testing.assert_array_equal(batched[i], jax.jit(one)(noise.fold_in(KEY, i)))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("rank", [None, 3])
def test_moments(distribution, rank):
    shape = (2000, 500)
    found = values(shape, distribution, rank)
    n = found.size if rank is None else rank * sum(shape)  # low-rank elements are not independent: count the factors' draws
    assert abs(float(found.mean())) < 4 / math.sqrt(n if rank is None else min(shape))
    assert abs(float(found.var()) - 1) < 8 / math.sqrt(n)
    if distribution == "rademacher" and rank is None:
        assert set(np.unique(found)) == {-1.0, 1.0}


def test_other_key_implementations_are_refused():
    with pytest.raises(ValueError, match=r"rbg.*threefry2x32 keys only"):
        noise.root_key_data(jax.random.key(0, impl="rbg"))


def test_unknown_distribution_is_refused():
    with pytest.raises(ValueError, match=r"'cauchy'.*gaussian, rademacher"):
        Noise("cauchy")
