"""Lazy products by the kernels, interpreted on this machine or by their jnp reference, against the dense oracle."""

from functools import cache, partial

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from support.lazy_cases import CASES
from support.oracle import POPULATION, lazy_of, of_named, params_of, relative_error, together, use_kernel

import perturbjax as pj
from perturbjax.interpret import dot
from perturbjax.noise import DISTRIBUTIONS

DRAWS = np.random.default_rng(5)


def normal(*shape, fan_in=1):
    return jnp.asarray(DRAWS.standard_normal(shape) / np.sqrt(fan_in), jnp.float32)


def count(jaxpr, name):
    """Equations of one primitive, whatever they are nested in."""
    inside = [count(getattr(j, "jaxpr", j), name) for eqn in jaxpr.eqns for j in jax.extend.core.jaxprs_in_params(eqn.params)]
    return sum(eqn.primitive.name == name for eqn in jaxpr.eqns) + sum(inside)


@pytest.fixture(scope="module")
def dots():
    """The names of the programs in which a dot takes a kernel, and what ``together`` gives of them."""
    with pytest.MonkeyPatch.context() as patch:
        use_kernel(patch, "reference")
        patch.setattr(dot, "NARROW", 2)
        theta, args = lazy_of("float32", 1), params_of(tuple(CASES), "float32")[2]
        uses = {name: pj.lazily(case.fn).usage(of_named(name, *theta), *args[name]).uses for name, case in CASES.items()}
        names = tuple(name for name in CASES if any(use.primitive == "dot_general" for use in uses[name]))
        return names, together.__wrapped__(names, pj.Noise("rademacher"), "float32", (1, 4))


@pytest.mark.parametrize("name", CASES)
def test_every_program_with_a_dot_equals_the_oracle(name, dots):
    names, (found, expected, _) = dots
    if name not in names:
        return  # no kernel is reached, and test_oracle has this program
    for i in range(2):
        assert relative_error(jax.tree.map(lambda leaf, i=i: leaf[i], found[name]), expected[i][name]) < 1e-5


# Dims that are no multiples of a tile or of the 32 rows of a word.
WIDE = normal(130, 200, fan_in=130)
PARAMS = {
    "up": normal(3, 34, 50, fan_in=34),
    "down": normal(3, 50, 34, fan_in=50),
    "deep": normal(2, 2, 34, 34, fan_in=34),
    "table": normal(70, 34),
}


def stacked(params, x):
    """Layers in a scan, a matrix deeper in a stack, a window of a matrix, and a tied head with the new dim last and first."""

    def layer(h, w):
        up, down = w
        return h + jnp.tanh(jnp.einsum("bd,df->bf", h, up)) @ down, None

    h = jax.lax.scan(layer, x, (params["up"], params["down"]))[0]
    h = jax.lax.fori_loop(0, 2, lambda i, h: h + h @ params["deep"][1, i], h)
    h = jax.lax.cond(h.sum() > 0, lambda h: h @ params["up"][2, :, 9:], lambda h: h @ params["up"][1, :, :41], h)
    h = h @ params["down"][0, 5:46]
    return jnp.einsum("...d,vd->...v", h, params["table"]), params["table"] @ h.T


LOOPED_X, LOOPED = normal(5, 34), pj.Population(seed=3, size=4, sigmas=(0.02, 0.05))


@cache
def looped_oracle(noise):
    """The outputs of candidates 0, 1 and 3."""
    oracle = jax.jit(lambda candidate: stacked(pj.perturb(PARAMS, candidate, noise), LOOPED_X))
    return [oracle(LOOPED[index]) for index in (0, 1, 3)]


@pytest.mark.parametrize("noise", [*map(pj.Noise, DISTRIBUTIONS), pj.Noise("gaussian", rank=3)], ids=str)
@pytest.mark.parametrize("lowering", ("tpu", "gpu"))
def test_kernels_in_loops_under_vmap(lowering, noise, monkeypatch):
    monkeypatch.setattr(dot, "NARROW", 32)

    def fn(candidate):
        return pj.lazily(stacked)(pj.lazy(PARAMS, candidate, noise), LOOPED_X)

    several = LOOPED[[0, 1, 3]]
    assert count(jax.make_jaxpr(jax.vmap(fn))(several).jaxpr, "pallas_call") == 0
    use_kernel(monkeypatch, lowering)
    program = jax.jit(jax.vmap(lambda candidate: fn(candidate))).trace(several)
    # One call of a kernel for all candidates at each of the 8 dots.
    assert count(program.jaxpr.jaxpr, "pallas_call") == 8
    found = program.lower().compile()(several)
    for i, expected in enumerate(looped_oracle(noise)):
        assert relative_error(jax.tree.map(lambda leaf, i=i: leaf[i], found), expected) < 2e-5


def test_vectors_of_the_modular_scale_are_made_before_a_dot(monkeypatch):
    """A stack of vectors has the shape of a matrix, but no kernel divides each by its largest element."""
    use_kernel(monkeypatch, "tpu")
    noise, params, x = pj.Noise(scale="modular"), {"norm": {"scale": WIDE}}, normal(4, 130)
    fn = lambda p, x: x @ p["norm"]["scale"]  # noqa: E731
    found = jax.jit(pj.lazily(fn))(pj.lazy(params, POPULATION[1], noise), x)
    assert relative_error(found, fn(pj.perturb(params, POPULATION[1], noise), x)) < 1e-5


@pytest.mark.parametrize("dtype", (jnp.float32, jnp.bfloat16))
def test_result_types_and_precision_pass_through(dtype, monkeypatch):
    x, params = normal(4, 130).astype(dtype), {"w": WIDE.astype(dtype)}
    noise, candidate = pj.Noise("rademacher"), POPULATION[2]
    for wanted in (None, jnp.float32):
        fn = partial(jnp.einsum, "bd,df->bf", precision="highest", preferred_element_type=wanted)
        lazily = jax.jit(pj.lazily(lambda p, x, fn=fn: fn(x, p["w"])))
        expected = fn(x, pj.perturb(params, candidate, noise)["w"])
        with monkeypatch.context() as patch:
            use_kernel(patch, "tpu")
            found = lazily(pj.lazy(params, candidate, noise), x)
        assert relative_error(found, expected) < (1e-6 if expected.dtype == jnp.float32 else 2**-8)


@pytest.mark.parametrize(
    "fn",
    [
        lambda p, x: x.astype(jnp.bfloat16) @ p["w"].astype(jnp.bfloat16),  # rounded again on the way
        lambda p, x: jnp.einsum("bd,bdf->f", x, jnp.broadcast_to(p["w"], (5, 130, 200))),  # two contracted dims
        lambda p, x: x @ p["w"][jnp.arange(129, -1, -1)],  # rows in another order
        lambda p, x: x[:, :100] @ p["w"][:100],  # narrow
        lambda p, x: x[:0] @ p["w"],  # nothing to do
        lambda p, x: jnp.matmul(x, p["w"], precision="high"),  # no such kernel
        lambda p, x: x.astype(jnp.float16) @ p["w"].astype(jnp.float16),
    ],
)
def test_other_products_are_left_alone(fn, monkeypatch):
    use_kernel(monkeypatch, "tpu")
    theta = pj.lazy({"w": WIDE}, POPULATION[1], pj.Noise())
    assert count(jax.make_jaxpr(pj.lazily(fn))(theta, normal(5, 130)).jaxpr, "pallas_call") == 0


@pytest.mark.parametrize("noise, most", [(pj.Noise(), 0), (pj.Noise("rademacher"), 128), (pj.Noise(rank=2), 512)], ids=str)
def test_gpus_use_the_kernel_where_rows_are_few(noise, most, monkeypatch):
    theta = pj.lazy({"w": WIDE}, POPULATION[1], noise)
    program = pj.lazily(lambda p, x: jnp.einsum("bsd,df->bsf", x, p["w"]))
    for lowering, rows, kernels in (("gpu", most, most > 0), ("gpu", most + 2, False), ("tpu", 2048, True)):
        monkeypatch.setattr(dot, "lowerings", lambda lowering=lowering: {"tpu" if lowering == "tpu" else "cuda": lowering})
        found = count(jax.make_jaxpr(program)(theta, jnp.ones((2, rows // 2, 130))).jaxpr, "pallas_call")
        assert (found > 0) == kernels, (lowering, rows)


def test_programs_for_cpu_are_traced_without_kernels():
    theta = pj.lazy({"w": WIDE}, POPULATION[1], pj.Noise("rademacher"))
    program = jax.make_jaxpr(pj.lazily(lambda p, x: x @ p["w"]))(theta, normal(5, 130)).jaxpr
    assert count(program, "dot_general") == 1 and not count(program, "platform_index")
