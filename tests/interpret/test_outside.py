"""Lazy parameters outside of ``lazily``: what is no parameter yet gives an error that says what to do, and never a number."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturbjax as pj

POPULATION = pj.Population(seed=3, size=4, sigmas=(0.1,))
PARAMS = {"w": jnp.linspace(-1, 1, 12).reshape(4, 3), "v": jnp.ones((3, 3))}
X = jnp.ones((2, 4))
THETA = pj.lazy(PARAMS, POPULATION[1], pj.Noise())
OTHER = pj.lazy(PARAMS, POPULATION[2], pj.Noise("gaussian", 1))


@pytest.mark.parametrize(
    "use",
    [
        lambda: jax.tree.map(lambda a, b: (a + b) / 2, THETA, THETA),
        lambda: jax.tree.map(lambda a: jnp.clip(a, -1, 1), THETA),
        lambda: jax.tree.map(lambda a: 0.5 * a, THETA),
        lambda: jax.jit(lambda theta: jax.tree.map(jnp.square, theta))(OTHER),
        lambda: pj.perturb(THETA, POPULATION[2], pj.Noise()),
        lambda: pj.lazy(THETA, POPULATION[2], pj.Noise()),
        lambda: pj.fingerprint(THETA),
        lambda: pj.Scorer(lambda params, x: (x @ params["w"]).sum(), THETA),
        lambda: X @ THETA["w"],
        lambda: THETA["w"] * 2,
        lambda: THETA["w"][0],
        lambda: jnp.dot(X, THETA["w"]),
        lambda: np.asarray(THETA["w"]),
        lambda: pj.lazily(lambda x: x @ THETA["w"])(X),
    ],
)
def test_arithmetic_is_a_type_error_that_says_what_to_do(use):
    with jax.numpy_dtype_promotion("standard"), pytest.raises(TypeError, match=r"lazy.*pj\.lazily"):
        use()


def test_the_remedy_materializes_the_tree():
    whole = pj.lazily(lambda theta: theta)(THETA)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, whole, PARAMS)
    expected = pj.perturb(PARAMS, POPULATION[1], pj.Noise())
    for name in PARAMS:
        np.testing.assert_allclose(whole[name], expected[name], rtol=1e-6)
        np.testing.assert_allclose(mean[name], (expected[name] + PARAMS[name]) / 2, rtol=1e-6)


def test_moving_lazy_trees_about_is_right():
    """Stacking, indexing and selecting do not compute: they give the parameters of other candidates."""
    several = jax.tree.map(lambda *leaves: jnp.stack(leaves), THETA, pj.lazy(PARAMS, POPULATION[3], pj.Noise()))
    third = jax.tree.map(operator.itemgetter(1), several)
    found = pj.lazily(lambda theta: theta)(third)
    np.testing.assert_allclose(found["w"], pj.perturb(PARAMS, POPULATION[3], pj.Noise())["w"], rtol=1e-6)


@jax.custom_vjp
def rounded_vjp(w, x):
    return jnp.round(x) * w.sum()


@jax.custom_jvp
def rounded_jvp(w, x):
    return jnp.round(x) * w.sum()


rounded_vjp.defvjp(lambda w, x: (rounded_vjp(w, x), None), lambda _, g: (None, g))
rounded_jvp.defjvp(lambda primals, tangents: (rounded_jvp(*primals), tangents[1]))


@pytest.mark.parametrize("rounded", [rounded_vjp, rounded_jvp])
def test_a_custom_rule_is_never_lost_in_a_gradient(rounded):
    """An interpreted custom function has no rule any more: its gradient, straight through, would be 0 for 1."""
    argument = lambda x: pj.lazily(lambda p, x: rounded(p["w"], x).sum())(THETA, x)  # noqa: E731
    closed = lambda x: pj.lazily(lambda p: rounded(p["w"], x).sum())(THETA)  # noqa: E731
    for fn in (argument, closed):
        for differentiated in (jax.grad(fn), jax.grad(jax.jit(fn)), jax.jit(jax.jacfwd(fn)), lambda x, fn=fn: jax.linearize(fn, x)):
            with pytest.raises(TypeError, match="forward only"):
                differentiated(X)
    inside = pj.lazily(lambda p, x: jax.grad(lambda x: rounded(p["w"], x).sum())(x))(THETA, X)
    np.testing.assert_array_equal(inside, jnp.ones_like(X))


@pytest.mark.parametrize(
    ("params", "rules"),
    [
        ({"w": jnp.ones(3), "v": jnp.ones(2)}, (pj.Rule("w", None), pj.Rule("v", None))),
        ({"w": jnp.ones(3, jnp.complex64)}, ()),
        ({"steps": jnp.int32(3)}, ()),
        ({}, ()),
    ],
)
def test_noise_that_moves_nothing_is_an_error(params, rules):
    noise = pj.Noise(rules=rules)
    with pytest.raises(pj.InputError, match=f"`noise`: moves none of the {len(params)} parameters"):
        pj.perturb(params, POPULATION[0], noise)
    with pytest.raises(pj.InputError, match="moves none"):
        pj.lazy(params, POPULATION[0], noise)
    with pytest.raises(pj.InputError, match="moves none"):
        pj.Scorer(lambda params, _: jnp.float32(0), params, noise, strategy="copy")
