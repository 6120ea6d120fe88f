"""The perturbed product on TPU: one Pallas kernel, lowered by Mosaic.

A grid step takes one tile of the weight and one candidate, makes that tile's noise in registers, rounds the perturbed tile once, and
multiplies. Terms: a *tile* is a block of the weight, a *pass* the candidates whose sums are kept at once.

Grid, slowest first: columns of the result, passes, row blocks of x, the sum over the inner dim, the candidates of a pass. With candidates
innermost the weight's block does not change between their steps, so it is fetched once for all of them; their sums stay in VMEM until the
inner dim is through. x is fetched once per column of tiles.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from . import tile_noise
from .platforms import result_like
from .problem import Problem
from .tile_noise import Start
from .tiling import VMEM_LIMIT_BYTES, Tiles, choose

FEW_ROWS = 128
"""Up to as many rows of x, noise of one word a weight is made and kept in parts of ``PART_ROWS`` rows of the tile."""
PART_ROWS = 32


def matmul(
    problem: Problem,
    x: jax.Array,
    w: jax.Array,
    index: jax.Array,
    offsets: jax.Array,
    keys: jax.Array,
    steps: jax.Array,
    *factors: jax.Array,
    tiles: Tiles | None = None,
    interpret: bool = False,
) -> jax.Array:
    """y_c = x_c (W + step_c E_c), as ``reference.matmul``.

    Args:
        problem, x, w, index, offsets, keys, steps, factors: as there.
        tiles: sizes; None chooses them. ``inner`` and ``columns`` are multiples of 128 or the whole dim.
        interpret: run the kernel's operations on the platform at hand, for tests.
    """
    candidates, (inner, columns) = steps.shape[0], w.shape[:0:-1] if problem.transposed else w.shape[1:]
    tiles = choose(candidates, x.shape[1], inner, columns, w.dtype.itemsize) if tiles is None else tiles
    tile = (tiles.columns, tiles.inner) if problem.transposed else (tiles.inner, tiles.columns)
    grid = (
        pl.cdiv(columns, tiles.columns),
        pl.cdiv(candidates, tiles.candidates),
        pl.cdiv(x.shape[1], tiles.rows),
        pl.cdiv(inner, tiles.inner),
        tiles.candidates,
    )
    shift = offsets[1:2] % jnp.uint32(problem.rows_per_word)
    starts = problem.word_starts(offsets, tile[0], pl.cdiv(w.shape[1], tile[0]))
    scalars = (index[None], *(_as_int32(v) for v in (keys, starts, shift)), steps)
    call = pl.pallas_call(
        partial(_kernel, problem, tiles, inner, candidates, interpret),
        out_shape=result_like(x, (candidates, x.shape[1], columns), problem.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=grid,
            in_specs=[
                pl.BlockSpec((1, tiles.rows, tiles.inner), _x_index(x.shape[0] == 1, tiles, candidates)),
                pl.BlockSpec((None, *tile), lambda n, p, m, k, c, index, *_: (index[0], *((n, k) if problem.transposed else (k, n)))),
                *_factor_specs(problem, tile, partial(_candidate, tiles, candidates)),
            ],
            out_specs=pl.BlockSpec((tiles.candidates, tiles.rows, tiles.columns), lambda n, p, m, k, c, *_: (p, m, n)),
            scratch_shapes=[pltpu.VMEM((tiles.candidates, tiles.rows, tiles.columns), jnp.float32), pltpu.VMEM(tile, w.dtype)],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT_BYTES
        ),
        interpret=interpret,
        name="perturbed_matmul",
    )
    if not interpret:
        # Otherwise XLA may bring all of a stack into VMEM beforehand, in every step of a loop that uses one matrix of it.
        w = pltpu.with_memory_space_constraint(w, pltpu.HBM)
    # Lanes hold weights, not ranks.
    return call(*scalars, x, w, *(factor.swapaxes(1, 2) for factor in factors))


def _as_int32(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, jnp.int32)


def _candidate(tiles: Tiles, candidates: int, p: Any, c: Any) -> Any:
    """Which candidate a step of a pass works on. A last pass that is not full repeats the last candidate; its results are dropped."""
    return jnp.minimum(p * tiles.candidates + c, candidates - 1)


def _x_index(shared: bool, tiles: Tiles, candidates: int) -> Any:
    return lambda n, p, m, k, c, *_: (0 if shared else _candidate(tiles, candidates, p, c), m, k)


def _factor_specs(problem: Problem, tile: tuple[int, int], candidate: Any) -> list[pl.BlockSpec]:
    """How low-rank factors, both with the rank second to last, are cut."""
    if problem.rank is None:
        return []
    row, column = (1, 0) if problem.transposed else (0, 1)

    def along(which: int) -> Any:
        return lambda n, p, m, k, c, *_: (candidate(p, c), 0, (k, n)[which])

    return [pl.BlockSpec((1, problem.rank, tile[d]), along(which)) for d, which in ((0, row), (1, column))]


def _kernel(problem: Problem, tiles: Tiles, inner: int, candidates: int, interpret: bool, _: Any, keys: Any, starts: Any, shift: Any,
            steps: Any, x: Any, w: Any, *rest: Any) -> None:  # fmt: skip
    *factors, out, sums, whole = rest
    n, p, k, c = (pl.program_id(d) for d in (0, 1, 3, 4))
    i = _candidate(tiles, candidates, p, c)

    row, column = (n, k) if problem.transposed else (k, n)
    key = (keys[i, 0].astype(jnp.uint32), keys[i, 1].astype(jnp.uint32))
    start = Start(key, starts[0, row].astype(jnp.uint32), starts[1, row].astype(jnp.uint32)).moved(column * w.shape[1])
    dense = problem.distribution is not None and problem.rank is None
    if dense and problem.rows_per_word == 1 and tiles.rows <= FEW_ROWS:
        # Made at once, as the scheduler would without much else to do, the noise of a tile overflows the registers.
        for r in range(0, w.shape[0], PART_ROWS):
            here = start.moved(r * problem.leaf[2])
            whole[r : r + PART_ROWS] = _perturbed(problem, w[r : r + PART_ROWS], here, shift[0], steps[i], [], interpret)
        tile = whole[...]
    else:
        tile = _perturbed(problem, w[...], start, shift[0], steps[i], [f[0] for f in factors], interpret)
    rows = x[0]
    if inner % tiles.inner:
        # What a ragged last tile reads beyond the weight is anything, not-a-number included.
        left = inner - k * tiles.inner
        rows = _cut(rows, 1, left)
        tile = _cut(tile, 1 if problem.transposed else 0, left)
    # A first sum is chosen, not stored beforehand: arithmetic slots are free while the matrix units work, the one store slot is not.
    before = jnp.where(k == 0, jnp.zeros(sums.shape[1:], sums.dtype), sums[c])
    sums[c] = before + problem.dot(rows, tile)

    @pl.when(k == pl.num_programs(3) - 1)
    def _finish() -> None:
        out[c] = sums[c].astype(out.dtype)


def _cut(x: jax.Array, dim: int, size: jax.Array) -> jax.Array:
    """Zero from ``size`` on."""
    # In float32: Mosaic has no mask for fewer than 8 rows of bfloat16.
    inside = jax.lax.broadcasted_iota(jnp.int32, x.shape, dim) < size
    return jnp.where(inside, x.astype(jnp.float32), np.float32(0)).astype(x.dtype)


def _perturbed(
    problem: Problem, w: jax.Array, start: Start, shift: jax.Array, step: jax.Array, factors: list[jax.Array], interpret: bool
) -> jax.Array:
    """round(w + step * E) of one tile."""
    if problem.distribution is None:
        return w
    if problem.rank is not None:
        a, b = factors[0].T, factors[1]
        noise = step * tile_noise.low_rank(*(list(jnp.split(f, problem.rank, d)) for d, f in ((1, a), (0, b))))
    else:
        noise = tile_noise.dense(problem, w, start, shift.astype(jnp.uint32), step, power_of_two=False, exact=interpret)
    return (w.astype(jnp.float32) + noise).astype(w.dtype)
