"""``Scorer``, ``score_population`` and the chunk program against plain loops over dense candidates: traces, padding, rules, memory;
and the cost model of the strategies, with the choice that ``Scorer`` makes by it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturbjax as pj
from perturbjax.noise import DISTRIBUTIONS
from perturbjax.scoring import ChunkProgram
from perturbjax.scoring.strategy import Work, cheapest, costs, has_factors
from perturbjax.sharding import make_mesh

POPULATION = pj.Population(seed=4, size=10, sigmas=(0.02, 0.1))
PARAMS = {"w": jnp.linspace(-1, 1, 12).reshape(3, 4), "b": jnp.zeros(4)}
BATCH = jnp.arange(15.0).reshape(5, 3)
NOISES = [pj.Noise(distribution, rank) for distribution in DISTRIBUTIONS for rank in (None, 2)]


def mesh_of_one():
    return make_mesh(jax.devices()[:1])


def fn(params, x):
    return jnp.tanh(x @ params["w"] + params["b"][None]).sum(-1)


@functools.cache
def thetas(noise):
    """The population's perturbed parameters, one dense candidate after the other."""
    one = jax.jit(lambda candidate: pj.perturb(PARAMS, candidate, noise))
    return [one(POPULATION[i]) for i in range(len(POPULATION))]


def looped(noise, batch=BATCH):
    return np.stack([fn(theta, batch) for theta in thetas(noise)])


@pytest.mark.parametrize("strategy", ["auto", "lazy", "copy", "low_rank"])
@pytest.mark.parametrize("noise", NOISES, ids=str)
def test_scores_equal_a_loop_over_dense_candidates(noise, strategy):
    if strategy == "low_rank" and noise.rank is None:
        with pytest.raises(ValueError, match="full rank"):
            pj.Scorer(fn, PARAMS, noise, mesh_of_one(), strategy=strategy)
        return
    options = dict(chunk=4, in_flight=2, strategy=strategy)
    expected = looped(noise)
    scores = pj.score_population(fn, PARAMS, POPULATION, noise, BATCH, mesh_of_one(), **options)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)
    if strategy != "auto":
        return
    means = pj.score_population(lambda params, x: fn(params, x).mean(), PARAMS, POPULATION, noise, BATCH)
    np.testing.assert_allclose(means, expected.mean(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("noise", [pj.Noise("rademacher"), pj.Noise(rank=1)], ids=str)
def test_five_calls_trace_once(noise):
    scorer = pj.Scorer(fn, PARAMS, noise, mesh_of_one(), chunk=4, in_flight=2)
    assert scorer.traces == 0
    for call, part in enumerate((slice(None), slice(2, 5), slice(0, 1), slice(3, 10), slice(9, None))):
        batch = BATCH + call
        np.testing.assert_allclose(scorer(POPULATION[part], batch), looped(noise, batch)[part], rtol=1e-5, atol=1e-5)
    assert scorer.traces == 1


def test_a_batch_of_another_shape_is_traced_once_more():
    scorer = pj.Scorer(fn, PARAMS, pj.Noise("rademacher"), mesh_of_one(), chunk=4)
    for batch in (BATCH, BATCH[:2], BATCH, BATCH[:2]):
        scorer(POPULATION[:3], batch)
    assert scorer.traces == 2


def test_rules_that_match_nothing_are_logged(caplog):
    noise = pj.Noise(rules=(pj.Rule("^w$", "rms"), pj.Rule("bias", None)))
    pj.score_population(lambda p, x: p["w"].sum() * x, {"w": jnp.ones((2, 2))}, POPULATION, noise, jnp.float32(1), mesh_of_one())
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == ["noise rule 'bias' matches no parameter"]


def test_an_unknown_strategy_is_refused():
    with pytest.raises(ValueError, match="strategy 'fast': must be one of lazy, copy, low_rank"):
        pj.Scorer(fn, PARAMS, strategy="fast")  # pyright: ignore[reportArgumentType]


WIDTH, HIDDEN, LAYERS, ROWS = 256, 512, 8, 4
LAYER = 2 * WIDTH * HIDDEN * 4
ACTIVATIONS = 3 * ROWS * (WIDTH + HIDDEN) * 4


def residual(params, candidate, x):
    def layer(h, weights):
        return h + jnp.tanh(h @ weights["up"]) @ weights["down"], None

    return jax.lax.scan(layer, x, params)[0].sum()


def temporaries(noise: pj.Noise, max_candidates: int, in_flight: int, strategy: str) -> int:
    params = {"up": jnp.ones((LAYERS, WIDTH, HIDDEN)), "down": jnp.ones((LAYERS, HIDDEN, WIDTH))}
    program = ChunkProgram(residual, params, noise, mesh_of_one(), max_candidates, in_flight, strategy=strategy)
    analysis = program.lower(jnp.ones((ROWS, WIDTH))).compile().memory_analysis()
    assert analysis is not None
    layers = analysis.temp_size_in_bytes / LAYER / in_flight
    print(f"{strategy}, {noise}, {in_flight} in flight, up to {max_candidates} candidates: {layers:.2f} layers a candidate")
    return analysis.temp_size_in_bytes


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_lazy_takes_one_layer_per_candidate_in_flight_and_nothing_per_candidate(distribution):
    sixteen = temporaries(pj.Noise(distribution), 16, 4, "lazy")
    assert sixteen < (1.5 * LAYER + ACTIVATIONS) * 4
    assert sixteen == temporaries(pj.Noise(distribution), 4096, 4, "lazy")


def test_a_copy_takes_all_layers():
    """What the lazy strategy saves, by the same measure."""
    assert temporaries(pj.Noise(), 16, 1, "copy") > LAYERS * LAYER


def test_factors_take_less_than_a_layer_per_candidate():
    assert temporaries(pj.Noise(rank=1), 16, 16, "low_rank") < 0.25 * LAYER * 16


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_copy_takes_one_perturbed_copy_and_does_not_grow_with_the_population(distribution):
    params, found = {"w": jnp.zeros((512, 512))}, set()
    for most in (4, 4096):
        program = ChunkProgram(lambda p, _, x: (x @ p["w"]).sum(), params, pj.Noise(distribution), mesh_of_one(), most)
        found.add(program.lower(jnp.zeros((8, 512))).compile().memory_analysis().temp_size_in_bytes)
    # One perturbed copy (1 MiB), its words and the activations; the loop's own buffers are a few bytes a candidate.
    assert max(found) < 1.3 * 2**20 and max(found) - min(found) < 2**17


FEW, MANY, DECODING = Work(250, 0.8, 1, 1, False), Work(60_000, 30.0, 1, 1, False), Work(1000, 33.0, 1, 1, False)


def test_auto_follows_the_cost_model():
    assert cheapest(FEW, pj.Noise(), None) == "lazy" and cheapest(MANY, pj.Noise(), None) == "copy"
    few, decoding = (dataclasses.replace(work, factors=True) for work in (FEW, DECODING))
    assert cheapest(few, pj.Noise(rank=1), None) == "lazy" and cheapest(decoding, pj.Noise(rank=1), None) == "low_rank"
    assert cheapest(MANY, pj.Noise(), 0) == "lazy", "a copy that does not fit is no choice"


@pytest.mark.parametrize("work", [FEW, MANY, DECODING], ids=str)
@pytest.mark.parametrize("noise", [pj.Noise(name, rank) for name in DISTRIBUTIONS for rank in (None, 2)], ids=str)
def test_the_cheapest_is_the_least_of_the_table(work, noise):
    work = dataclasses.replace(work, factors=has_factors(PARAMS, noise))
    table = costs(work, noise)
    assert table[cheapest(work, noise, None)] == min(table.values())
    assert ("low_rank" in table) == (noise.rank is not None)
    assert not has_factors(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS), noise)


def test_a_scorer_chooses_by_how_often_the_noise_would_be_made():
    def once(params, x):
        return (x @ params["w"]).sum()

    def often(params, x):
        return jax.lax.fori_loop(0, 50, lambda _, x: jnp.tanh(x @ params["w"]), x).sum()

    candidates = pj.Population(seed=4, size=2)[:]
    for fn, noise, expected in ((once, pj.Noise(), "lazy"), (often, pj.Noise(), "copy"), (often, pj.Noise(rank=1), "low_rank")):
        scorer = pj.Scorer(fn, {"w": jnp.ones((8, 8))}, noise, make_mesh(jax.devices()[:1]), chunk=2)
        assert scorer(candidates, jnp.ones((2, 8))).shape == (2,)
        assert scorer.strategy == expected
