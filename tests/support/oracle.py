"""The dense oracle ``fn(perturb(params, candidate, noise), *args)``, and how far a result is from it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import perturbjax as pj
from perturbjax.interpret import dot
from perturbjax.kernels import matmul
from support.lazy_cases import Case

POPULATION = pj.Population(seed=11, size=6, sigmas=(0.1, 0.2))


def cast(tree: Any, dtype: str) -> Any:
    """Floating leaves as jax arrays of ``dtype``; others as they are."""
    return jax.tree.map(lambda a: jnp.asarray(a, dtype if jnp.issubdtype(a.dtype, jnp.floating) else a.dtype), tree)


def relative_error(found: Any, expected: Any) -> float:
    """Largest difference over the largest value, worst leaf; shapes, dtypes, NaNs and integers must agree exactly."""
    worst = 0.0
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        if not jnp.issubdtype(a.dtype, jnp.floating):
            np.testing.assert_array_equal(a, b)
            continue
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        if np.isfinite(b).any():
            worst = max(worst, float(np.nanmax(np.abs(a - b)) / (np.nanmax(np.abs(b)) + 1e-30)))
    return worst


def dense(case: Case, params: Any, candidate: pj.Candidate, noise: pj.Noise, args: Any) -> Any:
    return jax.jit(case.fn)(pj.perturb(params, candidate, noise), *args)


def use_kernel(monkeypatch: Any, lowering: str) -> None:
    """Lazy dots of this platform take a kernel: the jnp reference, or one for accelerators, interpreted."""
    product = functools.partial(matmul.perturbed_matmul, interpret=lowering != "reference")
    monkeypatch.setattr(dot, "lowerings", lambda: {"cpu": lowering})
    monkeypatch.setattr(dot, "pays", lambda *_: True)
    monkeypatch.setattr(matmul, "perturbed_matmul", product)
