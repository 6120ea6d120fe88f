"""Leaves of a pytree by path, and digests: what a parameter, a base and a run are known by."""

from __future__ import annotations

import hashlib
import json
import numbers
import sys
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Params = Any
"""A pytree of arrays."""


class Unmade:
    """Base of what stands in a tree for a parameter that is no array yet (``interpret.LazyArray``). Functions of parameters refuse it."""

    @staticmethod
    def refusal(path: str) -> str:
        return (
            f"parameter {path!r} is lazy, its noise has not been made: give the base parameters, pass theta as an argument to "
            "pj.lazily(fn), or materialize it by pj.lazily(lambda theta: theta)(theta)"
        )


def _is_unmade(leaf: Any) -> bool:
    return isinstance(leaf, Unmade)


def leaf_path(keypath: tuple[Any, ...]) -> str:
    """A leaf's path, its keys joined by "/": what noise and rules know it by."""
    return jax.tree_util.keystr(keypath, simple=True, separator="/")


def path_hash(path: str) -> int:
    """crc32 of a leaf's path: the number that is folded into the candidate's key for this leaf."""
    return zlib.crc32(path.encode())


def leaf_paths(params: Params) -> dict[str, Any]:
    """Path -> leaf, in tree order.

    Raises:
        ValueError: two leaves share a path or the crc32 of one, and would share their noise.
        TypeError: a leaf is lazy, or neither an array nor a number.
    """
    leaves: dict[str, Any] = {}
    hashes: dict[int, str] = {}
    for keypath, leaf in jax.tree_util.tree_flatten_with_path(params, _is_unmade)[0]:
        path = leaf_path(keypath)
        if _is_unmade(leaf):
            raise TypeError(Unmade.refusal(path))
        if not hasattr(leaf, "dtype") and not isinstance(leaf, numbers.Number):
            raise TypeError(
                f"parameter {path!r} is no array but of type {type(leaf).__name__}: give the arrays alone and close over the rest, e.g. "
                "params, rest = equinox.partition(model, equinox.is_array)"
            )
        other = hashes.setdefault(path_hash(path), path)
        if path in leaves or other != path:
            raise ValueError(f"parameters {other!r} and {path!r} have one crc32, so they would get the same noise: rename one of them")
        leaves[path] = leaf
    return leaves


def state_paths(params: Params) -> frozenset[str]:
    """Paths of what a Flax NNX state holds besides parameters: batch statistics, counts, keys. Empty for any other tree."""
    nnx = sys.modules.get("flax.nnx")  # who has such a state has imported it
    if nnx is None:
        return frozenset()
    found = []
    for keypath, node in jax.tree_util.tree_flatten_with_path(params, lambda node: isinstance(node, nnx.Variable))[0]:
        if isinstance(node, nnx.Variable) and not isinstance(node, nnx.Param):
            found += [leaf_path((*keypath, *inner)) for inner, _ in jax.tree_util.tree_flatten_with_path(node)[0]]
    return frozenset(found)


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """``{"a/b/c": leaf}`` -> nested dicts: the inverse of ``leaf_paths`` for such trees."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def map_with_paths(fn: Callable[[str, Any], Any], tree: Any) -> Any:
    """The tree of ``fn(path, leaf)``."""
    return jax.tree_util.tree_map_with_path(lambda keypath, leaf: fn(leaf_path(keypath), leaf), tree)


def fingerprint(params: Params) -> str:
    """Identity of a base: "sha256:..." over sorted paths, shapes, dtypes and bytes; of typed PRNG keys the key data."""
    hasher = hashlib.sha256()
    for path, leaf in sorted(leaf_paths(params).items()):
        typed = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.ascontiguousarray(np.asarray(jax.random.key_data(leaf) if typed else leaf))
        hasher.update(f"{path}\0{array.shape}\0{leaf.dtype if typed else array.dtype.name}\0".encode())
        hasher.update(array.view(np.uint8).data if array.size and array.ndim else array.tobytes())
    return f"sha256:{hasher.hexdigest()}"


def digest(content: Any) -> str:
    """``sha256:<hex>`` of a JSON value in canonical form."""
    return "sha256:" + hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def derived_seed(seed: int, label: str) -> int:
    """A seed in [0, 2**31) for one purpose, from a run's seed; equal on every platform."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{label}".encode()).digest()[:4], "big") >> 1
