"""What a vocabulary map loses: tokens and probability without partner, and what becomes of numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from perturbjax.ivl.tokens import TokenTable, token_table
from perturbjax.ivl.vocabulary import VocabularyMap

if TYPE_CHECKING:
    from perturbjax.pretrained.tokenizer import Tokenizer


@dataclass(frozen=True)
class Matches:
    """How many tokens are matched how.

    Attributes:
        exact: with the same token.
        partial: with pieces of it, or with a similar token.
        none: not at all.
    """

    exact: int
    partial: int
    none: int


@dataclass(frozen=True)
class TokenLoss:
    """A token that is not matched exactly.

    Attributes:
        token: as people read it.
        partners: the tokens that it gets its change from, by weight; empty for none.
        mass: its mean probability.
    """

    token: str
    partners: tuple[str, ...]
    mass: float


@dataclass(frozen=True)
class MassLoss:
    """Where the probability of one model's next-token distributions falls.

    Attributes:
        distributions: how many were given.
        exact: mean probability of tokens that are matched exactly.
        partial: of the others with a partner.
        none: of those without, padding included.
        worst: the likeliest tokens that are not exact, likeliest first.
    """

    distributions: int
    exact: float
    partial: float
    none: float
    worst: tuple[TokenLoss, ...]


@dataclass(frozen=True)
class MapStatistics:
    """Statistics of one map; all shares lie between 0 and 1.

    Attributes:
        tokens: the base's tokens.
        exact: share of them that are matched exactly.
        none: share without partner.
        single_digits: the base's tokens of one digit, a space in front or not.
        numbers: its tokens of several digits.
        number_examples: the first of those that are not exact, and their partners; ``mass`` is 0 without base distributions.
        base_mass: by the base's probabilities, if they were given.
        value_mass: by the value network's: *exact* is what an exact row of the base takes over, *partial* what only other rows use.
    """

    tokens: int
    exact: float
    none: float
    single_digits: Matches
    numbers: Matches
    number_examples: tuple[TokenLoss, ...]
    base_mass: MassLoss | None
    value_mass: MassLoss | None


def statistics(
    vocabulary_map: VocabularyMap,
    value: Tokenizer,
    base: Tokenizer,
    *,
    base_probs: np.ndarray | None = None,
    value_probs: np.ndarray | None = None,
    worst: int = 20,
) -> MapStatistics:
    """Statistics of a map between two tokenizers.

    Args:
        vocabulary_map: the map; not one of a byte head.
        value: V's tokenizer.
        base: B's tokenizer.
        base_probs: (N, u') next-token distributions of B, u' >= u; what lies beyond the tokenizer counts as *none*.
        value_probs: (N, v') next-token distributions of V or of the model that it was trained on.
        worst: how many tokens to list.

    Raises:
        ValueError: probabilities of another shape, or none; a map of other sizes than the tokenizers'.
    """
    ours, theirs = token_table(value), token_table(base)
    sizes = (vocabulary_map.value_size, vocabulary_map.base_size)
    if sizes != (ours.size, theirs.size):
        raise ValueError(f"vocabulary_map of sizes {sizes}: the tokenizers have {(ours.size, theirs.size)} tokens")
    valid, matched = np.array(theirs.valid), vocabulary_map.matched
    used = np.unique(vocabulary_map.indices[vocabulary_map.weights > 0])
    taken_over = np.unique(vocabulary_map.indices[vocabulary_map.exact][vocabulary_map.weights[vocabulary_map.exact] > 0])

    def partners(row: int) -> tuple[str, ...]:
        order = np.argsort(-vocabulary_map.weights[row], kind="stable")
        return tuple(ours.readable(int(vocabulary_map.indices[row, r])) for r in order if vocabulary_map.weights[row, r] > 0)

    base_mean = np.zeros(theirs.size) if base_probs is None else _mean("base_probs", base_probs, theirs.size)
    digits = np.array([_digits(text) for text in theirs.texts])
    inexact_numbers = np.flatnonzero((digits > 1) & ~vocabulary_map.exact)
    base_mass = value_mass = None
    if base_probs is not None:
        base_mass = _loss(theirs, base_mean, len(base_probs), vocabulary_map.exact, matched, partners, worst)
    if value_probs is not None:
        mean = _mean("value_probs", value_probs, ours.size)
        value_mass = _loss(ours, mean, len(value_probs), _mask(ours, taken_over), _mask(ours, used), lambda _: (), worst)
    return MapStatistics(
        tokens=int(valid.sum()),
        exact=float(vocabulary_map.exact[valid].mean()),
        none=float((~matched)[valid].mean()),
        single_digits=_matches(digits == 1, vocabulary_map.exact, matched),
        numbers=_matches(digits > 1, vocabulary_map.exact, matched),
        number_examples=tuple(TokenLoss(theirs.readable(i), partners(i), float(base_mean[i])) for i in inexact_numbers[:worst].tolist()),
        base_mass=base_mass,
        value_mass=value_mass,
    )


def _loss(
    table: TokenTable,
    mean: np.ndarray,
    count: int,
    exact: np.ndarray,
    matched: np.ndarray,
    partners: Callable[[int], tuple[str, ...]],
    worst: int,
) -> MassLoss:
    inexact = np.flatnonzero(~exact)
    order = inexact[np.argsort(-mean[inexact], kind="stable")][:worst]
    sums = float(mean[exact].sum()), float(mean[matched & ~exact].sum())
    losses = tuple(TokenLoss(table.readable(i), partners(i), float(mean[i])) for i in order.tolist() if mean[i] > 0)
    return MassLoss(count, *sums, none=max(0.0, 1.0 - sum(sums)), worst=losses)


def _mean(name: str, probs: np.ndarray, size: int) -> np.ndarray:
    """(size,) mean distribution over the tokenizer's tokens."""
    if probs.ndim != 2 or not len(probs) or probs.shape[1] < size:
        raise ValueError(f"{name} {probs.shape}: (N, at least {size}) with N of at least 1 is required")
    if not (np.isfinite(probs).all() and probs.min() >= 0 and np.allclose(probs.sum(axis=1, dtype=np.float64), 1, atol=1e-2)):
        raise ValueError(f"{name}: rows of probabilities that sum to 1 are required")
    return probs[:, :size].mean(axis=0, dtype=np.float64)


def _digits(text: bytes | None) -> int:
    """How many digits a token has; 0 if it is anything else than digits, a space in front allowed."""
    number = (text or b"").removeprefix(b" ")
    return len(number) if number.isdigit() else 0


def _matches(rows: np.ndarray, exact: np.ndarray, matched: np.ndarray) -> Matches:
    return Matches(int((rows & exact).sum()), int((rows & matched & ~exact).sum()), int((rows & ~matched).sum()))


def _mask(table: TokenTable, indices: np.ndarray) -> np.ndarray:
    mask = np.zeros(table.size, bool)
    mask[indices] = True
    return mask
