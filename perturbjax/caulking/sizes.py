"""Losses, and those that are compiled for several sizes of a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from perturbjax.tree import Params

Loss = Callable[[Params, Any], jax.Array]
"""(params, batch) -> (): of batch arrays with leading B, and of test rows with leading R."""


@dataclass(frozen=True)
class BySize:
    """A loss whose arrays depend on what is in the batch, e.g. on its longest row: compiled for a few sizes.

    Attributes:
        losses: the same function in each size, growing; the last holds every batch.
        needed: batch -> () int32, the number of the first that holds it. A step takes the highest of the cells that are vmapped together.
    """

    losses: tuple[Loss, ...]
    needed: Callable[[Any], jax.Array]


@jax.custom_batching.custom_vmap
def highest_together(number: jax.Array) -> jax.Array:
    """The highest number of all that are vmapped together: one for all of them, so that a ``switch`` by it stays one."""
    return number


@highest_together.def_vmap
def _(size: int, batched: Any, numbers: jax.Array) -> tuple[jax.Array, bool]:
    return numbers.max(axis=0), False
