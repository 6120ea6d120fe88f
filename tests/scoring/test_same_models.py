"""What was scored is what votes and what is exported: every strategy, the ensemble and the dense weights are the same models.

In bfloat16 at a small sigma the rounding of the perturbed weight is as large as the noise, so a path that leaves it out, or rounds
elsewhere, chooses other candidates.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturbjax as pj
from perturbjax.sharding import make_mesh

DRAWS = np.random.default_rng(0)
FLOAT32 = {name: jnp.asarray(DRAWS.standard_normal(shape) / 8, jnp.float32) for name, shape in (("up", (32, 96)), ("down", (96, 24)))}
X = jnp.asarray(DRAWS.standard_normal((16, 32)), jnp.float32)
POPULATION = pj.Population(seed=0, size=48, sigmas=(3e-4,))
BEST = 8


def score(params, x, *, cast=None):
    """A log-probability of a small network, whose weights may be rounded on the way into the products."""
    up, down = (params[name] if cast is None else params[name].astype(cast).astype(x.dtype) for name in ("up", "down"))
    logits = jnp.dot(jnp.tanh(x @ up), down, preferred_element_type=jnp.float32)
    return jax.nn.log_softmax(logits, -1)[:, 0].mean()


FNS = {"as it is": score, **{name: functools.partial(score, cast=name) for name in ("bfloat16", "float8_e4m3fn")}}
CASES = [("bfloat16", "as it is"), ("float32", "as it is"), ("float32", "bfloat16"), ("float32", "float8_e4m3fn")]


@pytest.mark.parametrize(("dtype", "name"), CASES)
def test_strategies_ensemble_and_dense_weights_agree(dtype, name):
    fn, noise = FNS[name], pj.Noise(rank=1)
    params, x = jax.tree.map(lambda leaf: leaf.astype(dtype), FLOAT32), X.astype(dtype)
    if name == "float8_e4m3fn":
        params = jax.tree.map(lambda leaf: leaf * 2**-4, params)  # where neighbors are closer than sigma
    dense = jax.jit(lambda candidate: pj.perturb(params, candidate, noise))
    expected = np.array([fn(dense(POPULATION[i]), x) for i in range(len(POPULATION))])
    best = pj.top_k(expected, BEST)
    found = {
        strategy: pj.score_population(fn, params, POPULATION, noise, x, make_mesh(jax.devices()[:1]), strategy=strategy, in_flight=4)
        for strategy in ("auto", "lazy", "copy", *(["low_rank"] if dtype == "float32" else []))
    }
    found["ensemble"] = pj.Ensemble(POPULATION, range(len(POPULATION)), noise, params).apply(fn, params, x)
    for how, scores in found.items():
        assert np.abs(scores - expected).max() < 0.01 * expected.std(), how
        assert set(pj.top_k(scores, BEST).tolist()) == set(best.tolist()), how


def test_low_rank_refuses_parameters_that_round():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), FLOAT32)
    with pytest.raises(pj.InputError, match="strategy 'low_rank': requires float32 for every matrix that moves"):
        pj.Scorer(score, params, pj.Noise(rank=1), strategy="low_rank")
