"""A mixture of experts of Qwen3's kind (``lax.ragged_dot``, softmax router, top-k weights normalized) against the dense oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from support.oracle import relative_error

import perturbjax as pj
from perturbjax.noise import DISTRIBUTIONS

LAYERS, TOKENS, WIDTH, HIDDEN, EXPERTS, CHOSEN, HEADS, KEY_HEADS, HEAD = 2, 6, 16, 24, 4, 2, 4, 2, 8
DRAWS = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(DRAWS.standard_normal((LAYERS, *shape)) / np.sqrt(shape[-2]), jnp.float32)


PARAMS = {
    **{name: jnp.ones((LAYERS, size)) for name, size in (("norm1", WIDTH), ("norm2", WIDTH), ("q_norm", HEAD), ("k_norm", HEAD))},
    "q": normal(WIDTH, HEADS * HEAD),
    "k": normal(WIDTH, KEY_HEADS * HEAD),
    "v": normal(WIDTH, KEY_HEADS * HEAD),
    "o": normal(HEADS * HEAD, WIDTH),
    "router": normal(WIDTH, EXPERTS),
    "gate": normal(EXPERTS, WIDTH, HIDDEN),
    "up": normal(EXPERTS, WIDTH, HIDDEN),
    "down": normal(EXPERTS, HIDDEN, WIDTH),
}
X = jnp.asarray(DRAWS.standard_normal((TOKENS, WIDTH)), jnp.float32)
POPULATION = pj.Population(seed=1, size=4, sigmas=(0.05,))


def rms(x, scale):
    return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale.reshape(*[1] * (x.ndim - 1), -1)


def attention(p, x):
    q = rms((x @ p["q"]).reshape(TOKENS, HEADS, HEAD), p["q_norm"])
    k = rms((x @ p["k"]).reshape(TOKENS, KEY_HEADS, HEAD), p["k_norm"])
    v = (x @ p["v"]).reshape(TOKENS, KEY_HEADS, HEAD)
    return jax.nn.dot_product_attention(q[None], k[None], v[None], is_causal=True).reshape(TOKENS, -1) @ p["o"]


def experts(p, x):
    weights, chosen = lax.top_k(jax.nn.softmax(x @ p["router"], -1), CHOSEN)
    weights = weights / weights.sum(-1, keepdims=True)
    order = jnp.argsort(chosen.reshape(-1))  # rows by expert
    sizes = jnp.bincount(chosen.reshape(-1), length=EXPERTS)
    rows = x[order // CHOSEN]
    hidden = jax.nn.silu(lax.ragged_dot(rows, p["gate"], sizes)) * lax.ragged_dot(rows, p["up"], sizes)
    rows = lax.ragged_dot(hidden, p["down"], sizes) * weights.reshape(-1)[order][:, None]
    return jnp.zeros_like(x).at[order // CHOSEN].add(rows)


def model(params, x):
    def layer(x, p):
        x = x + attention(p, rms(x, p["norm1"]))
        return x + experts(p, rms(x, p["norm2"])), None

    return lax.scan(layer, x, params)[0]


def test_the_function_is_a_mixture_of_experts():
    """By the definition: every expert on every token, weighted by the router."""
    p = jax.tree.map(lambda leaf: leaf[0], PARAMS)
    weights = jax.nn.softmax(X @ p["router"], -1)
    weights = jnp.where(weights >= jnp.sort(weights, -1)[:, -CHOSEN, None], weights, 0)
    weights = weights / weights.sum(-1, keepdims=True)
    hidden = jax.nn.silu(jnp.einsum("td,edf->tef", X, p["gate"])) * jnp.einsum("td,edf->tef", X, p["up"])
    np.testing.assert_allclose(experts(p, X), jnp.einsum("tef,efd,te->td", hidden, p["down"], weights), rtol=1e-4, atol=1e-5)


EXCLUDED = pj.Noise(rules=(pj.Rule("gate|up|down", None),))


@pytest.mark.parametrize("noise", [*(pj.Noise(name) for name in DISTRIBUTIONS), pj.Noise(rank=1), EXCLUDED], ids=str)
def test_candidates_under_vmap_equal_the_oracle(noise):
    found = jax.jit(jax.vmap(lambda candidate: pj.lazily(model, strict=True)(pj.lazy(PARAMS, candidate, noise, factored=True), X)))(
        POPULATION[1:3]
    )
    for i, index in enumerate((1, 2)):
        assert relative_error(found[i], jax.jit(model)(pj.perturb(PARAMS, POPULATION[index], noise), X)) < 1e-5
    assert relative_error(found, jnp.stack([jax.jit(model)(PARAMS, X)] * 2)) > 1e-3


def test_noise_of_experts_is_made_where_they_are_used():
    usage = pj.lazily(model).usage(pj.lazy(PARAMS, POPULATION[1], pj.Noise()), X)
    assert not usage.materialized
    used = [(use.path, use.shape, use.times) for use in usage.uses if use.primitive == "ragged_dot_general"]
    assert used == [(name, (1, *PARAMS[name].shape[1:]), LAYERS) for name in ("gate", "up", "down")]
