"""The dense oracle ``fn(perturb(params, candidate, noise), *args)``, and how far a result is from it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import perturbjax as pj
from perturbjax.interpret import dot
from perturbjax.kernels import matmul
from support.lazy_cases import CASES, PARAMS, Case

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


def of_named(name: str, ours: dict[str, Any], theirs: dict[str, Any]) -> Any:
    """What a case takes of a tree like ``PARAMS``, or its own of ``theirs``."""
    return theirs[name] if name in theirs else {leaf: ours[leaf] for leaf in CASES[name].params}


@functools.cache
def params_of(names: tuple[str, ...], dtype: str) -> tuple[Any, Any, Any]:
    """The leaves of ``PARAMS`` that the cases take, the trees of those that have their own, and the other arguments, by name."""
    is_named = {name: isinstance(p := CASES[name].params, dict) and all(PARAMS.get(leaf) is v for leaf, v in p.items()) for name in names}
    taken = {leaf: PARAMS[leaf] for name in names if is_named[name] for leaf in CASES[name].params}
    own = {name: CASES[name].params for name in names if not is_named[name]}
    return cast((taken, own, {name: CASES[name].args for name in names}), dtype)


@functools.cache
def lazy_of(dtype: str, index: int) -> tuple[Any, Any]:
    """Lazy arrays of the same, with noise of signs."""
    ours, theirs, _ = params_of(tuple(CASES), dtype)
    lazy = functools.partial(pj.lazy, candidate=POPULATION[index], noise=pj.Noise("rademacher"))
    return lazy(ours), {name: lazy(tree) for name, tree in theirs.items()}


def _run(wrap: Callable[[Any], Any], names: tuple[str, ...], ours: Any, theirs: Any, args: Any) -> dict[str, Any]:
    outputs = {}
    for name in names:
        try:
            outputs[name] = wrap(CASES[name].fn)(of_named(name, ours, theirs), *args[name])
        except Exception as error:
            error.add_note(f"in case {name!r}")
            raise
    return outputs


@functools.cache
def _program(names: tuple[str, ...]) -> Any:
    return jax.jit(functools.partial(_run, lambda fn: fn, names))


@functools.cache
def together(names: tuple[str, ...], noise: pj.Noise, dtype: str, candidates: tuple[int, ...]) -> tuple[Any, list[Any], Any]:
    """Cases as one program, and the outputs of each by its name: of ``lazily``, with one leading axis under vmap if there are several
    candidates; of the oracle, for each candidate; and of the base."""

    def each(make: Callable[[Any], Any], ours: Any, theirs: Any) -> tuple[Any, Any]:
        return make(ours), {name: make(tree) for name, tree in theirs.items()}

    def lazy(candidate: pj.Candidate, ours: Any, theirs: Any, args: Any) -> Any:
        return _run(pj.lazily, names, *each(lambda tree: pj.lazy(tree, candidate, noise), ours, theirs), args)

    @jax.jit
    def moved(candidate: pj.Candidate, ours: Any, theirs: Any) -> Any:
        return each(lambda tree: pj.perturb(tree, candidate, noise), ours, theirs)

    ours, theirs, args = params_of(names, dtype)
    single = POPULATION[candidates[0]]
    if len(candidates) > 1:
        found = jax.jit(jax.vmap(lazy, (0, None, None, None)))(POPULATION[list(candidates)], ours, theirs, args)
    else:
        found = jax.jit(lazy)(single, ours, theirs, args)
    plain = _program(names)
    expected = [plain(*moved(POPULATION[index], ours, theirs), args) for index in candidates]
    return jax.tree.map(np.asarray, (found, expected, plain(ours, theirs, args)))


def use_kernel(monkeypatch: Any, lowering: str) -> None:
    """Lazy dots of this platform take a kernel: the jnp reference, or one for accelerators, interpreted."""
    product = functools.partial(matmul.perturbed_matmul, interpret=lowering != "reference")
    monkeypatch.setattr(dot, "lowerings", lambda: {"cpu": lowering})
    monkeypatch.setattr(dot, "pays", lambda *_: True)
    monkeypatch.setattr(matmul, "perturbed_matmul", product)
