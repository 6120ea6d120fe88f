"""``Noise``: the distribution, structure and scale of a perturbation, and which leaves it moves."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from perturbjax.errors import InputError
from perturbjax.noise.distributions import DISTRIBUTIONS, Distribution
from perturbjax.noise.modular import factors, holds_vectors
from perturbjax.tree import Params, leaf_paths, state_paths

Scale = Literal["absolute", "rms", "modular"]
SCALES: tuple[Scale, ...] = get_args(Scale)


@dataclass(frozen=True)
class Rule:
    """What happens to the leaves whose path matches ``pattern`` (``re.search``): another scale than ``Noise.scale``, or None, which
    excludes them."""

    pattern: str
    scale: Scale | None

    def __post_init__(self):
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"rule pattern {self.pattern!r}: not a regular expression ({error})") from None
        if self.scale is not None and self.scale not in SCALES:
            raise ValueError(f"rule scale {self.scale!r}: must be one of {', '.join(SCALES)}, or None to exclude")

    def __str__(self) -> str:
        """As ``--rules`` reads it."""
        return f"{self.pattern}={self.scale or 'exclude'}"

    def matches(self, path: str) -> bool:
        return re.search(self.pattern, path) is not None


@dataclass(frozen=True)
class Noise:
    """The distribution, structure and scale of a perturbation; frozen, hashable and static under jit.

    Attributes:
        distribution: a name in ``DISTRIBUTIONS``, which says what each is: "gaussian" is RandOpt's (arXiv 2603.12228).
        rank: None for full-rank noise, or r for E = A B^T / sqrt(r) on matrices, leaves with two or more dims (EGGROLL, arXiv 2511.16652).
        scale: factor of sigma per leaf.
            "absolute": 1, as in RandOpt.
            "rms": the root mean square of the leaf.
            "modular": sigma is R of Modular-Norm RandOpt (arXiv 2609.25745), 0.16 to 0.64 in the paper: the step of the whole model in the
                modular norm, divided over embedding, attention, MLP, head and norms (``noise.modular``).
        rules: first match wins. What no rule names has ``scale``, but for what a Flax NNX state holds besides ``nnx.Param``s (batch
            statistics): that does not move.
        stacked: regular expression of the paths whose leaves hold one array for each layer, along their first dim; None: no leaf does.
            Stacked vectors are vectors: they have full-rank noise, not one common direction. No rule of its own, because of rules the
            first that matches decides.
        unit: the noise of each vector is divided by its largest absolute element. ``of_leaf`` sets it, for the scale "modular".
    """

    distribution: str = "gaussian"
    rank: int | None = None
    scale: Scale = "absolute"
    rules: tuple[Rule, ...] = ()
    stacked: str | None = None
    unit: bool = False

    def __post_init__(self):
        object.__setattr__(self, "rules", tuple(self.rules))
        if self.distribution not in DISTRIBUTIONS:
            raise ValueError(f"distribution {self.distribution!r}: must be one of {', '.join(DISTRIBUTIONS)}")
        if self.scale not in SCALES:
            raise ValueError(f"scale {self.scale!r}: must be one of {', '.join(SCALES)}")
        if self.rank is not None and (type(self.rank) is not int or self.rank < 1):
            raise ValueError(f"rank {self.rank}: must be an integer of at least 1, or None for full rank")
        try:
            re.compile(self.stacked or "")
        except re.error as error:
            raise ValueError(f"stacked {self.stacked!r}: not a regular expression ({error})") from None

    def rule_of(self, path: str) -> Rule | None:
        """The rule that decides about a leaf."""
        return next((rule for rule in self.rules if rule.matches(path)), None)

    def of_leaf(self, path: str, shape: tuple[int, ...]) -> Noise:
        """The noise of one leaf: without a rank where the leaf, or one layer of a stacked one, has fewer than two dims; of ``unit`` vectors
        where it holds vectors and its scale is "modular"."""
        noise, rule = self, self.rule_of(path)
        if self.rank is not None:
            stacked = self.stacked is not None and re.search(self.stacked, path) is not None
            noise = self if len(shape) - stacked >= 2 else replace(self, rank=None)
        modular = (rule.scale if rule else self.scale) == "modular"
        return replace(noise, unit=True) if modular and noise.rank is None and holds_vectors(path, shape) else noise

    @property
    def drawn(self) -> Distribution:
        """Of one leaf's full-rank noise: how its values are made."""
        return DISTRIBUTIONS[self.distribution].of_unit_vectors if self.unit else DISTRIBUTIONS[self.distribution]


def is_perturbable(leaf: Any) -> bool:
    """Floating-point arrays move; integers, booleans and complex numbers never do."""
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.floating))


def moving(params: Params, noise: Noise) -> dict[str, Scale]:
    """Path -> scale of the leaves that move, in tree order; shapes and types are enough.

    Raises:
        ValueError: ``noise`` is no ``Noise``.
    """
    if not isinstance(noise, Noise):
        raise ValueError(f"noise {type(noise).__name__}: a Noise is required, such as Noise('rademacher')")
    found: dict[str, Scale] = {}
    state = state_paths(params)
    for path, leaf in leaf_paths(params).items():
        rule = noise.rule_of(path)
        scale = rule.scale if rule else None if path in state else noise.scale
        if scale is not None and is_perturbable(leaf):
            found[path] = scale
    return found


def wide_dtype(dtype: Any) -> Any:
    """What a leaf's sum with its noise is computed in: float32, or the leaf's own type where that is wider."""
    return dtype if jnp.finfo(dtype).bits > 32 else jnp.float32


def mean_square(path: str, leaf: Any) -> jax.Array:
    """Mean of the squares of a leaf, float32 (), matrix by matrix: a leaf of which devices hold blocks is added up in the same order."""
    leaf = jnp.asarray(leaf)
    matrices = leaf.reshape(-1, *leaf.shape[-2:])
    return jax.lax.map(matrix_mean_square, matrices).mean()


def matrix_mean_square(matrix: jax.Array) -> jax.Array:
    """Mean of the squares of one matrix (or vector), float32 ()."""
    return jnp.mean(jnp.square(matrix.astype(jnp.float32)))


def scales(params: Params, noise: Noise, squares: Callable[[str, Any], jax.Array] = mean_square) -> dict[str, jax.Array]:
    """Path -> float32 factor of sigma, for every leaf that moves. Compute once, on the whole base, and hand to ``perturb`` where leaves
    are sharded.

    Args:
        params: the base; of leaves whose ``squares`` are known without them, shape and type are enough.
        noise: static.
        squares: (path, leaf) -> mean of its squares, for the scale "rms".

    Raises:
        InputError: no parameter moves; every candidate would be the base.
    """
    found, leaves = moving(params, noise), leaf_paths(params)
    if not found:
        fixed = sum(not is_perturbable(leaf) for leaf in leaves.values())
        raise InputError(
            f"`noise`: moves none of the {len(leaves)} parameters ({fixed} not floating-point, {len(leaves) - fixed} excluded): "
            "at least one must move; change the rules, or give real floating-point arrays"
        )
    modular = factors(leaves, noise.of_leaf) if "modular" in found.values() else {}
    scale: dict[Scale, Callable[[str], jax.Array]] = {
        "absolute": lambda path: jnp.float32(1),
        "rms": lambda path: jnp.sqrt(squares(path, leaves[path])),
        "modular": lambda path: jnp.float32(modular[path]),
    }
    return {path: scale[name](path) for path, name in found.items()}


@dataclass(frozen=True)
class Coverage:
    """What a noise setting does to a tree: ``moved`` of ``total`` elements, the rules that matched no leaf, and the leaves that stay
    because a Flax NNX state holds them besides its parameters."""

    moved: int
    total: int
    unused_rules: tuple[Rule, ...]
    state: tuple[str, ...] = ()

    @property
    def fraction(self) -> float:
        return self.moved / self.total if self.total else 0.0


def coverage(params: Params, noise: Noise) -> Coverage:
    """Reports which fraction of the parameters moves and which rules match nothing."""
    leaves = leaf_paths(params)
    sizes = {path: math.prod(jnp.shape(leaf)) for path, leaf in leaves.items()}
    found = moving(params, noise)
    unused = tuple(rule for rule in noise.rules if not any(map(rule.matches, leaves)))
    state = tuple(sorted(state_paths(params) - found.keys()))
    return Coverage(sum(sizes[path] for path in found), sum(sizes.values()), unused, state)


def check_noise(params: Params, noise: Noise) -> Coverage:
    """What a noise does to a base, whose shapes are enough.

    Raises:
        InputError: its rules exclude every parameter, or no matrix has so high a rank.
    """
    covered = coverage(params, noise)
    if not covered.moved:
        raise InputError("`rules`: they exclude every parameter, so no candidate would differ from the base; let some move")
    shapes = {path: jnp.shape(leaf) for path, leaf in leaf_paths(params).items()}
    ranks = [min(shape[-2:]) for path, shape in shapes.items() if noise.of_leaf(path, shape).rank is not None]
    if noise.rank is not None and noise.rank > (widest := max(ranks, default=1)):
        raise InputError(f"`rank` {noise.rank}: no matrix of the model has a rank above {widest}; lower it, or leave it out for full rank")
    return covered
