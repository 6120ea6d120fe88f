"""The bits that are laid down: keys and values against jax.random, exhaustively where that is possible, and golden values.
Compiled as users compile them."""

import hashlib
import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturbjax._compat import compiler_options
from perturbjax.noise import DISTRIBUTIONS
from perturbjax.noise import values as noise
from perturbjax.noise.block import Block
from perturbjax.noise.erf_inv import erf_inv
from perturbjax.tree import path_hash

pytestmark = pytest.mark.usefixtures("optimized")

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


def test_keys_follow_the_specification():
    assert (noise.root_key_data(5) == jax.random.key_data(jax.random.key(5, impl="threefry2x32"))).all()
    assert (noise.root_key_data(jax.random.key(5, impl="threefry2x32")) == noise.root_key_data(5)).all()
    assert (noise.fold_in(KEY, 9) == jax.random.key_data(jax.random.fold_in(jax_key(KEY), 9))).all()
    assert path_hash("layers/mlp/up/kernel") == 3402393033 == zlib.crc32(b"layers/mlp/up/kernel")


def test_golden_values():
    """Changing any of these is a breaking change: every saved ensemble would rebuild other models."""
    block = Block((2, 70, 30))
    leaf = noise.fold_in(noise.fold_in(noise.root_key_data(0), 17), path_hash("layers/mlp/up/kernel"))
    assert [int(w) for w in leaf] == GOLDEN["leaf_key"]
    np.testing.assert_array_equal(np.asarray(noise.gaussian(leaf, Block((6,)))), np.array(GOLDEN["gaussian"], np.float32))
    assert "".join("+" if v > 0 else "-" for v in np.asarray(noise.rademacher(leaf, Block((40, 1)))).ravel()) == GOLDEN["rademacher"]
    digests = {name: hashlib.sha256(np.asarray(DISTRIBUTIONS[name].values(leaf, block)).tobytes()).hexdigest() for name in DISTRIBUTIONS}
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
