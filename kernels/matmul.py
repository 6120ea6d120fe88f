"""``perturbed_matmul``: a product with a perturbed weight that exists one tile at a time."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from perturbjax.noise.distributions import DISTRIBUTIONS
from perturbjax.noise.values import matrix_view

from . import gpu, reference, tpu
from .platforms import varying_alike
from .problem import Problem

LOWERINGS = ("tpu", "gpu", "reference")


def perturbed_matmul(
    x: jax.Array,
    w: jax.Array,
    key_data: jax.Array,
    step: jax.Array,
    *,
    shape: Sequence[int],
    distribution: str = "gaussian",
    rank: int | None = None,
    factors: tuple[jax.Array, jax.Array] | None = None,
    index: int | jax.Array = 0,
    offsets: tuple[int | jax.Array, int | jax.Array, int | jax.Array] = (0, 0, 0),
    transposed: bool = False,
    precision: Any = None,
    preferred_element_type: Any = None,
    lowering: str | None = None,
    interpret: bool = False,
) -> jax.Array:
    """x (W + step E), or x (W + step E)^T: the noise E and the perturbed weight exist tile by tile only, never in memory.

    The perturbed tile is rounded once to the weight's dtype, as the noise specification says; sums are in float32. E is the block of the
    leaf's noise that W is of the leaf, so a slice of stacked layers and a shard of a split matrix give the products of the whole.
    Under ``vmap`` over candidates W is read once for as many of them as fit, not once for each.

    Args:
        x: (M, K), or (C, M, K) for C candidates; bfloat16 or float32. With C candidates (1, M, K) is the same x for all of them.
        w: (K, N), or (N, K) if ``transposed``; the dtype of x. Or a stack of them, (S, K, N), of which ``index``, which may be traced,
            picks one: a matrix that is sliced off before would be copied.
        key_data, step: the leaf's key, uint32 (2,), or (C, 2); sigma * sign * scale, float32 (), or (C,).
        shape: of the whole leaf, two dims or more; w is a block of its last two.
        distribution: a name in ``noise.DISTRIBUTIONS``.
        rank: of low-rank noise; None for dense noise.
        factors: of the block, A (rows of w, rank) and B (columns of w, rank), float32, or with a leading C; made beforehand when None.
        offsets: where w, or the matrix of the stack, begins in the leaf: the flat index of the leading dims, the first row, the first
            column. May be traced. A first row that is a Python integer and a multiple of 32 makes rademacher noise cheaper.
        transposed: multiply by the transpose, as a tied head does.
        precision, preferred_element_type: as for ``jax.lax.dot``; the result has the dtype of x by default.
        lowering, interpret: "tpu" (Mosaic), "gpu" (Triton), "reference" (jnp), None: by platform; for tests, interpret the one named.

    Returns:
        (M, N), or (C, M, N).

    Raises:
        ValueError: for shapes, dtypes or options that do not fit together.
    """
    w = w[None] if w.ndim == 2 else w
    _check(x, w, key_data, step, shape, distribution, rank, lowering, interpret)
    aligned = isinstance(offsets[1], int) and offsets[1] % DISTRIBUTIONS[distribution].rows_per_word == 0
    dtype = jnp.dtype(preferred_element_type or x.dtype)
    problem = Problem(distribution, matrix_view(shape), rank, transposed, aligned, precision, dtype)
    _check_block(x, w, problem, offsets)
    _check_factors(w, rank, factors, step.shape)
    where = jnp.stack([jnp.asarray(o).astype(jnp.uint32) for o in offsets])
    product = _batched(partial(_lowered, problem, lowering, interpret))
    own = (key_data, step, *(factors or ()))
    if single := step.ndim == 0:
        x, *own = (operand[None] for operand in (x, *own))
    if rank is not None and factors is None:
        own = (*own, *problem.factors(own[0], where, w.shape[1:]))
    y = product(*varying_alike((x, w, jnp.asarray(index, jnp.int32), where, *own)))
    return y[0] if single else y


def _check(x: Any, w: Any, key_data: Any, step: Any, shape: Sequence[int], distribution: str, rank: int | None, lowering: str | None,
           interpret: bool) -> None:  # fmt: skip
    candidates = step.shape
    if len(candidates) > 1 or step.dtype != jnp.float32:
        raise ValueError(f"step {step.dtype}{step.shape}: must be float32 () for one candidate or (C,) for C; cast it, or use vmap")
    if key_data.shape != (*candidates, 2) or key_data.dtype != jnp.uint32:
        raise ValueError(f"key_data {key_data.dtype}{key_data.shape}: must be uint32 {(*candidates, 2)}, as step is {step.shape}")
    if x.ndim != 2 + len(candidates) or (candidates and x.shape[0] not in (1, candidates[0])):
        raise ValueError(f"x of shape {x.shape}: must be (M, K) for one candidate, (C, M, K) or (1, M, K) for C; step is {step.shape}")
    if w.dtype not in (jnp.bfloat16, jnp.float32) or x.dtype != w.dtype:
        raise ValueError(f"x {x.dtype} and w {w.dtype}: must both be bfloat16 or both float32; cast one of them")
    if w.ndim != 3 or len(shape) < 2:
        raise ValueError(
            f"w of shape {w.shape} in a leaf of shape {tuple(shape)}: must be blocks of the last two dims of a leaf of two or more"
        )
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"distribution {distribution!r}: must be one of {', '.join(DISTRIBUTIONS)}")
    if rank is not None and rank < 1:
        raise ValueError(f"rank {rank}: must be 1 or more, or None for dense noise")
    if lowering is not None and lowering not in LOWERINGS:
        raise ValueError(f"lowering {lowering!r}: must be one of {', '.join(LOWERINGS)}, or None to go by the platform")
    if interpret and lowering not in ("tpu", "gpu"):
        raise ValueError(f"interpret with lowering {lowering!r}: name the kernel to interpret, 'tpu' or 'gpu'")


def _check_block(x: jax.Array, w: jax.Array, problem: Problem, offsets: Sequence[int | jax.Array]) -> None:
    inner = w.shape[2 if problem.transposed else 1]
    if x.shape[-1] != inner:
        raise ValueError(f"x of shape {x.shape} and w of shape {w.shape}: x must end in {inner}; check transposed={problem.transposed}")
    for name, size, limit, first in zip(("rows", "columns"), w.shape[1:], problem.leaf[1:], offsets[1:], strict=True):
        if size + (first if isinstance(first, int) else 0) > limit:
            raise ValueError(f"w has {size} {name} from {first} on: the leaf has {limit}; check shape and offsets")


def _check_factors(w: jax.Array, rank: int | None, factors: tuple[jax.Array, jax.Array] | None, candidates: tuple[int, ...]) -> None:
    if factors is None:
        return
    got, needed = tuple(f.shape for f in factors), tuple((*candidates, n, rank) for n in w.shape[1:])
    if got != needed:
        raise ValueError(f"factors of shapes {got}: must be {needed} for rank {rank} and w of shape {w.shape}")


def _lowered(problem: Problem, lowering: str | None, interpret: bool, *operands: jax.Array) -> jax.Array:
    """The candidate form on the platform that is compiled for."""
    of = {
        "tpu": partial(tpu.matmul, problem, interpret=interpret),
        "gpu": partial(gpu.matmul, problem, interpret=interpret),
        "reference": partial(reference.matmul, problem),
    }
    if lowering is not None:
        return of[lowering](*operands)
    return jax.lax.platform_dependent(*operands, tpu=of["tpu"], cuda=of["gpu"], default=of["reference"])


def _batched(product: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The product with a rule for ``vmap``: more candidates, or more rows, of one call; a loop where the weight itself is batched."""

    @custom_vmap
    def call(x: jax.Array, w: jax.Array, index: jax.Array, offsets: jax.Array, *own: jax.Array) -> jax.Array:
        return product(x, w, index, offsets, *own)

    @call.def_vmap
    def rule(size: int, batched: list[bool], *operands: jax.Array) -> tuple[jax.Array, bool]:
        x, *weight, keys, steps = operands[:6]
        own = (keys, steps, *operands[6:])
        candidates = steps.shape[-1]
        if any(batched[1:4]):
            return _looped(call, batched, operands), True
        if not any(batched[4:]):
            rows = jnp.moveaxis(x, 0, 1).reshape(x.shape[1], size * x.shape[2], x.shape[3])
            y = call(rows, *weight, *own).reshape(candidates, size, x.shape[2], -1)
            return jnp.moveaxis(y, 1, 0), True
        several = (v if b else jnp.broadcast_to(v, (size, *v.shape)) for v, b in zip(own, batched[4:], strict=True))
        if batched[0] or x.shape[0] > 1:
            x = x if batched[0] else x[None]
            x = jnp.broadcast_to(x, (size, candidates, *x.shape[2:])).reshape(size * candidates, *x.shape[2:])
        y = call(x, *weight, *(v.reshape(size * candidates, *v.shape[2:]) for v in several))
        return y.reshape(size, candidates, *y.shape[1:]), True

    return call


def _looped(call: Callable[..., jax.Array], batched: list[bool], operands: Sequence[jax.Array]) -> jax.Array:
    """One after the other over the batched operands."""

    def one(parts: list[jax.Array]) -> jax.Array:
        rest = iter(parts)
        return call(*(next(rest) if b else v for v, b in zip(operands, batched, strict=True)))

    return jax.lax.map(one, [v for v, b in zip(operands, batched, strict=True) if b])
