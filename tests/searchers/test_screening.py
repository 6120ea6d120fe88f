"""Inner products against dense noise in float64, for every kind of noise; memory that does not grow with N; the choice."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.searcher_cases import GRADIENT, NOISES, PARAMS, SHAPES, name

from perturbjax.noise import Noise, Population, perturb, scales
from perturbjax.searchers import choose, inner_products
from perturbjax.searchers.screening import BLOCK, block_of, leaf_products, products_of_keys


def dense(population: Population, noise: Noise) -> np.ndarray:
    """The products of the definition: candidates' weights less the base's, in float64."""
    with jax.enable_x64(True):
        params = {path: jnp.zeros(shape, jnp.float64) for path, shape in SHAPES.items()}
        leaf_scales = scales(PARAMS, noise)
        thetas = [perturb(params, population[number], noise, leaf_scales) for number in range(len(population))]
        return np.array([sum(np.vdot(np.asarray(theta[p], np.float64), np.asarray(GRADIENT[p])) for p in SHAPES) for theta in thetas])


@pytest.mark.parametrize("noise", NOISES, ids=name)
def test_products_are_those_of_the_dense_noise(noise, monkeypatch):
    monkeypatch.setattr("perturbjax.searchers.screening.PIECE", 12)  # rows of a leaf in several pieces
    population = Population(seed=3, size=6, sigmas=(0.5, 0.02), antithetic=True)
    found = inner_products(GRADIENT, population, noise, scales(PARAMS, noise))
    np.testing.assert_allclose(found, dense(population, noise), rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(found[::2], -found[1::2])
    some = inner_products(GRADIENT, population, noise, scales(PARAMS, noise), np.array([5, 2]))
    np.testing.assert_array_equal(some, found[[5, 2]])


def test_a_candidate_does_not_depend_on_its_block(monkeypatch):
    population, noise = Population(seed=3, size=2 * BLOCK + 5), NOISES[2]
    monkeypatch.setattr("perturbjax.searchers.screening.CALL", BLOCK)
    leaf_scales = scales(PARAMS, noise)
    found = inner_products(GRADIENT, population, noise, leaf_scales)
    alone = inner_products(GRADIENT, population, noise, leaf_scales, np.array([2 * BLOCK + 1]))
    np.testing.assert_allclose(found[2 * BLOCK + 1], alone[0], rtol=1e-6)
    assert found.shape == (2 * BLOCK + 5,) and len(set(found)) == len(found)


@pytest.mark.parametrize("noise", NOISES[:3:2], ids=["dense", "low rank"])
def test_memory_does_not_grow_with_the_population(noise):
    leaves = {path: jnp.zeros((64, 256), jnp.float32) for path in ("layers/a", "b")}

    def temporaries(candidates: int) -> int:
        keys = jax.ShapeDtypeStruct((-(-candidates // block_of(noise)) * block_of(noise), 2), jnp.uint32)
        memory = jax.jit(partial(products_of_keys, noise=noise)).lower(keys, leaves).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    assert temporaries(1_000) == temporaries(100_000) < 4 * BLOCK * 4 * 64 * 256


def test_the_most_promising_and_others_at_random():
    products = np.random.default_rng(0).normal(size=200)
    chosen = choose(products, 20, explore=0.25, seed=1)
    np.testing.assert_array_equal(chosen.promising, np.argsort(-products)[:15])
    assert len(chosen.drawn) == 5 and not set(chosen.drawn) & set(chosen.promising) and len(chosen.all) == 20
    assert set(choose(products, 20, 0.25, seed=2).drawn) != set(chosen.drawn)
    assert len(choose(products, 20, 1.0, seed=1).drawn) == 20 and len(choose(products, 200, 0.0, seed=1).promising) == 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 0.1), "count 0"), ((201, 0.1), "count 201"), ((3, 1.5), r"explore 1.5"), ((3, float("nan")), "explore nan")],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        choose(np.zeros(200), *arguments, seed=0)


def test_a_gradient_of_another_tree_is_refused():
    with pytest.raises(ValueError, match="gradient: has no leaf 'experts'"):
        leaf_products({"bias": GRADIENT["bias"]}, Population(0, 2), NOISES[0], scales(PARAMS, NOISES[0]), np.arange(2))
