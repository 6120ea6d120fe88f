"""Views: operations of one operand that move or relabel elements and never mix them, kept as data so that they can be replayed.

A view knows two things beyond how to run: which dim of its operand an output dim is (if that dim passes through whole), and what the view
becomes when that dim gets another size. With them a slice of a view becomes the view of a slice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax

if TYPE_CHECKING:
    from jax.extend.core import Primitive

_ELEMENTWISE = {"convert_element_type", "copy", "name", "reduce_precision", "stop_gradient"}
"""Views that keep every element in its place."""
_LAYOUT = {"transpose", "reshape", "broadcast_in_dim", "squeeze", "rev", "sharding_constraint"}
VIEWS = _ELEMENTWISE | _LAYOUT
"""Names of the primitives that are views."""


@dataclass(frozen=True)
class View:
    """One primitive of one operand and its parameters."""

    primitive: Primitive
    items: tuple[tuple[str, Any], ...]

    @staticmethod
    def of(primitive: Primitive, params: dict[str, Any]) -> View:
        return View(primitive, tuple(sorted(params.items())))

    @property
    def params(self) -> dict[str, Any]:
        return dict(self.items)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.primitive.bind(x, **self.params)

    def shape_of(self, shape: tuple[int, ...], dtype: Any) -> tuple[int, ...]:
        """Output shape for an operand of ``shape``."""
        return jax.eval_shape(self, jax.ShapeDtypeStruct(shape, dtype)).shape

    def source(self, dim: int, shape: tuple[int, ...]) -> int | None:
        """The dim of the operand (of ``shape``) that output dim ``dim`` is, whole and in order; None if there is none."""
        name, params = self.primitive.name, self.params
        if name in _ELEMENTWISE or name == "sharding_constraint":
            return dim
        if name == "transpose":
            return params["permutation"][dim]
        if name == "squeeze":
            gone = {d % len(shape) for d in params["dimensions"]}
            return [d for d in range(len(shape)) if d not in gone][dim]
        if name == "broadcast_in_dim":
            kept = params["broadcast_dimensions"]
            inside = kept.index(dim) if dim in kept else None
            return inside if inside is not None and shape[inside] == params["shape"][dim] else None
        if name == "reshape" and params["dimensions"] is None:
            # A dim passes through a reshape if as many elements lie before it and in it as before.
            new, before = params["new_sizes"], math.prod(params["new_sizes"][:dim])
            matching = (d for d, n in enumerate(shape) if n == new[dim] and n > 1 and math.prod(shape[:d]) == before)
            return next(matching, None)
        if name == "rev" and dim not in params["dimensions"]:
            return dim
        return None

    def resized(self, dim: int, size: int, shape: tuple[int, ...]) -> View:
        """This view for an operand whose dim ``source(dim, shape)`` has another size."""
        name, params = self.primitive.name, self.params
        if name == "sharding_constraint":
            # A constraint speaks of the whole; a part of it goes where the part is used.
            return View.of(jax.lax.copy_p, {})
        field = {"broadcast_in_dim": "shape", "reshape": "new_sizes"}.get(name)
        if field is None:
            return self
        sizes = list(params[field])
        sizes[dim] = size
        return View.of(self.primitive, params | {field: tuple(sizes)})
