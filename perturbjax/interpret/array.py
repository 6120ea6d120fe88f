"""``LazyArray``: a parameter whose noise has not been made yet.

It holds a block of the base, the key and the step of the noise, and where in the leaf the block lies. Taking part of it narrows the block;
reshaping it is remembered and replayed after the noise is made. So one rule (``materialize``) makes every view of every part of a leaf.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax import _compat
from perturbjax.interpret.sealed import Sealed, seal
from perturbjax.interpret.views import View
from perturbjax.noise import Candidate
from perturbjax.noise.block import Block, Slice
from perturbjax.noise.dense import Blocks, perturb_block
from perturbjax.noise.low_rank import low_rank_factors, low_rank_product
from perturbjax.noise.population import check_candidate
from perturbjax.noise.spec import Noise, scales, wide_dtype
from perturbjax.noise.values import leaf_keys
from perturbjax.tree import Params, leaf_paths, map_with_paths


@dataclass(frozen=True)
class Leaf:
    """What is static about a perturbed parameter: its path, the kind of noise, and whether dots may keep the base as it is and apply
    the factors of low-rank noise beside it."""

    path: str
    noise: Noise
    factored: bool


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("base", "key", "step", "block", "factors", "stack"),
    meta_fields=("leaf", "views"),
)
@dataclass(frozen=True)
class LazyArray(Sealed):
    """A view of a block of a perturbed leaf; a pytree, so that jit, vmap and scan take it as an argument.

    Only ``lazily`` computes with it: anything else raises ``TypeError`` (``sealed``). A ``jax.tree.map`` that computes with floats alone
    and passes the key on gives another parameter than it seems to.

    Attributes:
        base: the block of the unperturbed leaf, its dims in the leaf's order.
        key: the leaf's key, sealed.
        step: sigma * sign * scale, float32 scalar.
        block: which block of the leaf ``base`` is.
        factors: the block's low-rank noise as A (..., R, r) and B (..., C, r); None for noise of full rank.
        stack: where ``base`` is one matrix of several: all of them, and which it is, counted over the leading dims. A kernel reads it there
            instead of having it copied out.
        leaf: path, noise, and how dots use the factors.
        views: reshapes, transposes, casts and the like, in order, between the perturbed block and the value this stands for.
    """

    base: jax.Array
    key: jax.Array
    step: jax.Array
    block: Block
    factors: tuple[jax.Array, jax.Array] | None
    stack: tuple[jax.Array, int | jax.Array] | None
    leaf: Leaf
    views: tuple[View, ...] = ()

    @property
    def path(self) -> str:
        return self.leaf.path

    @property
    def key_data(self) -> jax.Array:
        """The leaf's key, uint32[2]."""
        return jax.random.key_data(self.key)

    @property
    def aval(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the value this stands for."""
        return jax.eval_shape(self._viewed, jax.ShapeDtypeStruct(self.base.shape, self.base.dtype))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.aval.shape

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.aval.dtype)

    @property
    def is_vector(self) -> bool:
        """Whether at most one dim of the block is longer than 1: perturbing all of it costs no more than using it."""
        return sum(n > 1 for n in self.base.shape) <= 1

    def _viewed(self, block: jax.Array) -> jax.Array:
        for view in self.views:
            block = view(block)
        return block

    def unperturbed(self) -> jax.Array:
        """The same view of the base."""
        return self._viewed(self.base)

    def unconstrained(self) -> LazyArray:
        """The same values without the sharding constraints on them."""
        return replace(self, views=tuple(view for view in self.views if view.primitive.name != "sharding_constraint"))

    def viewed(self, view: View) -> LazyArray:
        """This, with one more view on top."""
        return replace(self, views=(*self.views, view))

    def materialize(self) -> jax.Array:
        """Makes the noise and returns the perturbed values: ``view(round(block + step * E))``, rounded once, before any cast."""
        with jax.named_scope("noise"):
            if self.factors is None:
                perturbed = perturb_block(self.base, self.key_data, self.step, self.leaf.noise, self.block)
            else:
                wide = self.base.astype(wide_dtype(self.base.dtype))
                moved = wide + (self.step * low_rank_product(*self.factors)).astype(wide.dtype)
                perturbed = moved.astype(self.base.dtype)
        # A vector multiplies rows of activations: fused into that, its noise would be made again for every row.
        return self._viewed(jax.lax.optimization_barrier(perturbed) if self.is_vector else perturbed)

    def _views_and_operand_shapes(self) -> list[tuple[View, tuple[int, ...]]]:
        """Each view with the shape of its operand, last view first."""
        shape, pairs = self.base.shape, []
        for view in self.views:
            pairs.insert(0, (view, shape))
            shape = view.shape_of(shape, self.base.dtype)
        return pairs

    def source_dims(self) -> tuple[int, ...] | None:
        """For each dim of the view the dim of the leaf that it is; None if some dim is none of them."""
        dims: list[int] = []
        for dim in range(len(self.shape)):
            for view, shape in self._views_and_operand_shapes():
                if (found := view.source(dim, shape)) is None:
                    return None
                dim = found
            dims.append(dim)
        return tuple(dims)

    def take(self, dim: int, part: Slice | jax.Array) -> LazyArray | None:
        """The slice, or the listed positions, ``part`` of view dim ``dim``; None where the views do not keep that dim.

        Positions must lie inside the dim.
        """
        size = part.size if isinstance(part, Slice) else part.shape[0]
        views: list[View] = []
        for view, shape in self._views_and_operand_shapes():
            if (found := view.source(dim, shape)) is None:
                return None
            views.insert(0, view.resized(dim, size, shape))
            dim = found
        factors = None if self.factors is None else _take_of_factors(self.factors, dim, part)
        base, stack = _take(self.base, dim, part), self._stack_of(dim, part)
        return replace(self, base=base, block=self.block.take(dim, part), factors=factors, stack=stack, views=tuple(views))

    def _stack_of(self, dim: int, part: Slice | jax.Array) -> tuple[jax.Array, int | jax.Array] | None:
        if dim >= self.base.ndim - 2 or not isinstance(part, Slice) or part.size > 1:
            return None
        whole, index = self.stack or (self.base, 0)
        return whole, index + part.start * math.prod(whole.shape[dim + 1 : -2])


def _take(x: jax.Array, dim: int, part: Slice | jax.Array) -> jax.Array:
    if isinstance(part, Slice):
        return jax.lax.dynamic_slice_in_dim(x, part.start, part.size, dim)
    return jnp.take(x, part, axis=dim, mode="clip")


def _take_of_factors(factors: tuple[jax.Array, jax.Array], dim: int, part: Slice | jax.Array) -> tuple[jax.Array, jax.Array]:
    """The factors of that part of the block: rows belong to the first, columns to the second, leading dims to both."""
    a, b = factors
    rows = a.ndim - 2
    a = _take(a, dim, part) if dim <= rows else a
    b = _take(b, min(dim, rows), part) if dim != rows else b
    return a, b


SMALL = 1024
"""A leaf with less than this fraction of the moving elements is perturbed at once. Vectors of norms and biases are: made where they are
used, inside a loop over layers, XLA would repeat their noise for every row of the activations that they multiply."""


def lazy(
    params: Params,
    candidate: Candidate,
    noise: Noise,
    leaf_scales: Mapping[str, jax.Array] | None = None,
    *,
    factored: bool = False,
    blocks: Blocks | None = None,
) -> Params:
    """The candidate's parameters with their noise yet to be made: what ``lazily(fn)`` takes in place of ``perturb(...)``.

    Args:
        params: the base, a pytree of arrays; never written.
        candidate: one candidate (vmap for several).
        noise: static.
        leaf_scales: ``scales(params, noise)`` if it is at hand.
        factored: with low-rank noise, let dots use the factors: x (W + s A B^T) becomes x W + s (x A) B^T, so that candidates under vmap
            share one product with W (EGGROLL, arXiv 2511.16652). Only float32 leaves, and only where nothing rounds the perturbed weight
            before the product (``dot``): elsewhere, and without low-rank noise, this changes nothing.
        blocks: which block of the leaf some of the arrays are (``perturb``); give the scales of the whole leaves with it.

    Returns:
        The same tree: a ``LazyArray`` for every leaf that moves, the perturbed leaf where it is less than 1/1024 of what moves, and the
        leaf itself where it does not move (integers, excluded by a rule, statistics of an NNX state).

    >>> import perturbjax as pj
    >>> theta = lazy({"w": jnp.ones((2, 3)), "steps": jnp.int32(4)}, pj.Population(seed=0, size=4)[1], pj.Noise())
    >>> theta["w"].shape, theta["steps"]
    ((2, 3), Array(4, dtype=int32))
    """
    check_candidate(candidate)
    leaf_scales = scales(params, noise) if leaf_scales is None else leaf_scales
    step, keys = candidate.sigma * candidate.sign, leaf_keys(candidate.key_data, leaf_scales)
    leaves = leaf_paths(params)
    at = {path: (blocks or {}).get(path, Block(jnp.shape(leaf))) for path, leaf in leaves.items()}
    # Of whole leaves, so that no device decides otherwise than another.
    moving = sum(math.prod(at[path].global_shape) for path in leaf_scales)

    def one(path: str, leaf: Any) -> Any:
        if path not in leaf_scales:
            return leaf
        block = at[path]
        leaf_noise = noise.of_leaf(path, block.global_shape)
        # Never weakly typed: what perturb returns is not, and types must promote alike.
        base, leaf_step = jnp.asarray(leaf, jnp.result_type(leaf)), step * leaf_scales[path]
        key = keys[path]
        # Inside shard_map over candidates: the function is traced with the base in the parameter's place, so it must vary as that does.
        base = _compat.varying_like(base, leaf_step)
        if math.prod(block.global_shape) * SMALL < moving:
            with jax.named_scope("noise"):
                return perturb_block(base, key, leaf_step, leaf_noise, block)
        factors = None
        if leaf_noise.rank is not None:
            # Made now, r (R + C) numbers: at the point of use XLA would fuse them into their product and draw each anew for every element.
            with jax.named_scope("noise"):
                factors = low_rank_factors(key, block, leaf_noise.rank, leaf_noise.distribution)
        return LazyArray(base, seal(key), leaf_step, block, factors, None, Leaf(path, leaf_noise, factored and base.dtype == jnp.float32))

    return map_with_paths(one, params)
