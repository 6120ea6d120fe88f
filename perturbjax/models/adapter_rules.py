"""Which leaves of a parameter pytree an adapter is for: path rules, and the shape of a matrix that may lie in a stack of layers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from perturbjax.errors import InputError
from perturbjax.tree import Params, leaf_paths

STACKED = r"^layers/(?!\d)"
"""Paths of leaves whose first axis is that of the layers: as in a decoder, but not those of a list (``layers/0/kernel``)."""


@dataclass(frozen=True)
class Leaves:
    """The leaves whose path matches ``pattern`` (``re.search``): trained, or with ``train=False`` left alone.

    Of several the first that matches a path decides; a leaf that none matches is left alone.
    """

    pattern: str
    train: bool = True

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise InputError(f"`rules` {self.pattern!r}: a regular expression is required ({error})") from None


Rules = tuple[Leaves, ...]


def as_rules(rules: Iterable[Leaves | str]) -> Rules:
    """Rules, a text being ``Leaves(text)``.

    Raises:
        InputError: none trains anything, or one is no regular expression.
    """
    if isinstance(rules, str):
        rules = (rules,)
    found = tuple(Leaves(rule) if isinstance(rule, str) else rule for rule in rules)
    if not any(rule.train for rule in found):
        raise InputError(f"`rules` {', '.join(rule.pattern for rule in found) or '()'}: one that trains leaves is required")
    return found


def select(params: Params, rules: Rules, stacked: str | None = None) -> dict[str, Any]:
    """Path -> leaf of the floating-point leaves that the rules train, in tree order.

    Args:
        params: arrays, or shapes alone.
        rules: first match wins.
        stacked: pattern of the leaves with a leading axis of layers, where only matrices are wanted; None: leaves of any shape.

    Raises:
        InputError: a rule matches no leaf, or they train nothing.
    """
    leaves = {path: leaf for path, leaf in leaf_paths(params).items() if jnp.issubdtype(_dtype(leaf), jnp.floating)}
    if stacked is not None:
        leaves = {path: leaf for path, leaf in leaves.items() if len(jnp.shape(leaf)) - bool(re.search(stacked, path)) >= 2}
    found, used = {}, set()
    for path, leaf in leaves.items():
        rule = next((rule for rule in rules if re.search(rule.pattern, path)), None)
        used.add(rule)
        if rule is not None and rule.train:
            found[path] = leaf
    for rule in rules:
        if rule not in used:
            what = "floating-point leaf" if stacked is None else "matrix"
            shown = ", ".join(list(leaves)[:3]) + (", ..." if len(leaves) > 3 else "")
            raise InputError(f"`rules` {rule.pattern!r}: matches no {what} that an earlier rule has left; the parameters have {shown}")
    if not found:
        raise InputError("`rules`: every leaf that they match is excluded; a leaf to train is required")
    return found


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)


@dataclass(frozen=True)
class Matrix:
    """A leaf as a matrix, or as a stack of matrices: (stack..., inputs..., out). A convolution has several input axes.

    Attributes:
        path: of the leaf.
        stack: () or (L,).
        inputs: axes that a product sums over.
        out: size of the last axis.
    """

    path: str
    stack: tuple[int, ...]
    inputs: tuple[int, ...]
    out: int

    @staticmethod
    def of(path: str, leaf: Any, stacked: str) -> Matrix:
        shape = jnp.shape(leaf)
        leading = 1 if re.search(stacked, path) else 0
        return Matrix(path, shape[:leading], shape[leading:-1], shape[-1])

    @property
    def rows(self) -> int:
        return math.prod(self.inputs)

    def check_rank(self, name: str, rank: int) -> None:
        """Raises ``InputError`` if the argument ``name`` is above the smaller dim."""
        if rank > (most := min(self.rows, self.out)):
            raise InputError(f"`{name}` {rank}: at most {most} is required, the smaller dim of {self.path}; lower it, or exclude the leaf")
