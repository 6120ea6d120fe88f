"""``perturbed(fn, noise)`` and ``lazily(fn)``: the function that runs ``fn`` with noise made at the point of use."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray, Tracer

from perturbjax import _compat
from perturbjax.interpret.array import LazyArray, lazy
from perturbjax.interpret.interpreter import Interpreter
from perturbjax.interpret.usage import Usage
from perturbjax.noise import Candidate
from perturbjax.noise.spec import Noise
from perturbjax.tree import Params


def perturbed(fn: Callable[..., Any], noise: Noise) -> Callable[..., Any]:
    """``fn`` of a candidate: ``perturbed(fn, noise)(candidate, params, *args)`` equals ``fn(perturb(params, candidate, noise), *args)``.

    The noise of each parameter is made where ``fn`` consumes it (``lazily``), so under ``jax.vmap`` over candidates no perturbed copy of
    the parameters exists. Call the result under ``jax.jit``.

    Args:
        fn: function of (params, *args); any JAX function, unmodified.
        noise: static.

    >>> import jax.numpy as jnp
    >>> import perturbjax as pj
    >>> params, x = {"w": jnp.eye(3)}, jnp.ones((2, 3))
    >>> population, fn = pj.Population(seed=0, size=8, sigmas=(0.1,)), lambda params, x: x @ params["w"]
    >>> y = jax.vmap(pj.perturbed(fn, pj.Noise()), in_axes=(0, None, None))(population[2:5], params, x)
    >>> y.shape, bool(jnp.allclose(y[1], fn(pj.perturb(params, population[3], pj.Noise()), x)))
    ((3, 2, 3), True)
    """
    run = lazily(fn)

    def of_candidate(candidate: Candidate, params: Params, *args: Any, **kwargs: Any) -> Any:
        return run(lazy(params, candidate, noise), *args, **kwargs)

    return of_candidate


def lazily(fn: Callable[..., Any], *, strict: bool = False) -> Lazily:
    """Runs ``fn`` on lazy parameters: traced once to a jaxpr, evaluated with the noise of each parameter made where it is consumed.

    ``lazily(fn)(lazy(params, candidate, noise), x)`` equals ``fn(perturb(params, candidate, noise), x)``: in float32 to rounding, in
    bfloat16 exactly up to how the compiler groups sums. ``fn`` is any JAX function, unmodified (plain, Flax, Equinox, Haiku); call the
    result under ``jax.jit``, and ``jax.vmap`` it over candidates. Forward only: differentiating it raises ``TypeError``.

    Args:
        fn: function of arrays or pytrees of arrays. Booleans, strings and functions that are given to it stay as they are.
        strict: raise where a matrix or more would have to be materialized, naming primitive and parameter.

    Returns:
        A callable of the same signature; its ``usage(*args)`` lists every use of a lazy parameter.

    >>> import jax.numpy as jnp
    >>> import perturbjax as pj
    >>> params = {"w": jnp.eye(3), "gain": jnp.ones(())}
    >>> fn = lambda params, x: x @ params["w"] * params["gain"]
    >>> theta = pj.lazy(params, pj.Population(seed=0, size=4, sigmas=(0.1,))[2], pj.Noise())
    >>> y = jax.jit(pj.lazily(fn))(theta, jnp.ones((2, 3)))
    >>> bool(jnp.allclose(y, fn(pj.perturb(params, pj.Population(seed=0, size=4, sigmas=(0.1,))[2], pj.Noise()), jnp.ones((2, 3)))))
    True
    >>> print(pj.lazily(fn).usage(theta, jnp.ones((2, 3))))
    2 uses of 2 parameters, 0 materialized
    """
    return Lazily(fn, strict)


class Lazily:
    """What ``lazily`` returns."""

    def __init__(self, fn: Callable[..., Any], strict: bool):
        self._fn, self._strict = fn, strict
        functools.update_wrapper(self, fn, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(Usage(self._strict), args, kwargs)

    def usage(self, *args: Any, **kwargs: Any) -> Usage:
        """Every use of a lazy parameter in a call with these arguments. Traces, computes nothing."""
        usage = Usage(self._strict)
        jax.eval_shape(lambda args, kwargs: self._run(usage, args, kwargs), args, kwargs)
        return usage

    def _run(self, usage: Usage, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        flattened, structure = jax.tree.flatten((args, kwargs), is_leaf=lambda leaf: isinstance(leaf, LazyArray))
        leaves = [leaf for leaf in flattened if not _is_static(leaf)]

        def flat(*leaves: Any) -> list[Any]:
            nonlocal result
            given = iter(leaves)
            args, kwargs = jax.tree.unflatten(structure, [leaf if _is_static(leaf) else next(given) for leaf in flattened])
            outputs, result = jax.tree.flatten(self._fn(*args, **kwargs))
            return outputs

        result: Any = None
        # The base stands in for the perturbed parameter: same shape, dtype and sharding.
        program = jax.make_jaxpr(flat)(*(leaf.base if isinstance(leaf, LazyArray) else leaf for leaf in leaves))
        # Modules that return their state from a scan or remat would have every layer materialized, only to be thrown away.
        jaxpr, consts = _compat.without_dead_code(program)
        leaves, consts = _forward_only((leaves, list(consts)))
        run = Interpreter(usage)
        outputs = run.run(jaxpr, consts, leaves)
        return jax.tree.unflatten(result, [run.materialize(output, "return", "the function returns it") for output in outputs])


def _is_static(leaf: Any) -> bool:
    # ``fn(params, x, True)`` may branch in Python on what it is given.
    return isinstance(leaf, bool | str | bytes) or (callable(leaf) and not hasattr(leaf, "dtype"))


def _forward_only(values: Any) -> Any:
    """The same values, arguments and whatever ``fn`` closes over, as arrays that cannot be differentiated by."""
    leaves, structure = jax.tree.flatten(values)
    traced = [i for i, leaf in enumerate(leaves) if _is_differentiable(leaf)]
    for i, leaf in zip(traced, _refuse_tangents([leaves[i] for i in traced]), strict=True):
        leaves[i] = leaf
    return jax.tree.unflatten(structure, leaves)


def _is_differentiable(leaf: Any) -> bool:
    # Only what a transformation traces has tangents; references to arrays (jax.new_ref) have none.
    return isinstance(leaf, Tracer) and isinstance(jax.typeof(leaf), ShapedArray) and jnp.issubdtype(leaf.dtype, jnp.inexact)


@jax.custom_jvp
def _refuse_tangents(leaves: list[jax.Array]) -> list[jax.Array]:
    return leaves


@_refuse_tangents.defjvp
def _refuse(primals: Any, tangents: Any) -> Any:
    raise TypeError(
        "a lazily perturbed function is forward only and cannot be differentiated: "
        "take the gradient of fn(perturb(params, candidate, noise), ...) instead"
    )
