"""What ``perturbed`` and ``lazily`` say and refuse: usage, ``strict``, gradients, named scopes, types, noise where it is used."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from support.lazy_cases import CASES, PARAMS, X
from support.oracle import POPULATION, cast, dense, relative_error

import perturbjax as pj
from perturbjax.interpret import LazyArray
from perturbjax.noise import DISTRIBUTIONS

MATRICES = cast({name: PARAMS[name] for name in ("w", "v", "square", "table", "stack")}, "float32")
INPUTS = jnp.asarray(X)


def theta(params=MATRICES, noise=pj.Noise()):  # noqa: B008
    return pj.lazy(params, POPULATION[1], noise)


def test_usage_lists_every_use_in_program_order():
    def fn(p, x):
        h = x @ p["square"] + p["table"][3]
        h = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, p["stack"])[0]
        return h @ (p["w"] * 2), p["v"]

    with jax.numpy_rank_promotion("allow"):
        usage = pj.lazily(fn).usage(theta(), INPUTS)
    assert [(use.path, use.primitive, use.shape, use.nbytes, use.in_place) for use in usage.uses] == [
        ("square", "dot_general", (40, 40), 6400, True),
        ("table", "add", (1, 40), 160, True),
        ("stack", "dot_general", (1, 40, 40), 6400, True),
        ("w", "mul", (40, 24), 3840, False),
        ("v", "return", (40, 24), 3840, False),
    ]
    text = str(usage).splitlines()
    assert text[0] == "5 uses of 5 parameters, 2 materialized"
    assert text[1].startswith("  w: mul on (40, 24)") and text[2].startswith("  v: return on (40, 24)")


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.whole])
def test_strict_names_the_primitive_and_the_parameter(name):
    case = CASES[name]
    params, args = cast((case.params, case.args), "float32")
    (path, *_) = [use.path for use in pj.lazily(case.fn).usage(theta(params), *args).materialized]
    with pytest.raises(ValueError, match=f"parameter {path}: primitive {case.whole[0]} "):
        pj.lazily(case.fn, strict=True)(theta(params), *args)


def test_strict_lets_uses_in_place_pass():
    fn = CASES["scan over stacked layers"].fn
    params = cast({name: PARAMS[name] for name in ("stack", "norms")}, "float32")
    out = jax.jit(pj.lazily(fn, strict=True))(theta(params), INPUTS)
    assert relative_error(out, jax.jit(pj.lazily(fn))(theta(params), INPUTS)) == 0


def test_what_is_thrown_away_is_not_made():
    def layer(h, w):
        return jnp.tanh(h @ w), w * 2  # as modules do that hand their state through a scan

    fn = lambda p, x: lax.scan(jax.checkpoint(layer), x, p["stack"])[0]  # noqa: E731
    assert not pj.lazily(fn, strict=True).usage(theta(), INPUTS).materialized


def test_named_scopes_survive():
    def layer(h, w):
        with jax.named_scope("my_layer"):
            return jnp.tanh(h @ w), None

    def fn(p, x):
        with jax.named_scope("my_body"):
            h = lax.scan(jax.checkpoint(layer), x, p["stack"])[0]
        with jax.named_scope("my_head"):
            return jax.jit(lambda h: h @ p["w"])(h)

    text = jax.jit(pj.lazily(fn)).lower(theta(), INPUTS).as_text(debug_info=True)
    assert "my_body/" in text and "my_layer/dot_general" in text and "my_layer/noise" in text
    assert "my_head/" in text and "/noise/" in text


def test_a_gather_draws_noise_for_the_picked_rows_only():
    table = {"table": jnp.ones((5000, 8))}
    program = jax.jit(pj.lazily(lambda p, ids: p["table"][ids])).lower(theta(table), jnp.arange(4)).compile()
    memory = program.memory_analysis()
    assert memory is not None and memory.temp_size_in_bytes < 5000 * 8


def test_python_numbers_and_weakly_typed_leaves_promote_as_the_oracle_does():
    with jax.numpy_dtype_promotion("standard"):
        for leaf in (1.5, np.float32(1.5), jnp.asarray(1.5)):
            fn = lambda p, x: p["gain"] * x  # noqa: E731
            args = (jnp.ones((), jnp.bfloat16),)
            found = pj.lazily(fn)(theta({"gain": leaf}), *args)
            expected = fn(pj.perturb({"gain": leaf}, POPULATION[1], pj.Noise()), *args)
            assert found.dtype == expected.dtype == jnp.float32 and found == expected


def test_booleans_strings_and_functions_stay_as_they_are_given():
    def fn(p, x, train, activation, *, kind="plain"):
        h = x @ p["square"] if kind == "square" else x
        return activation(h) if train else h

    for train in (True, False):
        args = INPUTS, train, jax.nn.relu
        found = pj.perturbed(fn, pj.Noise())(POPULATION[1], MATRICES, *args, kind="square")
        assert relative_error(found, fn(pj.perturb(MATRICES, POPULATION[1], pj.Noise()), *args, kind="square")) < 1e-6


def test_integers_booleans_and_excluded_leaves_are_passed_as_they_are():
    params = {"steps": jnp.int32(3), "mask": jnp.ones(4, bool), "norm": jnp.ones(4), "w": jnp.ones((4, 4))}
    moved = theta(params, pj.Noise(rules=(pj.Rule("norm", None),)))
    assert isinstance(moved["w"], LazyArray)
    for name in ("steps", "mask", "norm"):
        assert moved[name] is params[name]


def test_lazily_keeps_the_structure_of_arguments_and_results():
    def fn(p, *, x, flags):
        return {"y": (x @ p["w"], None), "flags": flags, "count": 3}

    found = pj.lazily(fn)(theta(), x=INPUTS, flags=[jnp.int32(1)])
    expected = fn(pj.perturb(MATRICES, POPULATION[1], pj.Noise()), x=INPUTS, flags=[jnp.int32(1)])
    assert jax.tree.structure(found) == jax.tree.structure(expected) and found["count"] == 3
    np.testing.assert_allclose(found["y"][0], expected["y"][0], rtol=1e-5, atol=1e-6)


def test_lazy_parameters_are_a_pytree_that_jit_and_vmap_take():
    fn = lambda p, x: x @ p["w"].T.T  # noqa: E731
    several = jax.vmap(lambda candidate: pj.lazy(MATRICES, candidate, pj.Noise()))(POPULATION[[0, 1]])
    outputs = jax.jit(jax.vmap(pj.lazily(fn), (0, None)))(several, INPUTS)
    for i in (0, 1):
        alone = jax.jit(fn)(pj.perturb(MATRICES, POPULATION[i], pj.Noise()), INPUTS)
        assert relative_error(outputs[i], alone) < 1e-5


def test_low_rank_factors_agree_with_the_perturbed_matrix():
    """The factored product rounds elsewhere than the dense one, and in float32 by no more than that."""
    for name in ("dot", "scan over stacked layers", "tied embedding", "einsum with a batch of matrices"):
        for noise in (pj.Noise(rank=1), pj.Noise("rademacher", 2, "rms")):
            case = CASES[name]
            params, args = cast((case.params, case.args), "float32")
            make = functools.partial(pj.lazy, params, POPULATION[2], noise, factored=True)
            found = jax.jit(lambda case=case, make=make, args=args: pj.lazily(case.fn)(make(), *args))()
            assert relative_error(found, dense(case, params, POPULATION[2], noise, args)) < 1e-5, name


@pytest.mark.parametrize("noise", [pj.Noise(name, rank) for name in DISTRIBUTIONS for rank in (None, 2)], ids=str)
def test_perturbed_under_vmap_equals_the_dense_oracle(noise):
    fn = lambda p, x, *, shift: jnp.tanh(x @ p["square"]) @ p["w"] + shift  # noqa: E731
    mapped = jax.vmap(lambda candidate, params, x: pj.perturbed(fn, noise)(candidate, params, x, shift=2.0), in_axes=(0, None, None))
    found = jax.jit(mapped)(POPULATION[1:4], MATRICES, INPUTS)
    for i, index in enumerate((1, 2, 3)):
        expected = jax.jit(lambda p: fn(p, INPUTS, shift=2.0))(pj.perturb(MATRICES, POPULATION[index], noise))
        assert relative_error(found[i], expected) < 1e-5


def loss(p, x):
    return jnp.tanh(x @ p["square"]).sum()


LOSS_OF_PARAMS = lambda params: pj.perturbed(loss, pj.Noise())(POPULATION[1], params, INPUTS)  # noqa: E731
LOSS_OF_INPUTS = lambda x: pj.perturbed(loss, pj.Noise())(POPULATION[1], MATRICES, x)  # noqa: E731
LOSS_OF_LAZY = lambda x: pj.lazily(loss)(theta(), x)  # noqa: E731


@pytest.mark.parametrize(
    ("fn", "argument"), [(LOSS_OF_PARAMS, MATRICES), (LOSS_OF_INPUTS, INPUTS), (LOSS_OF_LAZY, INPUTS)], ids=["params", "x", "lazily, x"]
)
def test_differentiating_says_forward_only(fn, argument):
    for differentiated in (jax.grad(fn), jax.jit(jax.grad(fn)), jax.grad(jax.jit(fn)), lambda a: jax.jvp(fn, (a,), (a,))):
        with pytest.raises(TypeError, match=r"forward only.*fn\(perturb\(params, candidate, noise\), \.\.\.\) instead"):
            differentiated(argument)
    jax.jit(fn)(argument)


def with_reference(p, x):
    """A function that writes in place."""
    total = jax.new_ref(jnp.zeros((x.shape[0], p["w"].shape[1])))
    total[...] = total[...] + x @ p["w"]
    return total[...]


def test_references_to_arrays_are_written_in_branches_and_around_them():
    def around(p, x):
        total = jax.new_ref(jnp.zeros((5, 24)))

        def write():
            total[...] = x @ p["w"]

        lax.cond(x.sum() > -1e3, write, lambda: None)
        return total[...]

    inside = lambda p, x: lax.cond(x.sum() > -1e3, lambda: with_reference(p, x), lambda: x @ p["w"])  # noqa: E731
    params = {"w": MATRICES["w"]}
    expected = jax.jit(with_reference)(pj.perturb(params, POPULATION[1], pj.Noise()), INPUTS)
    for fn in (with_reference, inside, around):
        assert relative_error(jax.jit(pj.lazily(fn))(theta(params), INPUTS), expected) < 1e-5
    scores = pj.score_population(lambda p, x: inside(p, x).sum(-1), params, POPULATION, pj.Noise(), INPUTS, strategy="lazy")
    np.testing.assert_allclose(scores[1], expected.sum(-1), rtol=1e-4, atol=1e-4)
