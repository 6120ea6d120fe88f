"""Sizes of tiles on TPU: what fits VMEM, and divides the weight where it can."""

from dataclasses import dataclass

LANES = 128
VMEM_BYTES = 32 * 2**20
"""What the buffers of one step may take."""
VMEM_LIMIT_BYTES = 56 * 2**20
"""What the compiler may use, spills included. v5e and v6e have 128 MiB of VMEM, v5p and v7 have 64; older chips have too little."""


@dataclass(frozen=True)
class Tiles:
    """Tile sizes of one product, and how many candidates share a pass over the weight.

    Attributes:
        rows, inner, columns: of x, of the sum, and of the result: x tiles are (rows, inner), weight tiles (inner, columns).
        candidates: whose sums are kept at once. A weight tile is fetched once for all of them.
    """

    rows: int
    inner: int
    columns: int
    candidates: int


def choose(candidates: int, rows: int, inner: int, columns: int, itemsize: int) -> Tiles:
    """Tiles for x (candidates, rows, inner) and w (inner, columns) of ``itemsize`` bytes.

    Candidates are innermost over a weight tile, so sums of all of them are kept in VMEM, as many as fit: a weight tile is then read once
    per ``Tiles.candidates`` candidates.
    """
    tile_inner, tile_columns = _size(inner, 512), _size(columns, 512)
    # Rows share a tile's noise, so as many as fit; in equal blocks, as the last is worked through whole. 16 rows fill a bfloat16 register.
    blocks = -(-rows // (1024 if itemsize > 2 else 2048))
    tile_rows = rows if blocks == 1 else -(-rows // (16 * blocks)) * 16
    # Sums in float32 and two buffers of the result, against what x and w need twice.
    left = VMEM_BYTES - 2 * itemsize * tile_inner * (tile_rows + tile_columns) - (4 + itemsize) * tile_inner * tile_columns
    together = max(1, min(candidates, left // (tile_rows * tile_columns * (4 + 2 * itemsize))))
    passes = -(-candidates // together)
    return Tiles(tile_rows, tile_inner, tile_columns, -(-candidates // passes))


def _size(n: int, target: int) -> int:
    """A tile size for a dim of n: n itself, or a multiple of 128 that divides n, or else ``target`` with a ragged last tile."""
    if n <= target + LANES:
        return n
    divisors = [size for size in range(target, LANES, -LANES) if n % size == 0]
    return divisors[0] if divisors else target
