"""Flax NNX, Linen, Equinox and Haiku models, unmodified, against the dense oracle; none has a matrix materialized."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.lazy_models import MODELS
from support.oracle import jit, relative_error

import perturbjax as pj
from perturbjax.interpret import LazyArray
from perturbjax.noise.spec import is_perturbable

SIGMA = 0.02


def is_lazy(leaf):
    return isinstance(leaf, LazyArray)


@pytest.mark.parametrize("name", MODELS)
def test_models_of_other_libraries(name):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # their code mixes types and ranks
        fn, params, x = MODELS[name]()
        # Some start at zero: every parameter has to matter.
        params = jax.tree.map(lambda leaf: leaf + jnp.asarray(0.01, leaf.dtype) if is_perturbable(leaf) else leaf, params)
        candidate, noise = pj.Population(seed=5, size=3, sigmas=(SIGMA,))[2], pj.Noise()
        theta = pj.lazy(params, candidate, noise)
        found = jit(pj.lazily(fn))(theta, x)
        expected = jit(fn)(pj.perturb(params, candidate, noise), x)
        report = pj.lazily(fn, strict=True).usage(theta, x)
        assert relative_error(found, expected) < (1e-5 if found.dtype == np.float32 else 2**-6)
        assert np.abs(expected - jit(fn)(params, x)).max() > 1e-3
        assert not report.materialized
        lazy_leaves = [leaf for leaf in jax.tree.leaves(theta, is_leaf=is_lazy) if is_lazy(leaf)]
        assert {use.path for use in report.uses} == {leaf.leaf.path for leaf in lazy_leaves}
