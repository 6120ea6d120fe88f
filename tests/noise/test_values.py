"""The noise specification against jax.random, exhaustively where that is possible, and its golden values."""

import hashlib
import math
import zlib

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.extend.core.primitives import threefry2x32_p
from support.noise_oracle import DRAWS

from perturbjax._compat import compiler_options
from perturbjax.noise import DISTRIBUTIONS, Block, Noise, Slice
from perturbjax.noise import values as noise
from perturbjax.noise.erf_inv import erf_inv
from perturbjax.noise.low_rank import low_rank
from perturbjax.tree import path_hash

KEY = noise.root_key_data(7)
SHAPES = [(), (1,), (7,), (33,), (5, 3), (64, 48), (33, 1), (3, 40, 17), (2, 2, 65, 8)]


def jax_key(key_data):
    return jax.random.wrap_key_data(key_data, impl="threefry2x32")


@pytest.mark.parametrize("shape", SHAPES)
def test_bits_and_gaussian_equal_jax_random(shape):
    assert (noise.bits(KEY, Block(shape)) == jax.random.bits(jax_key(KEY), shape)).all()
    assert (noise.gaussian(KEY, Block(shape)) == jax.random.normal(jax_key(KEY), shape)).all()


def test_gaussian_equals_jax_random_inside_one_compiled_fusion():
    shape = (1024, 1024)
    expected = jax.random.normal(jax_key(KEY), shape)
    for options in (None, compiler_options("cpu")):
        got = jax.jit(noise.gaussian, compiler_options=options)(KEY, Block(shape))
        assert (got == expected).all()


def test_erf_inv_equals_lax_for_every_uniform_that_jax_random_normal_can_draw():
    low = np.nextafter(np.float32(-1), np.float32(0))
    unit = jax.lax.bitcast_convert_type(jnp.arange(2**23, dtype=jnp.uint32) | jnp.uint32(0x3F800000), jnp.float32) - 1.0
    uniform = unit * (np.float32(1) - low) + low
    assert float(uniform.min()) > -1 and float(uniform.max()) < 1
    np.testing.assert_array_equal(np.asarray(jax.jit(erf_inv)(uniform)), np.asarray(jax.jit(jax.lax.erf_inv)(uniform)))


@pytest.mark.parametrize("shape", SHAPES)
def test_rademacher_follows_the_bit_layout(shape):
    blocks, rows, columns = math.prod(shape[:-2]), shape[-2] if len(shape) > 1 else 1, shape[-1] if shape else 1
    groups = -(-rows // 32)
    words = np.asarray(jax.random.bits(jax_key(KEY), (blocks * groups * columns,)))
    expected = np.empty((blocks, rows, columns), np.float32)
    for b in range(blocks):
        for r in range(rows):
            for c in range(columns):
                word = words[(b * groups + r // 32) * columns + c]
                expected[b, r, c] = 1 if (int(word) >> (r % 32)) & 1 else -1
    np.testing.assert_array_equal(np.asarray(noise.rademacher(KEY, Block(shape))), expected.reshape(shape))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("shape", [(6, 5), (3, 40, 17)])
@pytest.mark.parametrize("rank", [1, 4])
def test_low_rank_is_the_product_of_its_factors(distribution, shape, rank):
    *leading, rows, columns = shape
    factor = DRAWS[distribution]
    a, b = factor(jax_key(noise.fold_in(KEY, 1)), (*leading, rows, rank)), factor(jax_key(noise.fold_in(KEY, 2)), (*leading, columns, rank))
    expected = np.asarray(a, np.float64) @ np.swapaxes(np.asarray(b, np.float64), -1, -2) / math.sqrt(rank)
    got = np.asarray(low_rank(KEY, Block(shape), rank, distribution))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert np.linalg.matrix_rank(got.reshape(-1, rows, columns)[0]) == min(rank, rows, columns)


def dense(key_data, block, distribution):
    return DISTRIBUTIONS[distribution].values(key_data, block if isinstance(block, Block) else Block(block))


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
        whole, part = dense(KEY, shape, distribution), dense(KEY, block, distribution)
        np.testing.assert_array_equal(part, np.asarray(whole)[np.ix_(*index)])
    else:
        whole, part = low_rank(KEY, Block(shape), rank, distribution), low_rank(KEY, block, rank, distribution)
        np.testing.assert_allclose(part, np.asarray(whole)[np.ix_(*index)], rtol=1e-6, atol=1e-6)


@given(data=st.data(), shape=st.sampled_from([(80, 8192, 28672), (2**20, 2**13), (2**33,), (3, 5)]))
@settings(max_examples=60)
def test_counters_are_the_flat_index_beyond_32_bits(data, shape):
    within = [min(n, 2**31 - 1) for n in shape]
    block, index = block_and_index(data.draw, within, shape)
    # "All of it" is all of what a test can hold.
    block = Block(shape, tuple(Slice(0, n) if part is None else part for part, n in zip(block.dims, within, strict=True)))
    hi, lo = noise.counters(block)
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
        batched = jax.vmap(lambda k, d=distribution: dense(k, (40, 9), d))(keys)
        for i in range(3):
            np.testing.assert_array_equal(batched[i], dense(noise.fold_in(KEY, i), (40, 9), distribution))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("rank", [None, 3])
def test_moments(distribution, rank):
    shape = (2000, 500)
    values = dense(KEY, shape, distribution) if rank is None else low_rank(KEY, Block(shape), rank, distribution)
    n = values.size if rank is None else rank * sum(shape)  # low-rank elements are not independent: count the factors' draws
    assert abs(float(values.mean())) < 4 / math.sqrt(n if rank is None else min(shape))
    assert abs(float(values.var()) - 1) < 8 / math.sqrt(n)
    if distribution == "rademacher" and rank is None:
        assert set(np.unique(np.asarray(values))) == {-1.0, 1.0}


def test_keys_follow_the_specification():
    assert (noise.root_key_data(5) == jax.random.key_data(jax.random.key(5, impl="threefry2x32"))).all()
    assert (noise.root_key_data(jax.random.key(5, impl="threefry2x32")) == noise.root_key_data(5)).all()
    assert (noise.fold_in(KEY, 9) == jax.random.key_data(jax.random.fold_in(jax_key(KEY), 9))).all()
    assert path_hash("layers/mlp/up/kernel") == 3402393033 == zlib.crc32(b"layers/mlp/up/kernel")


def test_other_key_implementations_are_refused():
    with pytest.raises(ValueError, match=r"rbg.*threefry2x32 keys only"):
        noise.root_key_data(jax.random.key(0, impl="rbg"))


def test_unknown_distribution_is_refused():
    with pytest.raises(ValueError, match=r"'cauchy'.*gaussian, rademacher"):
        Noise("cauchy")


def test_golden_values():
    block = Block((2, 70, 30))
    """Changing any of these is a breaking change: every saved ensemble would rebuild other models."""
    leaf = noise.fold_in(noise.fold_in(noise.root_key_data(0), 17), path_hash("layers/mlp/up/kernel"))
    assert [int(w) for w in leaf] == GOLDEN["leaf_key"]
    np.testing.assert_array_equal(np.asarray(noise.gaussian(leaf, Block((6,)))), np.array(GOLDEN["gaussian"], np.float32))
    assert "".join("+" if v > 0 else "-" for v in np.asarray(noise.rademacher(leaf, Block((40, 1)))).ravel()) == GOLDEN["rademacher"]
    digests = {name: hashlib.sha256(np.asarray(dense(leaf, block, name)).tobytes()).hexdigest() for name in DISTRIBUTIONS}
    assert digests == GOLDEN["digests"]


GOLDEN = {
    "leaf_key": [2667858783, 2656860305],
    "gaussian": [
        1.0003951787948608,
        -1.395497441291809,
        -0.012592551298439503,
        -0.8678308129310608,
        0.20459365844726562,
        -1.122714877128601,
    ],
    "rademacher": "----+-++-+---+-+---+-++-+++-+-++++-----+",
    "digests": {
        "gaussian": "031ac6757af83415f22b333fb8b741a7833088285411d5f4c9bfebc6490ee64c",
        "rademacher": "62d070afe516a9fb2cfd1f721c7e3f7001393e5e5ac270ba6d24741a8c27c5d6",
    },
}
