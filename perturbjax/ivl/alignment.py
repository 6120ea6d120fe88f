"""Two ways to find each token of the base B its partners among the tokens of a value network V.

``exact_first`` compares vocabularies, ``dtw_alignment`` what two tokenizers make of the same texts. Special tokens are matched by role in
both; a stop token always finds one, because a reply that cannot end is none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from perturbjax.ivl.tokens import TEXT_END, TURN_END, TokenTable, token_table
from perturbjax.ivl.vocabulary import MAX_ENTRIES, Kind, VocabularyMap, rows_of
from perturbjax.ivl.warping import count_pairs

if TYPE_CHECKING:
    from perturbjax.pretrained.tokenizer import Tokenizer

FIRST, RATIO = 0.9, 0.1
"""Weight of the first piece of a token, and of each piece to the one before it (X-Token: 0.9 * 0.1^i)."""


def exact_first(value: Tokenizer, base: Tokenizer) -> VocabularyMap:
    """The exact-first sparse map (X-Token, arXiv 2605.21699).

    A token of B with the same bytes as one of V gets that one alone, weight 1. Else V's tokenizer writes its bytes, and piece i weighs
    0.9 * 0.1^i; the first 4 pieces are kept, equal ones added up, and the row normalized to 1. The first piece dominates because it is the
    token that V would emit next. Bytes that V's tokenizer does not give back (no UTF-8, normalized away) are covered from the left by V's
    longest tokens, as far as V has any.

    Args:
        value: V's tokenizer.
        base: B's tokenizer.
    """
    ours, theirs = token_table(value), token_table(base)
    rows: list[list[tuple[int, float]]] = [[] for _ in range(theirs.size)]
    exact = np.zeros(theirs.size, bool)
    splitter = _Splitter(value, ours)
    for index, text in enumerate(theirs.texts):
        if not text:
            continue
        partner = ours.ids.get(text)
        exact[index] = partner is not None
        rows[index] = _weighted(splitter.pieces(text)) if partner is None else [(partner, 1.0)]
    return _finish("exact_first", ours, theirs, rows, exact)


def dtw_alignment(value: Tokenizer, base: Tokenizer, texts: Iterable[str]) -> VocabularyMap:
    """The map of the IVL paper (arXiv 2410.21027): what stands opposite each other when both tokenize the same texts.

    Token sequences are aligned by dynamic time warping (``warping``), aligned pairs counted, the mean of each row (u) subtracted, each
    column (v) min-max scaled over all u, and of each row the best entry is kept with weight 1. Only pairs that were counted can be kept.

    It knows only tokens that occur in the texts, and of a number of several digits it keeps one piece. Scaling by columns lets a pair that
    was counted once win where its column has no other. So ``exact_first`` is the better map; this one is for comparison. What the paper
    leaves open is our choice: rows are B's tokens, weights are 1, special tokens are matched by role.

    Args:
        value: V's tokenizer.
        base: B's tokenizer.
        texts: plain text in both models' domain; 100 kB take seconds.
    """
    ours, theirs = token_table(value), token_table(base)
    pairs, counts = count_pairs(theirs, ours, ((base.encode(text), value.encode(text)) for text in texts))
    rows: list[list[tuple[int, float]]] = [[] for _ in range(theirs.size)]
    exact = np.zeros(theirs.size, bool)
    for row, column in best_of_rows(pairs, counts, sum(theirs.valid), sum(ours.valid)):
        rows[row] = [(column, 1.0)]
        exact[row] = theirs.texts[row] == ours.texts[column]
    return _finish("dtw", ours, theirs, rows, exact)


def best_of_rows(pairs: np.ndarray, counts: np.ndarray, num_rows: int, num_columns: int) -> list[tuple[int, int]]:
    """The best column of each row of a sparse matrix of counts, after subtracting row means and min-max scaling of columns.

    As on the dense matrix (num_rows, num_columns), zeros included, but for the choice, which is among counted pairs. Ties go to the higher
    count, then to the lower column. A constant column scales to 0.

    Args:
        pairs: int (P, 2) row and column of each count, distinct.
        counts: (P,) above 0.
        num_rows: rows of the dense matrix.
        num_columns: its columns.

    Returns:
        (row, column) of every row that has a count.
    """
    rows, columns = pairs[:, 0], pairs[:, 1]
    means = np.bincount(rows, weights=counts, minlength=1) / num_columns
    centered = counts - means[rows]
    # Where a column has no count it holds minus the row's mean: its extremes come from the rows of the highest and the lowest mean.
    present = np.unique(rows)
    by_mean = present[np.argsort(-means[present], kind="stable")].tolist()
    unseen = [0.0] if num_rows > len(present) else []
    order = np.argsort(columns, kind="stable")
    low, high = centered.copy(), centered.copy()
    for group in np.split(order, np.flatnonzero(np.diff(columns[order])) + 1):
        counted = set(rows[group].tolist())
        ends = (next((row for row in way if row not in counted), None) for way in (by_mean, reversed(by_mean)))
        values = centered[group].tolist() + [-means[row] for row in ends if row is not None] + unseen
        low[group], high[group] = min(values), max(values)
    spread = high - low
    scaled = np.divide(centered - low, spread, out=np.zeros_like(centered), where=spread > 0)
    ranked = np.lexsort((columns, -counts, -scaled, rows))
    first = ranked[np.flatnonzero(np.diff(rows[ranked], prepend=-1))]
    return list(zip(rows[first].tolist(), columns[first].tolist(), strict=True))


def _finish(kind: Kind, ours: TokenTable, theirs: TokenTable, rows: list[list[tuple[int, float]]], exact: np.ndarray) -> VocabularyMap:
    """The map of these rows, special tokens of B matched by role."""
    of_role = {role: index for index, role in sorted(ours.roles.items(), reverse=True)}
    # Where V ends texts and turns with one token, B's two both get it.
    other = {TEXT_END: TURN_END, TURN_END: TEXT_END}
    for index, role in theirs.roles.items():
        partner = of_role.get(role, of_role.get(other.get(role, "")))
        if partner is not None:
            rows[index], exact[index] = [(partner, 1.0)], True
    return VocabularyMap(kind, *rows_of(rows), exact, np.array(ours.valid), ours.fingerprint, theirs.fingerprint)


def _weighted(pieces: list[int]) -> list[tuple[int, float]]:
    weights: dict[int, float] = {}
    for place, piece in enumerate(pieces[:MAX_ENTRIES]):
        weights[piece] = weights.get(piece, 0.0) + FIRST * RATIO**place
    total = sum(weights.values())
    return [(piece, weight / total) for piece, weight in weights.items()]


class _Splitter:
    """Bytes -> the tokens with which V's tokenizer writes them."""

    def __init__(self, tokenizer: Tokenizer, table: TokenTable) -> None:
        self._tokenizer = tokenizer
        self._table = table
        self._longest = max(map(len, table.ids), default=0)

    def pieces(self, text: bytes) -> list[int]:
        try:
            written = self._tokenizer.encode(text.decode())
        except UnicodeDecodeError:
            return self._greedy(text)
        pieces = [self._table.texts[index] for index in written]
        # A special token that the text happens to spell, a normalizer and an added space in front all show here.
        return written if all(pieces) and b"".join(filter(None, pieces)) == text else self._greedy(text)

    def _greedy(self, text: bytes) -> list[int]:
        pieces, start = [], 0
        while start < len(text):
            ends = range(min(len(text), start + self._longest), start, -1)
            end = next((end for end in ends if text[start:end] in self._table.ids), None)
            if end is None:
                break
            pieces.append(self._table.ids[text[start:end]])
            start = end
        return pieces
