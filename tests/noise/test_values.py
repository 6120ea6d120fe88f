"""Noise is a function of the flat index: blocks against the whole, low rank against its factors, moments, and what is refused.

Under ``jit``: made operation by operation, each small program of each shape would be compiled by itself."""

import math
from functools import cache

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


SHAPES = [(7,), (33,), (5, 3), (70, 6), (3, 40, 5), (2, 2, 65, 4)]
KINDS = [*((name, None) for name in DISTRIBUTIONS), ("gaussian", 1), ("rademacher", 2)]
PRODUCTS = [(shape, name, rank) for shape in ((6, 5), (3, 40, 17)) for name in DISTRIBUTIONS for rank in (1, 4)]
MOMENTS = [((2000, 500), name, rank) for name in DISTRIBUTIONS for rank in (None, 3)]


def made(key_data, block, distribution, rank):
    if rank is None or len(block.global_shape) < 2:
        return dense(key_data, block, distribution)
    return low_rank(key_data, block, rank, distribution)


@cache
def wholes():
    """Whole leaves by shape, distribution and rank."""
    kinds = {*PRODUCTS, *MOMENTS, *((shape, *kind) for shape in SHAPES for kind in KINDS)}
    kinds = sorted(kinds, key=str)
    found = jax.jit(lambda key: [made(key, Block(shape), name, rank) for shape, name, rank in kinds])(KEY)
    return dict(zip(kinds, map(np.asarray, found), strict=True))


@cache
def factors():
    """Of the leaves of ``PRODUCTS``, drawn by jax.random."""

    def pair(key, shape, name, rank):
        *leading, rows, columns = shape
        draws = ((1, (*leading, rows, rank)), (2, (*leading, columns, rank)))
        return [DRAWS[name](jax_key(noise.fold_in(key, n)), size) for n, size in draws]

    found = jax.jit(lambda key: [pair(key, *product) for product in PRODUCTS])(KEY)
    return dict(zip(PRODUCTS, found, strict=True))


@pytest.mark.parametrize(("shape", "distribution", "rank"), PRODUCTS)
def test_low_rank_is_the_product_of_its_factors(shape, distribution, rank):
    *_, rows, columns = shape
    a, b = factors()[shape, distribution, rank]
    expected = np.asarray(a, np.float64) @ np.swapaxes(np.asarray(b, np.float64), -1, -2) / math.sqrt(rank)
    got = wholes()[shape, distribution, rank]
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


@given(data=st.data(), leaves=st.lists(st.tuples(st.sampled_from(SHAPES), st.sampled_from(KINDS)), min_size=6, max_size=8))
@settings(max_examples=10)
def test_any_block_equals_that_block_of_the_whole(data, leaves):
    blocks, indices = zip(*(block_and_index(data.draw, shape) for shape, _ in leaves), strict=True)
    parts = jax.jit(lambda key: [made(key, block, *kind) for block, (_, kind) in zip(blocks, leaves, strict=True)])(KEY)
    for part, block, index, (shape, (name, rank)) in zip(parts, blocks, indices, leaves, strict=True):
        assert block.shape == tuple(map(len, index))
        whole = wholes()[shape, name, rank][np.ix_(*index)]
        if rank is None or len(shape) < 2:
            np.testing.assert_array_equal(part, whole)
        else:
            np.testing.assert_allclose(part, whole, rtol=1e-6, atol=1e-6)


@given(data=st.data(), shapes=st.lists(st.sampled_from([(80, 8192, 28672), (2**20, 2**13), (2**33,), (3, 5)]), min_size=6, max_size=8))
@settings(max_examples=10)
def test_counters_are_the_flat_index_beyond_32_bits(data, shapes):
    within = [[min(n, 2**31 - 1) for n in shape] for shape in shapes]
    blocks, indices = zip(*(block_and_index(data.draw, *pair) for pair in zip(within, shapes, strict=True)), strict=True)
    # "All of it" is all of what a test can hold.
    blocks = [
        Block(block.global_shape, tuple(Slice(0, n) if part is None else part for part, n in zip(block.dims, sizes, strict=True)))
        for block, sizes in zip(blocks, within, strict=True)
    ]
    found = jax.jit(lambda: [noise.counters(block) for block in blocks])()
    for (hi, lo), block, index in zip(found, blocks, indices, strict=True):
        strides = [math.prod(block.global_shape[d + 1 :]) for d in range(len(index))]
        flat = sum(part.astype(np.uint64) * np.uint64(stride) for part, stride in zip(np.ix_(*map(np.array, index)), strides, strict=True))
        counted = np.broadcast_to(np.asarray(hi, np.uint64), block.shape) << np.uint64(32) | np.asarray(lo, np.uint64)
        np.testing.assert_array_equal(counted, flat)


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
    each = lambda key: [dense(key, Block((40, 9)), name) for name in DISTRIBUTIONS]  # noqa: E731
    one, keys = jax.jit(each), np.stack([noise.fold_in(KEY, i) for i in range(3)])
    batched = jax.jit(jax.vmap(each))(jax.vmap(noise.fold_in, (None, 0))(KEY, jnp.arange(3, dtype=jnp.uint32)))
    for i, key in enumerate(keys):
        for together, alone in zip(batched, one(key), strict=True):
            np.testing.assert_array_equal(together[i], alone)


@pytest.mark.parametrize(("shape", "distribution", "rank"), MOMENTS)
def test_moments(shape, distribution, rank):
    found = wholes()[shape, distribution, rank]
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
