"""A distribution is one record: a third one in the table works on every path, and no path takes an unknown name for another kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.oracle import use_kernel

import perturbjax as pj
from perturbjax.kernels.matmul import perturbed_matmul
from perturbjax.noise import DISTRIBUTIONS, Block
from perturbjax.noise.distributions import one_word_a_weight
from perturbjax.noise.norms import largest_normal
from perturbjax.noise.values import bits, fold_in, root_key_data
from perturbjax.scoring.strategy import STRATEGIES
from perturbjax.sharding import make_mesh
from perturbjax.tree import path_hash

KEY = root_key_data(5)
ROOT = np.float32(np.sqrt(1.5))
POPULATION = pj.Population(seed=2, size=5, sigmas=(0.1, 0.2))
# No multiples of a tile or of 32, and wide enough for a kernel.
PARAMS = {"w": jnp.linspace(-1, 1, 129 * 130).reshape(129, 130), "stack": jnp.linspace(-1, 1, 2 * 130 * 130).reshape(2, 130, 130) / 65}
X = jnp.linspace(-1, 1, 3 * 129).reshape(3, 129)


def of_words(words):
    """-sqrt(3/2), 0 or sqrt(3/2), a third of the words each."""
    third = np.uint32(2**32 // 3)
    return jnp.where(words < third, -ROOT, jnp.where(words < 2 * third, np.float32(0), ROOT))


@pytest.fixture(autouse=True)
def ternary(monkeypatch):
    monkeypatch.setitem(DISTRIBUTIONS, "ternary", one_word_a_weight("ternary", "three values", 30.0, largest_normal, of_words))


def fn(params, x):
    h = x @ params["w"]
    return jax.lax.scan(lambda h, w: (h + jnp.tanh(h @ w), None), h, params["stack"])[0]


def dense(noise):
    one = jax.jit(lambda candidate: fn(pj.perturb(PARAMS, candidate, noise), X))
    return [one(POPULATION[i]) for i in range(len(POPULATION))]


def test_perturb_adds_its_values():
    values = np.asarray(DISTRIBUTIONS["ternary"].values(KEY, Block((200, 300))))
    np.testing.assert_array_equal(values, of_words(bits(KEY, Block((200, 300)))))
    assert sorted(np.unique(values)) == [-ROOT, 0, ROOT] and abs(values.mean()) < 0.02 and abs(values.var() - 1) < 0.02
    candidate = POPULATION[3]
    moved = pj.perturb(PARAMS, candidate, pj.Noise("ternary"))["w"]
    e = of_words(jax.random.bits(jax.random.wrap_key_data(fold_in(candidate.key_data, path_hash("w")), impl="threefry2x32"), (129, 130)))
    np.testing.assert_array_equal(moved, PARAMS["w"] + candidate.sigma * e)


@pytest.mark.parametrize("rank", [None, 2])
def test_it_works_at_the_point_of_use_and_in_a_scorer(rank):
    noise = pj.Noise("ternary", rank)
    expected = dense(noise)
    found = jax.jit(jax.vmap(pj.perturbed(fn, noise), (0, None, None)))(POPULATION[:], PARAMS, X)
    np.testing.assert_allclose(found, np.stack(expected), rtol=1e-5, atol=1e-5)
    for strategy in STRATEGIES if rank else STRATEGIES[:2]:
        scorer = pj.Scorer(lambda params, x: fn(params, x).sum(1), PARAMS, noise, make_mesh(jax.devices()[:1]), chunk=3, strategy=strategy)
        np.testing.assert_allclose(scorer(POPULATION[:], X), np.stack(expected).sum(-1), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("lowering", ("tpu", "gpu"))
def test_both_kernels_make_it(lowering, rank, monkeypatch):
    noise = pj.Noise("ternary", rank)
    use_kernel(monkeypatch, lowering)
    found = jax.jit(jax.vmap(pj.perturbed(fn, noise), (0, None, None)))(POPULATION[:2], PARAMS, X)
    np.testing.assert_allclose(found, np.stack(dense(noise)[:2]), rtol=1e-5, atol=1e-4)
    if rank is None:
        made = perturbed_matmul(
            jnp.eye(40), jnp.zeros((40, 33)), KEY, jnp.float32(1), shape=(70, 50), distribution="ternary", offsets=(0, 7, 5),
            precision="highest", lowering=lowering, interpret=True,
        )  # fmt: skip
        np.testing.assert_array_equal(made, of_words(bits(KEY, Block((70, 50))))[7:47, 5:38])


def test_an_unknown_name_is_refused_everywhere():
    for make in (
        lambda: pj.Noise("quaternary"),
        lambda: perturbed_matmul(jnp.eye(2), jnp.eye(2), KEY, jnp.float32(1), shape=(2, 2), distribution="quaternary"),
    ):
        with pytest.raises(ValueError, match=f"'quaternary': must be one of {', '.join(DISTRIBUTIONS)}$"):
            make()
