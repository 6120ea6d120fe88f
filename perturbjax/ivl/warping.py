"""Dynamic time warping of two tokenizations of one text.

Cost of a pair: 0 for equal tokens, 0.1 if one holds the other, else their edit distance (IVL, arXiv 2410.21027), here in bytes. A path goes
from the first pair to the last by steps of one token in either or both sequences; the cheapest is taken, ties to the step in both.

Both sequences spell one text, so tokens far apart in it are no partners: only pairs within ``BAND`` bytes of each other are looked at, and
time and memory grow with the text, not with its square.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from perturbjax.ivl.tokens import TokenTable

BAND = 16
"""Bytes between two tokens up to which they can be aligned."""

_CELLS = 500_000  # pairs whose costs are computed together: enough to keep numpy busy
_TABLE = 4_000_000  # entries of the edit-distance tables in memory at once


def count_pairs(
    rows: TokenTable, columns: TokenTable, texts: Iterable[tuple[Sequence[int], Sequence[int]]]
) -> tuple[np.ndarray, np.ndarray]:
    """How often each pair of tokens is aligned.

    Args:
        rows: the vocabulary of the first sequences.
        columns: the vocabulary of the second ones.
        texts: both tokenizations of each text.

    Returns:
        (int64 (P, 2) distinct pairs (row, column) in ascending order, float64 (P,) counts).
    """
    found: list[np.ndarray] = [np.zeros(0, np.int64)]
    for batch in _batches(_Band(rows, columns, first, second) for first, second in texts if len(first) and len(second)):
        codes, inverse = np.unique(np.concatenate([band.codes for band in batch]), return_inverse=True)
        firsts = [rows.texts[code] or b"" for code in (codes // columns.size).tolist()]
        seconds = [columns.texts[code] or b"" for code in (codes % columns.size).tolist()]
        costs = pair_costs(firsts, seconds)[inverse]
        start = 0
        for band in batch:
            size = len(band.codes)
            found.append(band.codes[warp(band.starts, band.ends, costs[start : start + size])])
            start += size
    codes, counts = np.unique(np.concatenate(found), return_counts=True)
    return np.stack([codes // columns.size, codes % columns.size], axis=1), counts.astype(np.float64)


def pair_costs(firsts: Sequence[bytes], seconds: Sequence[bytes]) -> np.ndarray:
    """float64 (P,): the cost of each pair."""
    costs = np.zeros(len(firsts))
    lengths = np.array([max(len(a), len(b)) for a, b in zip(firsts, seconds, strict=True)], np.int64)
    contained = np.array([a in b or b in a for a, b in zip(firsts, seconds, strict=True)], bool)
    equal = np.array([a == b for a, b in zip(firsts, seconds, strict=True)], bool)
    costs[contained & ~equal] = 0.1
    left = np.flatnonzero(~contained)
    # Pairs of similar length share a table, so that one long token does not make all tables long.
    width = np.maximum(4, 2 ** np.ceil(np.log2(np.maximum(lengths, 1))).astype(np.int64))
    for size in np.unique(width[left]).tolist():
        group = left[width[left] == size]
        step = max(1, _TABLE // (size + 1))
        for part in (group[start : start + step] for start in range(0, len(group), step)):
            costs[part] = edit_distances([firsts[i] for i in part], [seconds[i] for i in part])
    return costs


def edit_distances(firsts: Sequence[bytes], seconds: Sequence[bytes]) -> np.ndarray:
    """int64 (P,): the fewest insertions, deletions and substitutions of bytes that turn one into the other, all pairs at once.

    >>> edit_distances([b"kitten", b""], [b"sitting", b"ab"]).tolist()
    [3, 2]
    """
    (a, length_a), (b, length_b) = _padded(firsts), _padded(seconds)
    place = np.arange(b.shape[1] + 1)
    row = np.broadcast_to(place, (len(b), len(place)))
    result = length_b.copy()
    for i in range(a.shape[1]):
        changed = np.empty_like(row)
        changed[:, 0] = i + 1
        changed[:, 1:] = np.minimum(row[:, 1:] + 1, row[:, :-1] + (b != a[:, i : i + 1]))
        # Insertions run along the row: the least of what is on the left, plus the distance to it.
        row = np.minimum.accumulate(changed - place, axis=1) + place
        done = np.flatnonzero(length_a == i + 1)
        result[done] = row[done, length_b[done]]
    return result


def warp(starts: Sequence[int], ends: Sequence[int], costs: np.ndarray) -> list[int]:
    """The cheapest path through a band.

    Args:
        starts: of each row, its first column in the band; never falls, 0 for the first row.
        ends: of each row, one after its last column; the next row starts there at the latest.
        costs: of the cells of the band, row after row.

    Returns:
        The cells on the path, as positions in ``costs``, first to last.

    >>> warp([0, 0], [3, 3], np.array([0.0, 1, 5, 2, 0, 0]))  # two tokens against three
    [0, 4, 5]
    """
    infinity = float("inf")
    cost = costs.tolist()
    previous: list[float] = []
    previous_start, position = 0, 0
    moves: list[int] = []  # of each cell: 0 from both, 1 from the row before, 2 from the column before
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        current: list[float] = []
        last = infinity
        for column in range(start, end):
            place = column - previous_start
            both = previous[place - 1] if 0 < place <= len(previous) else infinity
            above = previous[place] if 0 <= place < len(previous) else infinity
            if row == 0 and column == 0:
                both = 0.0
            if both <= above and both <= last:
                best, move = both, 0
            elif above <= last:
                best, move = above, 1
            else:
                best, move = last, 2
            last = best + cost[position]
            current.append(last)
            moves.append(move)
            position += 1
        previous, previous_start = current, start
    offsets = [0, *itertools.accumulate(end - start for start, end in zip(starts, ends, strict=True))]
    row, column, path = len(starts) - 1, ends[-1] - 1, []
    while row >= 0 and column >= 0:
        cell = offsets[row] + column - starts[row]
        path.append(cell)
        row, column = row - (moves[cell] != 2), column - (moves[cell] != 1)
    return path[::-1]


class _Band:
    """The pairs of two tokenizations that are looked at.

    Attributes:
        starts, ends: of each row, its columns.
        codes: int64, row token * columns.size + column token of each cell, row after row.
    """

    def __init__(self, rows: TokenTable, columns: TokenTable, first: Sequence[int], second: Sequence[int]) -> None:
        edges_first, edges_second = _edges(rows, first), _edges(columns, second)
        # What one tokenizer drops or adds shifts all that follows: positions are compared as parts of the whole. Then the first column of a
        # row always lies before the last one of the row above, and the corners are in the band, so there is a path. Sequences without any
        # bytes (special tokens alone) are compared with everything.
        edges_second = edges_second * (edges_first[-1] / max(1, edges_second[-1]))
        starts = np.searchsorted(edges_second[1:], edges_first[:-1] - BAND, side="right")
        starts = np.minimum(starts, len(second) - 1)
        ends = np.searchsorted(edges_second[:-1], edges_first[1:] + BAND, side="left")
        self.starts, self.ends = starts.tolist(), ends.tolist()
        widths = ends - starts
        offsets = np.repeat(np.cumsum(widths) - widths, widths)
        place = np.arange(widths.sum()) - offsets + np.repeat(starts, widths)
        self.codes = np.repeat(np.asarray(first, np.int64), widths) * columns.size + np.asarray(second, np.int64)[place]


def _edges(table: TokenTable, ids: Sequence[int]) -> np.ndarray:
    """(T + 1,) where tokens begin in the text, in bytes, and its end."""
    return np.cumsum([0, *(len(table.texts[index] or b"") for index in ids)])


def _batches(bands: Iterable[_Band]) -> Iterable[list[_Band]]:
    batch: list[_Band] = []
    cells = 0
    for band in bands:
        batch.append(band)
        cells += len(band.codes)
        if cells >= _CELLS:
            yield batch
            batch, cells = [], 0
    if batch:
        yield batch


def _padded(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """(int64 (P, longest) bytes, padded with -1; (P,) lengths)."""
    lengths = np.array([len(text) for text in texts], np.int64)
    padded = np.full((len(texts), int(lengths.max(initial=0))), -1, np.int64)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.frombuffer(b"".join(texts), np.uint8)
    return padded, lengths
