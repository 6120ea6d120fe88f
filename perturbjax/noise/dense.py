"""The dense oracle: which leaves move, by how much, and ``perturb(params, candidate, noise)``."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax.noise import values as spec
from perturbjax.noise.population import Candidate

Params = Any
"""A pytree of arrays."""
SCALES = ("absolute", "rms", "modular")


class Place(NamedTuple):
    """Which block of a leaf an array is, where it is not all of it: one device's of a leaf that is dealt to several.

    Attributes:
        shape: of the whole leaf; its noise is a function of it.
        coordinates: of the block in it, dim by dim.
    """

    shape: tuple[int, ...]
    coordinates: spec.Coordinates | None


Places = Mapping[str, Place]
"""Path -> place, of the leaves that are not whole."""


@dataclass(frozen=True)
class Rule:
    """What happens to the leaves whose path matches ``pattern`` (``re.search``): excluded, or given another scale than ``Noise.scale``."""

    pattern: str
    scale: str | None = None
    exclude: bool = False

    def __post_init__(self):
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"rule pattern {self.pattern!r}: not a regular expression ({error})") from None
        if self.scale is not None and self.scale not in SCALES:
            raise ValueError(f"rule scale {self.scale!r}: must be one of {', '.join(SCALES)}")
        if (self.scale is None) == (not self.exclude):
            raise ValueError(f"rule {self.pattern!r}: give either a scale or exclude=True")


@dataclass(frozen=True)
class Noise:
    """The distribution, structure and scale of a perturbation; frozen, hashable and static under jit.

    Attributes:
        distribution: "gaussian" (RandOpt, arXiv 2603.12228) or "rademacher" (random signs, one bit a weight).
        rank: None for full-rank noise, or r for E = A B^T / sqrt(r) on leaves with two or more dims (EGGROLL, arXiv 2511.16652).
        scale: factor of sigma per leaf.
            "absolute": 1, as in RandOpt.
            "rms": the root mean square of the leaf.
            "modular": sigma is the size of the step in the modular norm (Large et al., arXiv 2405.14813): a matrix (..., in, out) gets
            sqrt(out / in) / (sqrt(in) + sqrt(out)), because the spectral norm of full-rank noise is about sqrt(in) + sqrt(out) and a
            linear module's norm is sqrt(in / out) times the spectral norm; rank-r noise has spectral norm about sqrt(in * out / r), so
            that takes the sum's place.
            Embeddings (path holds "embed") and leaves of fewer than two dims get 1: their norm is the RMS of a row.
            The formula is ours after that paper; Modular-Norm RandOpt (arXiv 2609.25745) may weigh modules otherwise.
        rules: first match wins.
    """

    distribution: str = "gaussian"
    rank: int | None = None
    scale: str = "absolute"
    rules: tuple[Rule, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "rules", tuple(self.rules))
        if self.distribution not in spec.DISTRIBUTIONS:
            raise ValueError(f"distribution {self.distribution!r}: must be one of {', '.join(spec.DISTRIBUTIONS)}")
        if self.scale not in SCALES:
            raise ValueError(f"scale {self.scale!r}: must be one of {', '.join(SCALES)}")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank {self.rank}: must be at least 1, or None for full rank")

    def scale_of(self, path: str) -> str | None:
        """The scale of a leaf, or None where a rule excludes it."""
        rule = next((rule for rule in self.rules if re.search(rule.pattern, path)), None)
        if rule is None:
            return self.scale
        return None if rule.exclude else rule.scale


def leaf_paths(params: Params) -> dict[str, Any]:
    """Path -> leaf, in tree order; the path is what noise and rules know a leaf by.

    Raises:
        ValueError: two leaves share a path or the crc32 of one, and would share their noise.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    leaves, hashes = {}, {}
    for keypath, leaf in flat:
        path = jax.tree_util.keystr(keypath, simple=True, separator="/")
        other = hashes.setdefault(spec.leaf_hash(path), path)
        if path in leaves or other != path:
            raise ValueError(f"parameters {other!r} and {path!r} have one crc32, so they would get the same noise: rename one of them")
        leaves[path] = leaf
    return leaves


def is_perturbable(leaf: Any) -> bool:
    """Floating-point arrays move; integers, booleans and complex numbers never do."""
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.floating))


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
    """
    return {
        path: _scale(path, leaf, noise, name, squares)
        for path, leaf in leaf_paths(params).items()
        if (name := noise.scale_of(path)) and is_perturbable(leaf)
    }


def _scale(path: str, leaf: Any, noise: Noise, name: str, squares: Callable[[str, Any], jax.Array]) -> jax.Array:
    shape = jnp.shape(leaf)
    if name == "rms":
        return jnp.sqrt(squares(path, leaf))
    if name == "modular" and len(shape) >= 2 and "embed" not in path:
        fan_in, fan_out = shape[-2], shape[-1]
        spectral = math.sqrt(fan_in) + math.sqrt(fan_out) if noise.rank is None else math.sqrt(fan_in * fan_out / noise.rank)
        return jnp.float32(math.sqrt(fan_out / fan_in) / spectral)
    return jnp.float32(1)


def perturb(
    params: Params,
    candidate: Candidate,
    noise: Noise,
    leaf_scales: Mapping[str, jax.Array] | None = None,
    places: Places | None = None,
) -> Params:
    """theta = params + sigma * scale * E: one candidate's weights, dense. The oracle that every other path must equal.

    Each leaf is ``(p.astype(float32) + sigma * sign * scale(leaf) * E).astype(p.dtype)``, rounded once (DESIGN section 5; RandOpt, arXiv
    2603.12228).

    Args:
        params: pytree of arrays; never written.
        candidate: one candidate (no leading axis; vmap for several).
        noise: static.
        leaf_scales: ``scales(params, noise)`` if it is at hand.
        places: which block of the leaf some of the arrays are; a block gets exactly its part of the leaf's noise. Give the scales of the
            whole leaves with it.

    >>> import perturbjax as pj
    >>> params = {"w": jnp.zeros((2, 3)), "norm": jnp.ones(3), "steps": jnp.int32(7)}
    >>> noise = pj.Noise("rademacher", rules=(pj.Rule("norm", exclude=True),))
    >>> theta = perturb(params, pj.Population(seed=0, size=4, sigmas=(0.5,))[2], noise)
    >>> jnp.abs(theta["w"]).tolist(), theta["norm"].tolist(), int(theta["steps"])
    ([[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]], [1.0, 1.0, 1.0], 7)
    """
    leaf_scales = scales(params, noise) if leaf_scales is None else leaf_scales
    step = candidate.sigma * candidate.sign
    paths = iter(leaf_paths(params))

    def one(leaf):
        path = next(paths)
        if path not in leaf_scales:
            return leaf
        key = spec.fold_in(candidate.key_data, spec.leaf_hash(path))
        return perturb_leaf(leaf, key, step * leaf_scales[path], noise, (places or {}).get(path))

    return jax.tree.map(one, params)


def perturb_leaf(leaf: jax.Array, key_data: jax.Array, step: jax.Array, noise: Noise, place: Place | None = None) -> jax.Array:
    """One leaf, or its block at ``place``, plus ``step`` times its noise; ``key_data`` is the leaf's key, ``step`` = sigma * sign * scale,
    float32."""
    leaf = jnp.asarray(leaf)
    return perturb_block(leaf, key_data, step, noise, *(place or Place(leaf.shape, None)))


def perturb_block(
    block: jax.Array, key_data: jax.Array, step: jax.Array, noise: Noise, shape: tuple[int, ...], coordinates: spec.Coordinates | None
) -> jax.Array:
    """The part ``leaf[np.ix_(*coordinates)]`` of a perturbed leaf of ``shape``, made from that part of the base alone."""
    wide = block.astype(jnp.float32)
    if noise.rank is not None and len(shape) >= 2:
        moved = wide + step * spec.low_rank(key_data, shape, noise.rank, noise.distribution, coordinates)
    elif noise.distribution == "rademacher":
        # step * (+1 or -1) is exact, so flipping the sign bit of step gives the same sum as the product and saves a multiplication.
        signs = spec.rademacher_sign_bits(key_data, shape, coordinates)
        moved = wide + jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(step, jnp.uint32) ^ signs, jnp.float32)
    else:
        moved = wide + step * spec.gaussian(key_data, shape, coordinates)
    return moved.astype(block.dtype)


@dataclass(frozen=True)
class Coverage:
    """What a noise setting does to a tree: ``moved`` of ``total`` elements, and the rules that matched no leaf."""

    moved: int
    total: int
    unused_rules: tuple[Rule, ...]

    @property
    def share(self) -> float:
        return self.moved / self.total if self.total else 0.0


def coverage(params: Params, noise: Noise) -> Coverage:
    """Reports which share of the parameters moves and which rules match nothing."""
    leaves = leaf_paths(params)
    sizes = {path: math.prod(jnp.shape(leaf)) for path, leaf in leaves.items()}
    moved = sum(sizes[path] for path, leaf in leaves.items() if noise.scale_of(path) and is_perturbable(leaf))
    unused = tuple(rule for rule in noise.rules if not any(re.search(rule.pattern, path) for path in leaves))
    return Coverage(moved, sum(sizes.values()), unused)


def fingerprint(params: Params) -> str:
    """Identity of a base: "sha256:..." over sorted paths, shapes, dtypes and bytes."""
    digest = hashlib.sha256()
    for path, leaf in sorted(leaf_paths(params).items()):
        array = np.ascontiguousarray(np.asarray(leaf))
        digest.update(f"{path}\0{array.shape}\0{array.dtype.name}\0".encode())
        digest.update(array.view(np.uint8).data if array.size and array.ndim else array.tobytes())
    return f"sha256:{digest.hexdigest()}"
