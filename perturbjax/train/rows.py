"""Demonstrations packed into rows of one length, with the positions whose next token is learned.

N rows of T tokens; Q is the highest number of learned tokens in a row, rounded up. Several demonstrations lie side by side in a row and do
not see each other. Logits are needed at the Q positions alone, which is where most of a small model's time goes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax.errors import InputError
from perturbjax.train.demonstrations import EncodedDemonstration

PADDING = -1
"""Segment number of padding."""
QUERY_MULTIPLE = 16


@dataclass(frozen=True)
class Rows:
    """Packed demonstrations.

    Attributes:
        arrays: ``tokens``, ``positions``, ``segments`` (N, T) int32, a segment being a demonstration's number in its row or PADDING;
            ``query`` (N, Q) int32, positions whose next token is learned; ``labels`` (N, Q) int32, these next tokens; ``weights`` (N, Q)
            float32, 0 on padding.
        demonstrations: how many are packed.
        left_out: ids of those that are longer than a row.
    """

    arrays: dict[str, np.ndarray]
    demonstrations: int
    left_out: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.arrays["tokens"])

    def batch(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays of some rows, in their order."""
        return {name: array[numbers] for name, array in self.arrays.items()}

    @property
    def tokens(self) -> int:
        """Tokens put through a model, padding not counted."""
        return int((self.arrays["segments"] != PADDING).sum())


def pack_rows(demonstrations: Sequence[EncodedDemonstration], row_tokens: int, per_demonstration: bool = False) -> Rows:
    """Packs demonstrations into rows: first fit in the order of decreasing length.

    Args:
        demonstrations: prompts of at least one token, responses of at least one.
        row_tokens: T. The last token of a response is learned and never read, so it takes no room.
        per_demonstration: the tokens of a response share its weight, so that losses are means over demonstrations; else they have it each.

    Raises:
        InputError: none fits into a row.
    """
    lengths = [len(d.prompt) + len(d.response) - 1 for d in demonstrations]
    left_out = tuple(d.id for d, length in zip(demonstrations, lengths, strict=True) if length > row_tokens)
    if len(left_out) == len(demonstrations):
        fit = f"none of the {len(demonstrations)} demonstrations fits, the shortest has {min(lengths, default=0)} tokens"
        raise InputError(f"`row_tokens` {row_tokens}: {fit}; raise it")
    rows: list[list[int]] = []
    room: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if lengths[number] > row_tokens:
            continue
        row = next((r for r, free in enumerate(room) if free >= lengths[number]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(row_tokens)
        rows[row].append(number)
        room[row] -= lengths[number]
    learned = max(sum(len(demonstrations[number].response) for number in row) for row in rows)
    queries = -(-learned // QUERY_MULTIPLE) * QUERY_MULTIPLE
    tokens, positions, segments = (np.full((len(rows), row_tokens), value, np.int32) for value in (0, 0, PADDING))
    query, labels = (np.zeros((len(rows), queries), np.int32) for _ in range(2))
    weights = np.zeros((len(rows), queries), np.float32)
    for r, row in enumerate(rows):
        column = asked = 0
        for segment, number in enumerate(row):
            demonstration, length = demonstrations[number], lengths[number]
            here, count = slice(column, column + length), len(demonstration.response)
            tokens[r, here] = (*demonstration.prompt, *demonstration.response[:-1])
            positions[r, here], segments[r, here] = np.arange(length), segment
            there = slice(asked, asked + count)
            query[r, there] = column + len(demonstration.prompt) - 1 + np.arange(count)
            labels[r, there], weights[r, there] = demonstration.response, demonstration.weight / (count if per_demonstration else 1)
            column, asked = column + length, asked + count
    arrays = {"tokens": tokens, "positions": positions, "segments": segments, "query": query, "labels": labels, "weights": weights}
    return Rows(arrays, len(demonstrations) - len(left_out), left_out)


def segment_mask(segments_BxT: jax.Array) -> jax.Array:
    """Each token sees the tokens of its own segment up to itself: bool (B, T, T)."""
    order = jnp.arange(segments_BxT.shape[1])
    same = (segments_BxT[:, :, None] == segments_BxT[:, None, :]) & (segments_BxT != PADDING)[:, None, :]
    return same & (order[None, :] <= order[:, None])[None]


def at_queries(x_BxTxD: jax.Array, query_BxQ: jax.Array) -> jax.Array:
    """The positions of each row whose next token is learned: (B, T, D) -> (B, Q, D)."""
    return jnp.take_along_axis(x_BxTxD, query_BxQ[:, :, None], axis=1)


def join_rows(sets: Mapping[str, Rows], weights: Mapping[str, float]) -> Rows:
    """The rows of several sets one after the other, their weights multiplied by the set's."""
    queries = max(rows.arrays["query"].shape[1] for rows in sets.values())

    def padded(name: str, array: np.ndarray) -> np.ndarray:
        wide = name in ("query", "labels", "weights")
        return np.pad(array, [(0, 0), (0, queries - array.shape[1])]) if wide else array

    scaled = [{**rows.arrays, "weights": rows.arrays["weights"] * np.float32(weights[name])} for name, rows in sets.items()]
    arrays = {name: np.concatenate([padded(name, each[name]) for each in scaled]) for name in scaled[0]}
    return Rows(arrays, sum(rows.demonstrations for rows in sets.values()), sum((rows.left_out for rows in sets.values()), ()))
