"""The perturbed product on NVIDIA GPUs: one Pallas kernel, lowered by Triton.

A program makes one tile of the result for one candidate: it walks along the sum, makes the noise of each weight tile in registers, rounds
the perturbed tile once, and multiplies. Candidates are the fastest dim of the grid, so those that share a weight tile run side by side and
find it in L2. A tile's noise is made again for every block of rows of x: the more rows a block has, the cheaper.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from . import tile_noise
from .platforms import result_like
from .problem import Problem
from .tile_noise import Start


class Launch(NamedTuple):
    """Tile of the result (rows, columns) and of the sum (inner), powers of two as Triton wants them; a program's warps and stages."""

    rows: int
    inner: int
    columns: int
    warps: int
    stages: int


def launch_for(rows: int, rank: int | None, rows_per_word: int) -> Launch:
    """What a product with ``rows`` rows of x a candidate is launched with; measured on an H100 (NOTES.md)."""
    # Tensor cores take no fewer than 16 rows; 32 along the sum is one word of rademacher noise.
    rows = max(16, pl.next_power_of_2(rows))
    if rank is None and rows_per_word > 1 and rows <= 128:
        return Launch(rows, 32, 128, 4, 3)
    return Launch(min(rows, 256), 64, 128, 8, 3)


class Sizes(NamedTuple):
    """Tile of the result (rows, columns) and of the sum (inner), and the extents of the operands."""

    rows: int
    inner: int
    columns: int
    row_count: int
    inner_count: int
    column_count: int


def matmul(problem: Problem, x: jax.Array, w: jax.Array, index: jax.Array, offsets: jax.Array, keys: jax.Array, steps: jax.Array,
           *factors: jax.Array, interpret: bool = False, launch: Launch | None = None) -> jax.Array:  # fmt: skip
    """y_c = x_c (W + step_c E_c), as ``reference.matmul``; ``interpret`` runs the kernel on the platform at hand, for tests."""
    candidates, rows = steps.shape[0], x.shape[1]
    inner, columns = w.shape[:0:-1] if problem.transposed else w.shape[1:]
    launch = launch or launch_for(rows, problem.rank, problem.rows_per_word)
    sizes = Sizes(*launch[:3], rows, inner, columns)
    tile_rows = sizes.columns if problem.transposed else sizes.inner
    operands = [
        index[None],
        keys,
        problem.word_starts(offsets, tile_rows, pl.cdiv(w.shape[1], tile_rows)),
        offsets[1:2] % jnp.uint32(problem.rows_per_word),
        steps,
        x,
        w,
        *(factor.swapaxes(1, 2) for factor in factors),
    ]
    call = pl.pallas_call(
        partial(_kernel, problem, sizes, x.shape[0] == 1, interpret),
        out_shape=result_like(x, (candidates, rows, columns), problem.dtype),
        grid=(candidates, pl.cdiv(rows, sizes.rows), pl.cdiv(columns, sizes.columns)),
        compiler_params=plgpu.CompilerParams(num_warps=launch.warps, num_stages=launch.stages),
        interpret=interpret,
        name="perturbed_matmul",
    )
    return call(*operands)


def _kernel(problem: Problem, sizes: Sizes, shared_x: bool, interpret: bool, index: Any, keys: Any, starts: Any, shift: Any, steps: Any,
            x: Any, w: Any, *rest: Any) -> None:  # fmt: skip
    *factors, out = rest
    c, m, n = (pl.program_id(d) for d in range(3))
    rows, in_rows = _span(m, sizes.rows, sizes.row_count)
    columns, in_columns = _span(n, sizes.columns, sizes.column_count)
    which, key, step = index[0], (keys[c, 0], keys[c, 1]), steps[c]

    def add(k: jax.Array, total: jax.Array) -> jax.Array:
        inner, in_inner = _span(k, sizes.inner, sizes.inner_count)
        # Masked with zeros along the sum, x and w alike: what lies beyond may be not a number.
        x_tile = plgpu.load(x.at[np.int32(0) if shared_x else c, rows, inner], mask=in_rows[:, None] & in_inner[None], other=0)
        spans = ((columns, in_columns), (inner, in_inner)) if problem.transposed else ((inner, in_inner), (columns, in_columns))
        (first, in_first), (second, in_second) = spans
        mask = in_first[:, None] & in_second[None]
        tile = plgpu.load(w.at[which, first, second], mask=mask, other=0)
        row, column = (n, k * sizes.inner) if problem.transposed else (k, n * sizes.columns)
        start = Start(key, starts[0, row], starts[1, row]).moved(column)
        ranks = [[plgpu.load(f.at[c, np.int32(q), s], mask=i, other=0) for q in range(problem.rank or 0)]
                 for f, (s, i) in zip(factors, spans, strict=False)]  # fmt: skip
        tile = _perturbed(problem, tile, start, shift[0], step, ranks, interpret)
        tile = jnp.where(mask, tile, jnp.zeros_like(tile))
        # x w^T as (w x^T)^T: Triton turns the x that was loaded quickly, and the weight that was computed only after minutes of compiling.
        return total + (problem.dot(tile, x_tile) if problem.transposed else problem.dot(x_tile, tile))

    result = (sizes.columns, sizes.rows) if problem.transposed else (sizes.rows, sizes.columns)
    total = jax.lax.fori_loop(0, pl.cdiv(sizes.inner_count, sizes.inner), add, jnp.zeros(result, jnp.float32))
    total = total.T if problem.transposed else total
    plgpu.store(out.at[c, rows, columns], total.astype(out.dtype), mask=in_rows[:, None] & in_columns[None])


def _span(i: jax.Array, size: int, limit: int) -> tuple[Any, jax.Array]:
    """The i-th span of a dim, and which of its places exist."""
    return pl.ds(i * size, size), i * size + jnp.arange(size) < limit


def _perturbed(
    problem: Problem, w: jax.Array, start: Start, shift: jax.Array, step: jax.Array, ranks: list[list[jax.Array]], interpret: bool
) -> jax.Array:
    """round(w + step * E) of one tile."""
    if problem.rank is not None:
        noise = step * tile_noise.low_rank([a[:, None] for a in ranks[0]], [b[None] for b in ranks[1]])
    else:
        noise = tile_noise.dense(problem, w, start, shift, step, power_of_two=True, exact=interpret)
    return (w.astype(jnp.float32) + noise).astype(w.dtype)
