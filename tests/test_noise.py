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

from perturbjax import noise
from perturbjax._compat import compiler_options
from perturbjax._erf_inv import erf_inv

KEY = noise.root_key_data(7)
SHAPES = [(), (1,), (7,), (33,), (5, 3), (64, 48), (33, 1), (3, 40, 17), (2, 2, 65, 8)]


def jax_key(key_data):
    return jax.random.wrap_key_data(key_data, impl="threefry2x32")


@pytest.mark.parametrize("shape", SHAPES)
def test_bits_and_gaussian_equal_jax_random(shape):
    assert (noise.bits(KEY, shape) == jax.random.bits(jax_key(KEY), shape)).all()
    assert (noise.gaussian(KEY, shape) == jax.random.normal(jax_key(KEY), shape)).all()


def test_gaussian_equals_jax_random_inside_one_compiled_fusion():
    shape = (1024, 1024)
    expected = jax.random.normal(jax_key(KEY), shape)
    for options in (None, compiler_options("cpu")):
        got = jax.jit(noise.gaussian, static_argnums=1, compiler_options=options)(KEY, shape)
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
    np.testing.assert_array_equal(np.asarray(noise.rademacher(KEY, shape)), expected.reshape(shape))


@pytest.mark.parametrize("distribution", noise.DISTRIBUTIONS)
@pytest.mark.parametrize("shape", [(6, 5), (3, 40, 17)])
@pytest.mark.parametrize("rank", [1, 4])
def test_low_rank_is_the_product_of_its_factors(distribution, shape, rank):
    *leading, rows, columns = shape
    factor = {"gaussian": lambda k, s: jax.random.normal(jax_key(k), s), "rademacher": noise.rademacher}[distribution]
    a, b = factor(noise.fold_in(KEY, 1), (*leading, rows, rank)), factor(noise.fold_in(KEY, 2), (*leading, columns, rank))
    expected = np.asarray(a, np.float64) @ np.swapaxes(np.asarray(b, np.float64), -1, -2) / math.sqrt(rank)
    got = np.asarray(noise.low_rank(KEY, shape, rank, distribution))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert np.linalg.matrix_rank(got.reshape(-1, rows, columns)[0]) == min(rank, rows, columns)


@given(start=st.integers(0, 2**34), shape=st.lists(st.integers(1, 5), min_size=0, max_size=3).map(tuple))
@settings(max_examples=60, deadline=None)
def test_counters_are_the_flat_index_beyond_32_bits(start, shape):
    hi, lo = noise.counters(shape, start)
    flat = start + np.arange(math.prod(shape), dtype=np.uint64).reshape(shape)
    np.testing.assert_array_equal(np.broadcast_to(np.asarray(hi, np.uint64), shape) << np.uint64(32) | np.asarray(lo, np.uint64), flat)


def test_leaves_beyond_2_to_the_32_use_the_high_counter_word():
    # Stacked layers of a 70B model: (80, 8192, 28672) is 1.9e10 elements. Indices only, nothing is allocated.
    shape = (80, 8192, 28672)
    strides = (8192 * 28672, 28672, 1)
    for index in ((0, 0, 1), (18, 2340, 4096), (79, 8191, 28671)):
        flat = sum(i * s for i, s in zip(index, strides, strict=True))
        parts = [noise._multiply_wide(jnp.uint32(i), s) for i, s in zip(index, strides, strict=True)]
        assert sum((int(h) << 32) + int(w) for h, w in parts) == flat
        hi, lo = noise.counters((1,), flat)
        assert (int(np.asarray(hi).reshape(-1)[0]) << 32) + int(lo[0]) == flat
    assert math.prod(shape) > 2**32
    # A block that straddles the boundary equals the two blocks on its sides.
    both = noise.bits(KEY, (8,), 2**32 - 4)
    np.testing.assert_array_equal(both, jnp.concatenate([noise.bits(KEY, (4,), 2**32 - 4), noise.bits(KEY, (4,), 2**32)]))
    assert not np.array_equal(noise.bits(KEY, (4,), 2**32), noise.bits(KEY, (4,), 0))


def test_offset_blocks_equal_the_whole():
    whole = noise.gaussian(KEY, (4, 6, 5))
    np.testing.assert_array_equal(noise.gaussian(KEY, (6, 5), 2 * 30), whole[2])


def test_vmapped_equals_looped():
    keys = jax.vmap(noise.fold_in, (None, 0))(KEY, jnp.arange(3, dtype=jnp.uint32))
    for distribution in noise.DISTRIBUTIONS:
        batched = jax.vmap(lambda k, d=distribution: noise.dense(k, (40, 9), d))(keys)
        for i in range(3):
            np.testing.assert_array_equal(batched[i], noise.dense(noise.fold_in(KEY, i), (40, 9), distribution))


@pytest.mark.parametrize("distribution", noise.DISTRIBUTIONS)
@pytest.mark.parametrize("rank", [None, 3])
def test_moments(distribution, rank):
    shape = (2000, 500)
    values = noise.dense(KEY, shape, distribution) if rank is None else noise.low_rank(KEY, shape, rank, distribution)
    n = values.size if rank is None else rank * sum(shape)  # low-rank elements are not independent: count the factors' draws
    assert abs(float(values.mean())) < 4 / math.sqrt(n if rank is None else min(shape))
    assert abs(float(values.var()) - 1) < 8 / math.sqrt(n)
    if distribution == "rademacher" and rank is None:
        assert set(np.unique(np.asarray(values))) == {-1.0, 1.0}


def test_keys_follow_the_specification():
    assert (noise.root_key_data(5) == jax.random.key_data(jax.random.key(5, impl="threefry2x32"))).all()
    assert (noise.root_key_data(jax.random.key(5, impl="threefry2x32")) == noise.root_key_data(5)).all()
    assert (noise.fold_in(KEY, 9) == jax.random.key_data(jax.random.fold_in(jax_key(KEY), 9))).all()
    assert noise.leaf_hash("layers/mlp/up/kernel") == 3402393033 == zlib.crc32(b"layers/mlp/up/kernel")


def test_other_key_implementations_are_refused():
    with pytest.raises(ValueError, match=r"rbg.*threefry2x32 keys only"):
        noise.root_key_data(jax.random.key(0, impl="rbg"))


def test_unknown_distribution_is_refused():
    with pytest.raises(ValueError, match=r"'cauchy'.*gaussian, rademacher"):
        noise.dense(KEY, (3,), "cauchy")


def test_golden_values():
    """Changing any of these is a breaking change: every saved ensemble would rebuild other models."""
    leaf = noise.fold_in(noise.fold_in(noise.root_key_data(0), 17), noise.leaf_hash("layers/mlp/up/kernel"))
    assert [int(w) for w in leaf] == GOLDEN["leaf_key"]
    np.testing.assert_array_equal(np.asarray(noise.gaussian(leaf, (6,))), np.array(GOLDEN["gaussian"], np.float32))
    assert "".join("+" if v > 0 else "-" for v in np.asarray(noise.rademacher(leaf, (40, 1))).ravel()) == GOLDEN["rademacher"]
    digest = hashlib.sha256(
        np.asarray(noise.gaussian(leaf, (2, 70, 30))).tobytes() + np.asarray(noise.rademacher(leaf, (2, 70, 30))).tobytes()
    )
    assert digest.hexdigest() == GOLDEN["digest"]


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
    "digest": "39dfea5afb4debf2e78cb52f5ea4b84ae9290ed58a7c077a24331a048699fc41",
}
