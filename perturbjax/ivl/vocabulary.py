"""The map from a value network's vocabulary to a base's: which of V's logits each of the base's tokens gets.

Axis letters: v are the tokens of the value network V, u those of the base B, R (at most 4) the entries of a row.

    delta_B(u) = sum_r weights[u, r] (z_V(indices[u, r]) - mean z_V)

The mean is over the tokens that V's tokenizer has, special ones included; rows of the embedding beyond them do not count. A token without
partner gets 0, that is, the change of an average token. The map is linear in z_V, so ``apply`` to V's head kernel (D, v) gives a head
(D, u) that speaks B's vocabulary: a matmul instead of gathers, where memory for it is no concern.

A value network beside B reads B's tokens, so the same rows say what it reads: in place of a token of B the embeddings of its entries, by
their weights (``VocabularyMap.read``). An exact token is read as its partner, a token of several pieces as a mixture of them, and one
without partner as zeros.

Identity is the exception: there the change is z_V itself, without the mean. A constant moves no softmax, so it is the same model, and
nothing is gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax.ivl.tokens import TokenTable, token_table

if TYPE_CHECKING:
    from perturbjax.pretrained.tokenizer import Tokenizer

MAX_ENTRIES = 4
"""R, the most entries of a row (X-Token keeps the top 4)."""

Kind = Literal["identity", "exact_first", "dtw", "byte"]
"""Every kind of map: how it was built."""


@dataclass(frozen=True, eq=False)
class VocabularyMap:
    """A sparse matrix (u, v) of at most R entries a row, held on the host.

    Inside jit its arrays are constants of the program: 0.6 MB for each of R and indices or weights at 151,936 tokens.

    Attributes:
        kind: how it was built.
        indices: int32 (u, R), tokens of V; 0 where the weight is 0.
        weights: float32 (u, R), at least 0; 0 is no entry.
        exact: bool (u,), rows whose one entry is the same token: the same bytes, or the same role of a special token.
        valid: bool (v,), the tokens that the mean is over.
        value_fingerprint: V's ``TokenTable.fingerprint`` (identity: ``.vocabulary``; a byte head: ``byte_head.FINGERPRINT``).
        base_fingerprint: B's.
    """

    kind: Kind
    indices: np.ndarray
    weights: np.ndarray
    exact: np.ndarray
    valid: np.ndarray
    value_fingerprint: str
    base_fingerprint: str

    def __post_init__(self) -> None:
        wanted = {"indices": (np.int32, 2), "weights": (np.float32, 2), "exact": (np.bool_, 1), "valid": (np.bool_, 1)}
        for name, (dtype, ndim) in wanted.items():
            array = getattr(self, name)
            if array.dtype != dtype or array.ndim != ndim:
                raise ValueError(f"{name} {array.dtype.name} {array.shape}: {np.dtype(dtype).name} of rank {ndim} is required")
        rows, entries = self.indices.shape
        if self.weights.shape != (rows, entries) or self.exact.shape != (rows,) or not 1 <= entries <= MAX_ENTRIES or not rows:
            shapes = f"indices {self.indices.shape}, weights {self.weights.shape}, exact {self.exact.shape}"
            raise ValueError(f"{shapes}: (u, R), (u, R) and (u,) with R from 1 to {MAX_ENTRIES} are required")
        if not self.valid.any():
            raise ValueError("valid: at least one token is required")
        if self.indices.min() < 0 or self.indices.max() >= len(self.valid):
            raise ValueError(f"indices from {self.indices.min()} to {self.indices.max()}: 0 to {len(self.valid) - 1} is required")
        if not np.isfinite(self.weights).all() or self.weights.min() < 0:
            raise ValueError("weights: finite numbers of at least 0 are required")
        if (self.weights[~self.valid[self.indices]] > 0).any():
            raise ValueError("indices: an entry names an id that no token has")

    @property
    def value_size(self) -> int:
        """v, one more than the highest token id of V."""
        return len(self.valid)

    @property
    def base_size(self) -> int:
        """u, one more than the highest token id of B."""
        return len(self.indices)

    @property
    def matched(self) -> np.ndarray:
        """bool (u,), rows with an entry."""
        return (self.weights > 0).any(axis=1)

    def apply(self, z: jax.Array, size: int | None = None) -> jax.Array:
        """The change of B's logits.

        Args:
            z: (..., v') V's logits, finite, v' >= v: embedding rows beyond the tokenizer's are ignored.
            size: u' >= u, how many logits B has; the rows beyond its tokenizer's get 0. None is u.

        Returns:
            (..., u'), of z's dtype. Sums and the mean are in float32 at least.

        Raises:
            ValueError: too few logits, or a size below u.
        """
        size = self.base_size if size is None else size
        if z.shape[-1] < self.value_size:
            raise ValueError(f"z has {z.shape[-1]} logits: at least the {self.value_size} of the value network's tokenizer are required")
        if size < self.base_size:
            raise ValueError(f"size {size}: at least the {self.base_size} of the base's tokenizer is required")
        if self.kind == "identity":
            return z if z.shape[-1] == size else _pad(z[..., : self.base_size], size)
        wide = at_least_float32(z[..., : self.value_size])
        tokens = wide if self.valid.all() else wide[..., np.flatnonzero(self.valid)]
        wide = wide - tokens.mean(axis=-1, keepdims=True)
        # R plain gathers. Only the rows of more than one entry, with a scatter-add or a second gather, measured no faster on CPU, and
        # all R in one gather 10 times slower.
        columns = [
            wide.at[..., self.indices[:, entry]].get(mode="promise_in_bounds") * _last_axis(self.weights[:, entry], wide)
            for entry in range(self.indices.shape[1])
        ]
        return _pad(sum(columns[1:], start=columns[0]).astype(z.dtype), size)

    def read(self, look_up: Callable[[jax.Array], jax.Array], tokens: jax.Array) -> jax.Array:
        """What V reads in place of tokens of B: (...) -> (..., D), in the embedding's type.

        The weighted mean of the embeddings of a token's partners: one position of V for each of B's, so that both decode in lockstep. A
        token with an exact partner is read as what it is, one in several pieces mostly as its first, one without partner as zeros. (Ours.)

        Args:
            look_up: token ids of V, of any shape (...), -> their embeddings (..., D).
            tokens: ids of B; those beyond its tokenizer's have no partner.

        Raises:
            ValueError: a byte head's map: bytes are what V says, and not what it reads.
        """
        if self.kind == "byte":
            raise ValueError("the map of a byte head says nothing about what the value network reads")
        if self.kind == "identity":
            return look_up(tokens)
        rows = jnp.clip(tokens, 0, self.base_size - 1)
        totals = self.weights.sum(axis=1, keepdims=True)
        weights = np.divide(self.weights, totals, out=np.zeros_like(self.weights), where=totals > 0)
        indices, weights = (jnp.asarray(array)[rows] for array in (self.indices, weights))
        embeddings = look_up(indices)
        known = jnp.where((tokens < self.base_size)[..., None], weights, 0.0)
        return jnp.einsum("...r,...rd->...d", known, embeddings.astype(jnp.float32), precision="highest").astype(embeddings.dtype)

    def dense(self) -> np.ndarray:
        """The matrix W, float32 (u, v): for tests and small vocabularies. ``delta = W @ (z - mean)``."""
        matrix = np.zeros((self.base_size, self.value_size), np.float32)
        np.add.at(matrix, (np.arange(self.base_size)[:, None], self.indices), self.weights)
        return matrix

    def check(self, value_fingerprint: str, base_fingerprint: str) -> None:
        """That the map was built for these tokenizers.

        Raises:
            ValueError: it was not; the message says which of the two differs and what to do.
        """
        pairs = {"value network": (self.value_fingerprint, value_fingerprint), "base": (self.base_fingerprint, base_fingerprint)}
        for side, (built_for, given) in pairs.items():
            if built_for != given:
                raise ValueError(
                    f"the vocabulary map ({self.kind}) was built for another tokenizer of the {side}, {_short(built_for)}, not"
                    f" {_short(given)}: build the map anew for this pair, or load the {side} that it was built for"
                )


def identity(value: Tokenizer, base: Tokenizer) -> VocabularyMap:
    """The map of a value network that shares the base's vocabulary: z_V itself, no mean subtracted, nothing gathered.

    Ids must mean the same in both; roles may differ, as between a base model and its chat model.

    Where z_V has as many logits as B it is added as it is, padding included; else logits beyond the tokenizer's are 0.

    Raises:
        ValueError: the vocabularies differ.
    """
    ours, theirs = token_table(value), token_table(base)
    if ours.vocabulary != theirs.vocabulary:
        same = sum(a == b for a, b in zip(_names(ours), _names(theirs), strict=False))
        raise ValueError(
            f"the vocabularies differ ({ours.size} and {theirs.size} tokens, {same} of them the same under the same id): identity needs the"
            " same one; use exact_first"
        )
    rows = np.arange(theirs.size, dtype=np.int32)[:, None]
    valid = np.array(theirs.valid)
    return VocabularyMap("identity", rows, valid[:, None].astype(np.float32), valid, valid, ours.vocabulary, theirs.vocabulary)


def rows_of(entries: Sequence[Sequence[tuple[int, float]]]) -> tuple[np.ndarray, np.ndarray]:
    """(indices, weights) of a map whose rows are lists of (token of V, weight), as few columns as they need."""
    width = max((len(row) for row in entries), default=0)
    indices = np.zeros((len(entries), max(1, width)), np.int32)
    weights = np.zeros(indices.shape, np.float32)
    for row, pairs in enumerate(entries):
        for column, (index, weight) in enumerate(pairs):
            indices[row, column], weights[row, column] = index, weight
    return indices, weights


def at_least_float32(values: jax.Array) -> jax.Array:
    """Narrower floats as float32, the others as they are."""
    return values if jnp.finfo(values.dtype).bits >= 32 else values.astype(jnp.float32)


def _names(table: TokenTable) -> list[Any]:
    return [table.special.get(index, text) for index, text in enumerate(table.texts)]


def _short(fingerprint: str) -> str:
    return fingerprint[:19]


def _last_axis(vector: np.ndarray, like: jax.Array) -> jax.Array:
    return jax.lax.expand_dims(jnp.asarray(vector, like.dtype), range(like.ndim - 1))


def _pad(logits: jax.Array, size: int) -> jax.Array:
    """(..., u) -> (..., size), zeros at the end."""
    missing = size - logits.shape[-1]
    return jnp.pad(logits, [(0, 0)] * (logits.ndim - 1) + [(0, missing)]) if missing else logits
