"""The cost model of the strategies, and the choice that ``Scorer`` makes by it."""

import jax
import jax.numpy as jnp
import pytest

import perturbjax as pj
from perturbjax.noise import DISTRIBUTIONS
from perturbjax.scoring.strategy import Work, cheapest, costs
from perturbjax.sharding import make_mesh

FEW, MANY, DECODING = Work(250, 0.8, 1, 1), Work(60_000, 30.0, 1, 1), Work(1000, 33.0, 1, 1)


def test_auto_follows_the_cost_model():
    assert cheapest(FEW, pj.Noise(), None) == "lazy" and cheapest(MANY, pj.Noise(), None) == "copy"
    assert cheapest(FEW, pj.Noise(rank=1), None) == "lazy" and cheapest(DECODING, pj.Noise(rank=1), None) == "low_rank"
    assert cheapest(MANY, pj.Noise(), 0) == "lazy", "a copy that does not fit is no choice"


@pytest.mark.parametrize("work", [FEW, MANY, DECODING], ids=str)
@pytest.mark.parametrize("noise", [pj.Noise(name, rank) for name in DISTRIBUTIONS for rank in (None, 2)], ids=str)
def test_the_cheapest_is_the_least_of_the_table(work, noise):
    table = costs(work, noise)
    assert table[cheapest(work, noise, None)] == min(table.values())
    assert ("low_rank" in table) == (noise.rank is not None)


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
