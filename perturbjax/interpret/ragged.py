"""``lax.ragged_dot`` of lazy parameters: the experts of a mixture, each a matrix for the rows that are routed to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
from jax.custom_batching import custom_vmap

from perturbjax.interpret.array import LazyArray

if TYPE_CHECKING:
    from jax.extend.core import JaxprEqn

    from perturbjax.interpret.interpreter import Interpreter


def ragged_dot(run: Interpreter, eqn: JaxprEqn, values: list[Any]) -> list[Any]:
    """The noise of the experts is made here, one candidate's at a time.

    Candidates route their rows each in its own way, so they share no product; and JAX cannot vmap a ragged dot unless all of its operands
    are batched. Under ``vmap`` the product is therefore a loop, which keeps one candidate's experts of one layer in memory.
    """
    for value in values:
        if isinstance(value, LazyArray):
            run.usage.record(value, eqn.primitive.name)
    return [_looped_under_vmap(lambda *operands: eqn.primitive.bind(*operands, **eqn.params))(*values)]


def _looped_under_vmap(product: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """``product`` of arrays or LazyArrays, with a loop as its rule for ``vmap``."""

    @custom_vmap
    def call(*operands: Any) -> jax.Array:
        return product(*(operand.materialize() if isinstance(operand, LazyArray) else operand for operand in operands))

    @call.def_vmap
    def rule(size: int, batched: Any, *operands: Any) -> tuple[jax.Array, bool]:
        leaves, structure = jax.tree.flatten(operands)
        flags = jax.tree.leaves(batched)

        def one(parts: list[jax.Array]) -> jax.Array:
            rest = iter(parts)
            return call(*jax.tree.unflatten(structure, [next(rest) if b else leaf for leaf, b in zip(leaves, flags, strict=True)]))

        return jax.lax.map(one, [leaf for leaf, b in zip(leaves, flags, strict=True) if b]), True

    return call
