"""What a lazy parameter answers outside of ``lazily``: a ``TypeError`` that says what to do, and never a number.

A ``LazyArray`` is a pytree, so that jit, vmap and scan take it. ``jax.tree.map`` reaches its parts for the same reason, and arithmetic on
them is not arithmetic on the parameter. Its key is therefore an array of a dtype of its own. JAX moves such an array like any other (index,
stack, select), and refuses to compute with it; its error prints the dtype, whose name says what to do.
"""

from __future__ import annotations

import functools
from typing import Any, NoReturn

import jax

from perturbjax.noise.values import KeyData
from perturbjax.tree import Unmade

_OPERATORS = (
    *("add", "radd", "sub", "rsub", "mul", "rmul", "matmul", "rmatmul", "truediv", "rtruediv", "floordiv", "pow", "rpow", "neg"),
    *("getitem", "float", "int", "bool", "array", "jax_array"),
)


class Sealed(Unmade):
    """A parameter whose noise has not been made yet. Operators, jnp and numpy functions on it raise ``TypeError``."""

    path: str


def _refuse(self: Sealed, *_: Any, **__: Any) -> NoReturn:
    raise TypeError(self.refusal(self.path))


for _name in _OPERATORS:
    setattr(Sealed, f"__{_name}__", _refuse)


def _no_random_bits(*_: Any, **__: Any) -> NoReturn:
    raise TypeError("a lazy parameter's key makes its own noise only")


@functools.cache
def _implementation() -> Any:
    """The dtype of sealed keys; made at the first use, because nothing may touch JAX at import, and ``jax.extend`` imports
    Pallas (``_compat``)."""
    from jax.extend.random import define_prng_impl

    return define_prng_impl(
        key_shape=(2,), seed=_no_random_bits, split=_no_random_bits, random_bits=_no_random_bits, fold_in=_no_random_bits,
        name="lazy parameter", tag="of a lazy parameter: pass the tree to pj.lazily(fn), or materialize it by pj.lazily(lambda p: p)(tree)",
    )  # fmt: skip


def seal(key_data: KeyData) -> jax.Array:
    """A leaf's key, uint32[2], as an array () that JAX does not compute with."""
    return jax.random.wrap_key_data(key_data, impl=_implementation())
