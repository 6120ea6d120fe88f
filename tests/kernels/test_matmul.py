"""The kernels, interpreted, against the noise specification and a dot: words bit for bit, products to rounding."""

import math
from functools import partial

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from perturbjax.kernels import tpu
from perturbjax.kernels.matmul import perturbed_matmul
from perturbjax.kernels.problem import Problem
from perturbjax.kernels.tiling import VMEM_BYTES, Tiles, choose
from perturbjax.noise import DISTRIBUTIONS, Block, Slice, tile
from perturbjax.noise.low_rank import low_rank, low_rank_factors
from perturbjax.noise.values import fold_in, root_key_data

pytestmark = pytest.mark.usefixtures("optimized")

KEYS = jax.vmap(lambda i: fold_in(root_key_data(11), i))(jnp.arange(5, dtype=jnp.uint32))
STEPS = jnp.asarray([0.5, -0.25, 1.0, 0.125, -2.0], jnp.float32)
KERNELS = ("tpu", "gpu")


def draw(seed, shape, dtype=jnp.float32):
    # Small integers: products and sums of unperturbed weights are exact, so that differences are the noise's.
    return jax.random.randint(jax.random.key(seed), shape, -4, 5).astype(dtype)


def dense_block(key, shape, distribution, rank, offsets, block):
    """E of a block, cut out of the whole leaf's noise where that can be held."""
    whole = Block(shape)
    e = low_rank(key, whole, rank, distribution) if rank else DISTRIBUTIONS[distribution].values(key, whole)
    lead, row, column = offsets
    return e.reshape(-1, *shape[-2:])[lead, row : row + block[0], column : column + block[1]]


def expected(x, w, step, e, transposed):
    perturbed = (w.astype(jnp.float32) + step * e).astype(w.dtype).astype(jnp.float32)
    return x.astype(jnp.float32) @ (perturbed.T if transposed else perturbed)


def noise_of_kernel(lowering, key, block, **options):
    """The noise that the kernel makes: the identity times (0 + 1 * E)."""
    rows = block[1] if options.get("transposed") else block[0]
    eye, w = jnp.eye(rows), jnp.zeros(block)
    return perturbed_matmul(eye, w, key, jnp.float32(1), lowering=lowering, interpret=True, precision="highest", **options)


@pytest.mark.parametrize("lowering", KERNELS)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(
    "shape, block, offsets",
    [
        ((3, 100, 70), (40, 33), (2, 32, 5)),  # a shard of a stacked layer that begins at a word
        ((3, 100, 70), (67, 33), (1, 31, 37)),  # and one that begins inside a word
    ],
)
def test_noise_is_the_leafs_bit_for_bit(lowering, distribution, shape, block, offsets):
    got = noise_of_kernel(lowering, KEYS[0], block, shape=shape, distribution=distribution, offsets=offsets)
    np.testing.assert_array_equal(np.asarray(got), np.asarray(dense_block(KEYS[0], shape, distribution, None, offsets, block)))


@pytest.mark.parametrize("lowering", KERNELS)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_noise_beyond_2_to_the_32_elements(lowering, distribution):
    # Leaves of that size exist only as indices. The block begins before word number 2**32 and ends after it.
    rows_per_word = DISTRIBUTIONS[distribution].rows_per_word
    shape, block = (80 * rows_per_word, 8192, 28672), (48, 16)
    lead, rest = divmod(2**32, 8192 * 28672 // rows_per_word)
    row, column = divmod(rest, 28672)
    assert row >= 1 and 8 <= column <= 28672 - 8
    offsets = tuple(jnp.uint32(o) for o in (lead, (row - 1) * rows_per_word, column - 8))
    got = noise_of_kernel(lowering, KEYS[1], block, shape=shape, distribution=distribution, offsets=offsets)
    part = Block(shape, tuple(Slice(offset, size) for offset, size in zip(offsets, (1, *block), strict=True)))
    np.testing.assert_array_equal(np.asarray(got), np.asarray(DISTRIBUTIONS[distribution].values(KEYS[1], part)[0]))


def test_compiled_kernels_draw_the_same_normals_to_rounding():
    # Interpreted kernels compute erf_inv in XLA:CPU's operations, compiled ones in their own, and leave logarithm and root to the compiler.
    words = jnp.arange(2**23, dtype=jnp.uint32) << 9  # all that jax.random.normal tells apart
    got = tile.normal(words, exact=False)  # not jitted: XLA joins additions, which the compilers of kernels do not
    want = jax.jit(partial(tile.normal, exact=True))(words)
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=2e-6)


@pytest.mark.parametrize(
    "distribution, transposed, tiles",
    [
        ("rademacher", False, Tiles(8, 32, 16, 1)),
        ("gaussian", False, Tiles(5, 64, 128, 2)),
        ("rademacher", True, Tiles(16, 48, 32, 5)),
        ("gaussian", True, Tiles(13, 96, 40, 3)),
    ],
    ids=str,
)
def test_tiles_do_not_matter(distribution, transposed, tiles):
    # Ragged in every dim: rows, the sum, columns, and candidates of a pass.
    block, shape, offsets = ((70, 100) if transposed else (100, 70)), (2, 150, 130), (1, 32, 9)
    problem = Problem(distribution, shape, None, transposed, True, None, jnp.dtype(jnp.float32))
    x, w = draw(0, (5, 13, 100)), draw(1, block)
    product = jax.jit(partial(tpu.matmul, problem, tiles=tiles, interpret=True))
    got = product(x, w[None], jnp.int32(0), jnp.asarray(offsets, jnp.uint32), KEYS, STEPS)
    for c in range(5):
        e = dense_block(KEYS[c], shape, distribution, None, offsets, block)
        np.testing.assert_allclose(np.asarray(got[c]), np.asarray(expected(x[c], w, STEPS[c], e, transposed)), rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize(
    "lowering, dtype, distribution, rank, transposed",
    [
        ("tpu", jnp.bfloat16, "gaussian", None, True),
        ("tpu", jnp.bfloat16, "rademacher", None, False),
        ("tpu", jnp.float32, "gaussian", 1, True),
        ("tpu", jnp.bfloat16, "rademacher", 3, False),
        ("gpu", jnp.bfloat16, "gaussian", None, False),
        ("gpu", jnp.bfloat16, "rademacher", None, True),
        ("gpu", jnp.float32, "rademacher", 1, False),
        ("gpu", jnp.bfloat16, "gaussian", 3, True),
        (None, jnp.bfloat16, "gaussian", None, False),
        (None, jnp.bfloat16, "rademacher", None, True),
        (None, jnp.float32, "gaussian", 3, False),
    ],
)
def test_products(lowering, dtype, distribution, rank, transposed):
    shape, block, offsets = (90, 80), ((33, 80) if transposed else (80, 33)), (0, 7, 0)
    x, w = draw(2, (3, 5, 80), dtype), draw(3, block, dtype)
    product = partial(
        perturbed_matmul, shape=shape, distribution=distribution, rank=rank, offsets=offsets, transposed=transposed,
        lowering=lowering, interpret=lowering is not None, preferred_element_type=jnp.float32,
    )  # fmt: skip
    got = jax.jit(product)(x, w, KEYS[:3], STEPS[:3])
    assert got.dtype == jnp.float32
    for c in range(3):
        e = dense_block(KEYS[c], shape, distribution, rank, offsets, block)
        want = expected(x[c], w, STEPS[c], e, transposed)
        # Rounded to bfloat16 once, equal weights give equal products. Low-rank noise is summed in another order.
        rtol, atol = (1e-5, 2e-4) if dtype == jnp.float32 or rank != 3 else (1e-2, 0.2)
        np.testing.assert_allclose(np.asarray(got[c]), np.asarray(want), rtol=rtol, atol=atol)


@pytest.mark.parametrize("lowering", (*KERNELS, "reference"))
@pytest.mark.parametrize("rank", (None, 2))
def test_a_matrix_of_a_stack_is_read_in_place(lowering, rank):
    # Matrices 2 to 4 of a leaf of 6, of which a traced index picks one, with the factors of low-rank noise made beforehand.
    shape, stack, x = (6, 64, 48), draw(6, (3, 64, 48)), draw(7, (5, 64))
    product = partial(perturbed_matmul, shape=shape, distribution="gaussian", rank=rank, lowering=lowering, interpret=lowering in KERNELS)

    @jax.jit
    def one(index):
        matrix = Block(shape).take(0, Slice(index + 2, 1))
        factors = None
        if rank:
            a, b = low_rank_factors(KEYS[0], matrix, rank, "gaussian")
            factors = (a[0], b[0])
        return product(x, stack, KEYS[0], STEPS[0], index=index, offsets=(index + 2, 0, 0), factors=factors)

    for index in range(3):
        e = dense_block(KEYS[0], shape, "gaussian", rank, (index + 2, 0, 0), (64, 48))
        want = expected(x, stack[index], STEPS[0], e, False)
        np.testing.assert_allclose(np.asarray(one(jnp.int32(index))), np.asarray(want), rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("dtype", (jnp.float32, jnp.bfloat16))
def test_result_dtype_is_that_of_x_by_default(dtype):
    x, w = draw(2, (5, 32), dtype), draw(3, (32, 8), dtype)
    assert perturbed_matmul(x, w, KEYS[0], STEPS[0], shape=w.shape).dtype == dtype


@jax.jit
def single(x, w, key, step, offset):
    return perturbed_matmul(
        x, w, key, step, shape=(4, 64, 48), distribution="rademacher", offsets=(offset, 0, 0), lowering="tpu", interpret=True
    )


X, W, OFFSETS = draw(4, (3, 2, 6, 64)), draw(5, (3, 64, 48)), jnp.arange(3, dtype=jnp.uint32)


@pytest.mark.parametrize(
    "axes",
    [
        (0, None, 0, 0, None),  # candidates
        (None, None, 0, 0, None),  # candidates of one x
        (None, None, None, 0, None),  # sigmas of one key
        (0, None, None, None, None),  # more rows
        (None, 0, None, None, 0),  # layers
        (0, 0, 0, 0, 0),  # everything
    ],
)
@pytest.mark.parametrize("outer", (None, 0))
def test_vmap_equals_a_loop(axes, outer):
    operands = [X[:, 0], W, KEYS[:3], STEPS[:3], OFFSETS]
    operands = [v if axis == 0 else v[0] for v, axis in zip(operands, axes, strict=True)]
    mapped = jax.vmap(single, in_axes=axes)
    if outer is None:
        got = jax.jit(mapped)(*operands)
        want = [single(*(v[i] if axis == 0 else v for v, axis in zip(operands, axes, strict=True))) for i in range(3)]
    else:
        # Examples outside of whatever is inside.
        xs = X[:, :2].swapaxes(0, 1) if axes[0] == 0 else X[0]
        got = jax.jit(jax.vmap(mapped, in_axes=(0, None, None, None, None)))(xs, *operands[1:]).reshape(6, 6, 48)
        want = [
            single(xs[o][i] if axes[0] == 0 else xs[o], *(v[i] if a == 0 else v for v, a in zip(operands[1:], axes[1:], strict=True)))
            for o in range(2)
            for i in range(3)
        ]
    np.testing.assert_allclose(np.asarray(got), np.asarray(jnp.stack(want)), rtol=1e-6, atol=1e-5)


def calls(closed):
    """Pallas calls of a program, loops included, as (grid, whether inside a loop)."""
    found = []

    def walk(jaxpr, looped):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "pallas_call":
                found.append((eqn.params["grid_mapping"].grid, looped))
                continue
            for inner in jax.extend.core.jaxprs_in_params(eqn.params):
                walk(getattr(inner, "jaxpr", inner), looped or eqn.primitive.name in ("scan", "while"))

    walk(closed.jaxpr, False)
    return found


def test_vmap_over_candidates_is_one_call_that_shares_the_weights_tiles():
    program = jax.make_jaxpr(jax.vmap(single, in_axes=(0, None, 0, 0, None)))(X[:, 0], W[0], KEYS[:3], STEPS[:3], OFFSETS[0])
    [(grid, looped)] = calls(program)
    assert not looped and grid[-1] == 3  # candidates innermost


def test_chosen_tiles_divide_and_fit():
    assert choose(64, 8, 8192, 28672, 2) == Tiles(8, 512, 512, 64)
    tiles = choose(64, 2048, 3584, 18944, 2)
    assert 3584 % tiles.inner == 0 and 18944 % tiles.columns == 0 and tiles.candidates >= 1
    assert choose(3, 5, 576, 100, 4) == Tiles(5, 576, 100, 3)
    assert choose(1, 2049, 1024, 1024, 2).rows == 1040  # two blocks, not one and a nearly empty one
    for rows, inner, columns, itemsize in ((100_000, 4096, 151_936, 4), (1, 700, 1111, 2), (4096, 1000, 1000, 4)):
        tiles = choose(7, rows, inner, columns, itemsize)
        assert math.ceil(7 / tiles.candidates) * tiles.candidates < 7 + tiles.candidates
        assert 4 * tiles.rows * tiles.columns * tiles.candidates <= VMEM_BYTES


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(step=jnp.float32(1)), "key_data uint32"),
        (dict(step=jnp.ones(3, jnp.bfloat16)), "step bfloat16"),
        (dict(x=jnp.ones((4, 2, 32))), r"x of shape \(4, 2, 32\)"),
        (dict(x=jnp.ones((3, 2, 32), jnp.bfloat16)), "must both be bfloat16"),
        (dict(w=jnp.ones((31, 8))), "x of shape"),
        (dict(shape=(8,)), "a leaf of shape"),
        (dict(shape=(16, 8)), "w has 32 rows"),
        (dict(offsets=(0, 0, 1)), "w has 8 columns from 1"),
        (dict(distribution="uniform"), "distribution 'uniform'"),
        (dict(rank=0), "rank 0"),
        (dict(rank=2, factors=(jnp.ones((3, 32, 1)), jnp.ones((3, 8, 1)))), r"factors of shapes .* must be \(\(3, 32, 2\), \(3, 8, 2\)\)"),
        (dict(w=jnp.ones((1, 1, 32, 8))), "w of shape"),
        (dict(lowering="cuda"), "lowering 'cuda'"),
        (dict(interpret=True), "interpret"),
    ],
)
def test_mistakes_are_named_before_anything_is_traced(change, message):
    arguments = dict(x=jnp.ones((3, 2, 32)), w=jnp.ones((32, 8)), key_data=KEYS[:3], step=STEPS[:3], shape=(32, 8)) | change
    with pytest.raises(ValueError, match=message):
        perturbed_matmul(**arguments)
