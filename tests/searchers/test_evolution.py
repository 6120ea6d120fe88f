"""Updates against the dense sum, of full and of low rank; the record rebuilds; memory that does not grow with n; bad arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import rankdata
from support.searcher_cases import GRADIENT, NOISES, PARAMS, SHAPES, name

from perturbjax.noise import Candidate, Noise, perturb, scales
from perturbjax.searchers import EvolutionStrategy, centred_ranks, gradient_step, rebuild
from perturbjax.searchers.evolution import BLOCK, moved, rate_of_length


def test_ranks_are_scipys():
    scores = np.random.default_rng(0).integers(0, 5, 12).astype(float)
    np.testing.assert_allclose(centred_ranks(scores), (rankdata(scores) - 1) / 11 - 0.5)
    assert not centred_ranks(np.ones(4)).any()


@pytest.mark.parametrize("noise", [*NOISES[1:3], NOISES[4]], ids=name)
def test_an_update_is_the_dense_sum_and_the_record_rebuilds_it(noise):
    strategy = EvolutionStrategy(PARAMS, noise, size=BLOCK + 6, sigma=0.5, rate=0.3, antithetic=True, seed=9)
    scores = np.random.default_rng(1).normal(size=(2, BLOCK + 6))
    population, leaf_scales = strategy.ask(), scales(PARAMS, noise)
    strategy.tell(scores[0])
    zeros = {path: jnp.zeros(shape, jnp.float32) for path, shape in SHAPES.items()}
    candidates: Candidate = population[:]._replace(sigma=jnp.ones(BLOCK + 6))
    made = jax.jit(jax.vmap(lambda candidate: perturb(zeros, candidate, noise, leaf_scales)))(candidates)
    weights = 0.3 / ((BLOCK + 6) * 0.5) * centred_ranks(scores[0])
    for path, leaf in PARAMS.items():
        expected = np.asarray(leaf, np.float64) + np.tensordot(weights, np.asarray(made[path], np.float64), 1)
        np.testing.assert_allclose(strategy.params[path], expected, rtol=1e-5, atol=1e-6)
    assert strategy.ask() != population
    strategy.tell(scores[1])
    again = rebuild(PARAMS, noise, strategy.steps)
    jax.tree.map(np.testing.assert_array_equal, again, strategy.params)
    half = EvolutionStrategy(PARAMS, noise, BLOCK + 6, 0.5, 0.3, True, 9, strategy.steps[:1])
    half.tell(scores[1])
    jax.tree.map(np.testing.assert_array_equal, half.params, strategy.params)
    assert half.steps == strategy.steps


def test_a_step_is_as_long_as_asked():
    params, noise = {"w": jnp.zeros((300, 200))}, Noise("rademacher")
    strategy = EvolutionStrategy(params, noise, 64, 0.01, rate_of_length(0.5, 0.01, 64))
    strategy.tell(np.random.default_rng(0).permutation(64).astype(float))
    assert float(jnp.sqrt(jnp.mean(strategy.params["w"] ** 2))) == pytest.approx(0.5 * 0.01, rel=0.05)


@pytest.mark.parametrize("noise", NOISES[:3:2], ids=["dense", "low rank"])
def test_memory_does_not_grow_with_the_candidates(noise):
    def memory(candidates: int) -> tuple[int, int]:
        leaf = jax.ShapeDtypeStruct((256, 128), jnp.float32)
        keys, weights = (jax.ShapeDtypeStruct((candidates, *shape), dtype) for shape, dtype in (((2,), jnp.uint32), ((), jnp.float32)))
        found = moved.lower(leaf, keys, weights, np.uint32(7), noise).compile().memory_analysis()
        assert found is not None
        return found.temp_size_in_bytes, found.alias_size_in_bytes

    few, donated = memory(2 * BLOCK)
    assert memory(100 * BLOCK)[0] == few < 4 * 4 * 256 * 128 + 4 * BLOCK * 4 * (256 + 128) and donated == 4 * 256 * 128


def test_a_gradient_step_moves_along_the_scaled_gradient():
    noise = NOISES[1]
    leaf_scales = scales(PARAMS, noise)
    theta = gradient_step(PARAMS, GRADIENT, leaf_scales, 0.25)
    np.testing.assert_array_equal(theta["bias"], PARAMS["bias"])
    steps = {path: (np.asarray(theta[path]) - np.asarray(PARAMS[path])) / float(leaf_scales[path]) for path in leaf_scales}
    scaled = {path: float(leaf_scales[path]) * np.asarray(GRADIENT[path]) for path in leaf_scales}
    assert np.sqrt(sum(np.square(step).sum() for step in steps.values())) == pytest.approx(0.25, rel=1e-4)
    ratios = np.concatenate([(steps[path] / scaled[path]).ravel() for path in steps])
    assert ratios.min() > 0 and np.median(np.abs(ratios / np.median(ratios) - 1)) < 1e-3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": 1}, "size 1: at least 2"),
        ({"size": 5, "antithetic": True}, "size 5: antithetic"),
        ({"sigma": 0.0}, "sigmas 0.0"),
        ({"rate": -1.0}, "rate -1.0"),
    ],
)
def test_bad_settings_are_named(changed, message):
    with pytest.raises(ValueError, match=message):
        EvolutionStrategy(PARAMS, NOISES[0], **{"size": 4, "sigma": 0.1, "rate": 0.1, **changed})


def test_scores_that_are_no_scores_are_refused():
    strategy = EvolutionStrategy({"w": jnp.zeros(3)}, NOISES[0], 4, 0.1, 0.1)
    for scores in (np.zeros(3), np.array([0, 1, 2, np.nan])):
        with pytest.raises(ValueError, match=r"scores of shape .*: \(4,\) finite numbers are required"):
            strategy.tell(scores)
    assert strategy.steps == ()
