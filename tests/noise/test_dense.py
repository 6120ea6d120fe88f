"""``perturb`` against the one-liner of the noise specification, over kinds x shapes x dtypes x scales; and candidates, which are
metadata: indices, sigmas, signs and keys, the same however one gets at them."""

import math
import zlib
from functools import cache
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.noise_oracle import DRAWS

import perturbjax as pj
from perturbjax.interpret import lazy
from perturbjax.noise import DISTRIBUTIONS, Candidate, Noise, Population, Rule, coverage, perturb, scales
from perturbjax.noise.modular import factors
from perturbjax.noise.spec import SCALES
from perturbjax.tree import fingerprint, leaf_paths

pytestmark = pytest.mark.usefixtures("optimized")

POPULATION = Population(seed=3, size=12, sigmas=(0.01, 0.02, 0.05))
DTYPES = ("float32", "bfloat16")
VECTORS = ("layers/scale", "bias", "temperature")
NOISES = [Noise(d, r, s) for d in DISTRIBUTIONS for r in (None, 2) for s in SCALES]


@cache
def base(dtype):
    keys = iter(jax.random.split(jax.random.key(1), 5))
    leaf = lambda *shape: jax.random.normal(next(keys), shape).astype(dtype)  # noqa: E731
    return {
        "embed": {"embedding": leaf(40, 16)},
        "layers": {"kernel": leaf(3, 16, 40), "scale": leaf(3, 16)},
        "bias": leaf(33),
        "temperature": leaf(),
        "steps": jnp.arange(4),
        "flag": jnp.array([True, False]),
    }


@jax.jit
def perturb_all(params, candidate):
    """Parameters of every dtype, in every noise."""
    return [[perturb(tree, candidate, noise) for tree in params] for noise in NOISES]


@cache
def perturbed_all(index):
    """By noise and dtype; one program, as most of it is the same for all scales and dtypes."""
    candidate = Candidate.base() if index is None else POPULATION[index]
    found = jax.tree.map(np.asarray, perturb_all([base(dtype) for dtype in DTYPES], candidate))
    return {(noise, dtype): tree for noise, row in zip(NOISES, found, strict=True) for dtype, tree in zip(DTYPES, row, strict=True)}


@cache
def oracle_noise(index):
    """Of the leaves that move, by path, distribution, rank, and whether the largest element of each vector is 1."""
    shapes = {path: leaf.shape for path, leaf in leaf_paths(base("float32")).items() if jnp.issubdtype(leaf.dtype, jnp.floating)}

    def of_leaf(key, shape, distribution, rank, unit):
        draw = DRAWS[distribution]
        if rank is None or len(shape) < 2:
            e = draw(key, shape)
            return e / jnp.abs(jnp.atleast_1d(e)).max(axis=-1, keepdims=True).reshape(*shape[:-1], *[1] * bool(shape)) if unit else e
        a = draw(jax.random.fold_in(key, 1), (*shape[:-1], rank))
        b = draw(jax.random.fold_in(key, 2), (*shape[:-2], shape[-1], rank))
        return a @ jnp.swapaxes(b, -1, -2) / math.sqrt(rank)

    kinds = [(path, d, r, unit) for path in shapes for d in DISTRIBUTIONS for r in (None, 2) for unit in {False, path in VECTORS}]

    @jax.jit
    def draws(root, index):
        key = jax.random.fold_in(root, index)
        return [of_leaf(jax.random.fold_in(key, zlib.crc32(path.encode())), shapes[path], *kind) for path, *kind in kinds]

    return dict(zip(kinds, map(np.asarray, draws(jax.random.key(3, impl="threefry2x32"), index)), strict=True))


def oracle_scale(path, leaf, noise):
    if noise.scale == "rms":
        return np.sqrt(np.mean(np.square(np.asarray(leaf, np.float64))))
    if noise.scale == "modular":
        return factors(leaf_paths(base("float32")), noise.of_leaf)[path]  # test_modular.py is about them
    return 1.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("noise", NOISES, ids=str)
def test_perturb_equals_the_specification(noise, dtype):
    params, index = base(dtype), 7
    moved = leaf_paths(perturbed_all(index)[noise, dtype])
    for path, leaf in leaf_paths(params).items():
        leaf = np.asarray(leaf)
        assert moved[path].dtype == leaf.dtype and moved[path].shape == leaf.shape
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            np.testing.assert_array_equal(moved[path], leaf)
            continue
        e = oracle_noise(index)[path, noise.distribution, noise.rank, noise.scale == "modular" and path in VECTORS]
        step = np.float32(0.02) * np.float32(oracle_scale(path, leaf, noise))
        expected = (leaf.astype(np.float32) + step * e).astype(leaf.dtype)
        ulp = np.spacing(np.abs(leaf.astype(np.float32)) + np.abs(step * e))
        if dtype == "bfloat16":  # rounded once to 8 bits: a last-bit difference before that may cross a rounding boundary, rarely
            assert np.mean(moved[path] != expected) < 0.01
            ulp = ulp * 2**16
        # The RMS is a float32 sum here and a float64 one in the oracle; a low-rank product is summed in another order.
        slack = 1e-6 * np.abs(step * e) if noise.scale == "rms" or noise.rank else 0
        assert (np.abs(moved[path].astype(np.float32) - expected.astype(np.float32)) <= 2 * ulp + slack).all(), path


@pytest.mark.parametrize("noise", [*map(Noise, DISTRIBUTIONS), Noise(rank=2)], ids=str)
def test_float64_leaves_are_not_rounded_to_float32(noise):
    with jax.enable_x64(True):
        base = jnp.asarray(np.random.default_rng(0).standard_normal((40, 8)), jnp.float64)
        candidate = Population(seed=1, size=2, sigmas=(0.5,))[1]
        found = perturb({"w": base}, candidate, noise)["w"]
        steps = perturb({"w": jnp.zeros((40, 8), jnp.float32)}, candidate, noise)["w"]
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(found - base, steps.astype(jnp.float64), rtol=0, atol=1e-15)
        lazily = pj.lazily(lambda params: params["w"])(pj.lazy({"w": base}, candidate, noise))
        np.testing.assert_allclose(lazily, found, rtol=0, atol=1e-15 if noise.rank is None else 1e-6)
        zero = candidate._replace(sigma=jnp.float32(0))
        np.testing.assert_array_equal(pj.lazily(lambda params: params["w"])(pj.lazy({"w": base}, zero, noise)), base)


def test_sigma_zero_is_the_base_bit_for_bit():
    for (noise, dtype), moved in perturbed_all(None).items():
        for got, leaf in zip(jax.tree.leaves(moved), jax.tree.leaves(base(dtype)), strict=True):
            np.testing.assert_array_equal(got, np.asarray(leaf), err_msg=f"{noise} {dtype}")


def test_antithetic_pair_is_symmetric_about_the_base():
    population = Population(0, 4, (0.5, 0.25), antithetic=True)
    params = {"w": jnp.zeros((8, 8)), "b": jnp.zeros(5)}
    for distribution in ("gaussian", "rademacher"):
        plus, minus, other = (perturb(params, population[i], Noise(distribution)) for i in (2, 3, 0))
        assert (plus["w"] == -minus["w"]).all() and (plus["b"] == -minus["b"]).all()
        assert not (jnp.sign(plus["w"]) == jnp.sign(other["w"])).all()
        assert population[2].sigma == population[3].sigma == np.float32(0.25)


def test_same_shape_leaves_get_independent_noise():
    params = {name: jnp.zeros((200, 300)) for name in ("a", "b", "c")}
    for noise in (Noise(), Noise("rademacher")):
        moved = perturb(params, POPULATION[0], noise)
        for x, y in (("a", "b"), ("a", "c"), ("b", "c")):
            correlation = np.corrcoef(np.ravel(moved[x]), np.ravel(moved[y]))[0, 1]
            assert abs(correlation) < 3 / math.sqrt(60000)


@pytest.mark.parametrize("noise", [Noise(), Noise("rademacher")], ids=str)
def test_mean_and_standard_deviation_are_as_specified(noise):
    moved = perturb({"w": jnp.zeros((1000, 1000))}, POPULATION[2], noise)["w"]
    sigma = 0.05
    assert abs(float(moved.mean())) < 4 * sigma / 1000
    assert abs(float(moved.std()) / sigma - 1) < 4 / math.sqrt(2e6)


def test_noise_of_a_leaf_ignores_the_other_leaves_and_their_order():
    params = base("float32")
    alone = perturb({"layers": {"kernel": params["layers"]["kernel"]}}, POPULATION[4], Noise())
    np.testing.assert_array_equal(alone["layers"]["kernel"], perturb(params, POPULATION[4], Noise())["layers"]["kernel"])


def test_vmapped_candidates_equal_single_ones():
    params = base("float32")
    noise = Noise(rank=2)
    together = jax.vmap(lambda c: perturb(params, c, noise))(POPULATION[3:6])
    for i in range(3):
        for got, one in zip(jax.tree.leaves(together), jax.tree.leaves(perturb(params, POPULATION[3 + i], noise)), strict=True):
            np.testing.assert_allclose(np.asarray(got[i], np.float32), np.asarray(one, np.float32), rtol=1e-6, atol=1e-7)


def test_rules_first_match_wins_and_coverage_reports():
    params = base("float32")
    rules = (Rule("scale$", None), Rule("^layers/", "rms"), Rule("nothing", None))
    noise = Noise(rules=rules)
    assert set(scales(params, noise)) == {"embed/embedding", "layers/kernel", "bias", "temperature"}
    moved = perturb(params, POPULATION[1], noise)
    assert (moved["layers"]["scale"] == params["layers"]["scale"]).all()
    report = coverage(params, noise)
    assert report.unused_rules == (rules[2],)
    assert (report.moved, report.total) == (40 * 16 + 3 * 16 * 40 + 33 + 1, 40 * 16 + 3 * 16 * 40 + 48 + 33 + 1 + 4 + 2)


def test_statistics_of_an_nnx_state_stay_unless_a_rule_names_them():
    class Module(nnx.Module):
        def __init__(self):
            self.norm, self.drop = nnx.BatchNorm(3, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1))

    state = nnx.state(Module())
    assert set(scales(state, Noise())) == {"norm/scale/value", "norm/bias/value"}
    statistics = {"norm/mean/value", "norm/var/value"}
    assert statistics < set(coverage(state, Noise()).state) and not coverage(base("float32"), Noise()).state
    assert statistics < set(scales(state, Noise(rules=(Rule("mean|var", "absolute"),))))
    moved = perturb(state, POPULATION[1], Noise())
    assert (moved["norm"]["var"].get_value() == 1).all() and (moved["norm"]["scale"].get_value() != 1).all()


@pytest.mark.parametrize(
    ("params", "candidate", "noise", "message"),
    [
        ({"w": jnp.ones(3), "act": jax.nn.relu}, POPULATION[0], Noise(), "parameter 'act' is no array but of type custom_jvp: give"),
        ({"w": jnp.ones(3), "name": "a"}, POPULATION[0], Noise(), "parameter 'name' is no array but of type str: give"),
        ({"w": jnp.ones(3)}, POPULATION[0], "gaussian", "noise str: a Noise is required"),
        ({"w": jnp.ones(3)}, 3, Noise(), "candidate int: a Candidate is required"),
        ({"w": jnp.ones(3)}, POPULATION, Noise(), "candidate Population: a Candidate is required"),
        ({"w": jnp.ones(3)}, POPULATION[:2], Noise(), r"candidate of shape \(2,\): one is required"),
    ],
)
def test_what_is_no_parameter_noise_or_candidate_is_named(params, candidate, noise, message):
    with pytest.raises((TypeError, ValueError), match=message):
        lazy(params, candidate, noise)  # as perturb does, which has its types checked in the tests


def test_leaves_with_one_crc_are_refused():
    # A known crc32 collision.
    assert zlib.crc32(b"plumless") == zlib.crc32(b"buckeroo")
    with pytest.raises(ValueError, match=r"plumless.*one crc32|buckeroo.*one crc32"):
        perturb({"plumless": jnp.zeros(2), "buckeroo": jnp.zeros(2)}, POPULATION[0], Noise())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Noise("normal"), "distribution 'normal'"),
        (lambda: Noise(scale=cast(Any, "big")), "scale 'big'"),
        (lambda: Noise(rank=0), "rank 0"),
        (lambda: Rule("(", None), "regular expression"),
        (lambda: Rule("a", cast(Any, "twice")), "or None to exclude"),
        (lambda: Rule("a", cast(Any, "x")), "scale 'x'"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_fingerprint_sees_paths_shapes_dtypes_and_bytes():
    params = {"a": jnp.arange(6.0), "b": jnp.ones((2, 3))}
    prints = {
        fingerprint(p)
        for p in (
            params,
            {"a": params["a"], "c": params["b"]},
            {"a": params["a"].reshape(2, 3), "b": params["b"]},
            {"a": params["a"].astype(jnp.bfloat16), "b": params["b"]},
            {"a": params["a"].at[0].set(-0.0), "b": params["b"]},
        )
    }
    assert len(prints) == 5
    assert fingerprint(params) == fingerprint({"b": np.ones((2, 3), np.float32), "a": np.arange(6, dtype=np.float32)})
    assert fingerprint(params).startswith("sha256:")


SIGMAS = (5e-4, 1e-3, 2e-3)


def test_sigmas_go_round_robin_and_keys_are_folded_in():
    population = Population(seed=11, size=7, sigmas=SIGMAS)
    root = jax.random.key(11, impl="threefry2x32")
    for i in range(7):
        candidate = population[i]
        assert int(candidate.index) == i
        assert candidate.sigma == np.float32(SIGMAS[i % 3]) and candidate.sign == 1
        np.testing.assert_array_equal(candidate.key_data, jax.random.key_data(jax.random.fold_in(root, i)))


def test_slices_and_lists_of_indices_are_batched_candidates():
    population = Population(seed=1, size=20, sigmas=SIGMAS)
    part = population[4:16:3]
    assert isinstance(part, Candidate) and part.index.tolist() == [4, 7, 10, 13]
    assert population[-1].index == 19 and population[30:].index.size == 0 and population[::-1].index.tolist() == list(range(19, -1, -1))
    for i, index in enumerate((4, 7, 10, 13)):
        for batched, one in zip(part, population[index], strict=True):
            np.testing.assert_array_equal(batched[i], one)
    for a, b in zip(part, population[np.array([4, 7, 10, 13])], strict=True):
        np.testing.assert_array_equal(a, b)
    assert population[np.int64(7)].index.shape == ()


def test_antithetic_pairs_share_key_and_sigma():
    population = Population(seed=0, size=8, sigmas=SIGMAS, antithetic=True)
    for j in range(4):
        plus, minus = population[2 * j], population[2 * j + 1]
        np.testing.assert_array_equal(plus.key_data, minus.key_data)
        assert plus.sigma == minus.sigma == np.float32(SIGMAS[j % 3])
        assert (plus.sign, minus.sign) == (1, -1)
    assert population[1:4].sign.tolist() == [-1, 1, -1]
    assert population[0:3].index.tolist() == [0, 1, 2]


def test_a_population_costs_no_memory():
    population = Population(seed=0, size=2**32, sigmas=SIGMAS)
    assert int(population[2**32 - 1].index) == 2**32 - 1


def test_base_is_a_candidate_of_sigma_zero():
    assert Candidate.base().sigma == 0 and Candidate.base(3).key_data.shape == (3, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(seed=-1, size=2), "seed -1"),
        (dict(seed=0, size=-1), "size -1"),
        (dict(seed=0, size=2**32 + 1), "2\\*\\*32"),
        (dict(seed=0, size=2, sigmas=()), "at least one"),
        (dict(seed=0, size=2, sigmas=(0.0,)), "positive"),
        (dict(seed=0, size=2, sigmas=(float("nan"),)), "finite"),
        (dict(seed=0, size=2, sigmas=(1e-50,)), "float32"),
        (dict(seed=0, size=2, sigmas=(1e39,)), "float32"),
        (dict(seed=0, size=2, sigmas=(0.001, 0.002, 0.001)), "twice"),
        (dict(seed=0, size=3, antithetic=True), "use 4"),
    ],
)
def test_bad_populations_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Population(**settings)


def test_indices_outside_are_refused():
    population = Population(0, 5)
    for index in (5, -6):
        with pytest.raises(IndexError):
            population[index]
    for indices in ([2, 5], [-1], [[1]]):
        with pytest.raises(IndexError, match="from 0 to 4"):
            population[np.array(indices)]


def test_vectors_that_are_stacked_by_layer_have_noise_of_their_own():
    params = base("float32")
    noise = Noise(rank=1, stacked="^layers/")
    moved = leaf_paths(perturb(jax.tree.map(jnp.zeros_like, params), POPULATION[5], noise))
    for path, rank in (("layers/scale", None), ("layers/kernel", 1), ("embed/embedding", 1)):
        alone = leaf_paths(perturb(jax.tree.map(jnp.zeros_like, params), POPULATION[5], Noise(rank=rank)))
        np.testing.assert_array_equal(moved[path], alone[path])
        assert noise.of_leaf(path, moved[path].shape) == Noise(rank=rank, stacked="^layers/")
    assert np.linalg.matrix_rank(moved["layers/scale"]) == 3 and np.linalg.matrix_rank(moved["layers/kernel"]).tolist() == [1, 1, 1]

    def fn(params):
        rows = jax.lax.scan(lambda _, layer: (None, layer["scale"] @ layer["kernel"]), None, params["layers"])[1]
        return rows, params["embed"]["embedding"][3]

    found = jax.jit(lambda candidate: pj.perturbed(fn, noise)(candidate, params))(POPULATION[5])
    expected = jax.jit(lambda candidate: fn(perturb(params, candidate, noise)))(POPULATION[5])
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"stacked '\(': not a regular expression"):
        Noise(rank=1, stacked="(")
