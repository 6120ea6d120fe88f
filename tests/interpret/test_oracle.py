"""``lazily`` against the dense oracle ``fn(perturb(params, candidate, noise), *args)`` on every program of ``lazy_cases``."""

import jax
import numpy as np
import pytest
from support.lazy_cases import CASES, NOISES
from support.oracle import POPULATION, cast, dense, jit, relative_error

import perturbjax as pj
from perturbjax.tree import leaf_paths


@pytest.mark.parametrize("name", CASES)
def test_gaussian_in_float32_under_vmap(name):
    case, noise = CASES[name], pj.Noise()
    params, args = cast((case.params, case.args), "float32")
    several = POPULATION[[1, 4]]
    found = jit(jax.vmap(lambda candidate: pj.lazily(case.fn)(pj.lazy(params, candidate, noise), *args)))(several)
    base = case.fn(params, *args)
    for i, index in enumerate((1, 4)):
        expected = dense(case, params, POPULATION[index], noise, args)
        assert relative_error(jax.tree.map(lambda leaf, i=i: leaf[i], found), expected) < 1e-5
        moved = [np.any(np.asarray(a) != np.asarray(b)) for a, b in zip(*map(jax.tree.leaves, (base, expected)), strict=True)]
        assert any(moved) or not any(leaf.size for leaf in jax.tree.leaves(base)), "the case does not depend on the noise"


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.exact or case.every_noise])
def test_rademacher_in_bfloat16(name):
    case, noise = CASES[name], pj.Noise("rademacher")
    params, args = cast((case.params, case.args), "bfloat16")
    found = jit(pj.lazily(case.fn))(pj.lazy(params, POPULATION[3], noise), *args)
    error = relative_error(found, dense(case, params, POPULATION[3], noise, args))
    # Where values are only moved, the single rounding is all there is. Elsewhere sums and products are rounded to 8 bits by both programs,
    # not always at the same places.
    assert error == 0 if case.exact else error < 2**-6


@pytest.mark.parametrize("noise", NOISES, ids=str)
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.every_noise])
def test_every_kind_of_noise(name, noise):
    case = CASES[name]
    params, args = cast((case.params, case.args), "float32")
    found = jit(pj.lazily(case.fn))(pj.lazy(params, POPULATION[2], noise), *args)
    assert relative_error(found, dense(case, params, POPULATION[2], noise, args)) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_what_is_made_whole(name):
    case = CASES[name]
    params, args = cast((case.params, case.args), "bfloat16")
    theta = pj.lazy(params, POPULATION[3], pj.Noise("rademacher"))
    report = pj.lazily(case.fn).usage(theta, *args)
    assert tuple(use.primitive for use in report.materialized) == case.whole
    assert {use.path for use in report.uses} <= set(leaf_paths(params))
