"""Candidates and populations: a few numbers each, never weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax.noise.values import fold_in, root_key_data


class Candidate(NamedTuple):
    """One perturbation of the base, or a batch of them with leading axes; a pytree of arrays, so vmap and jit take it directly.

    Attributes:
        index: position in its population, uint32.
        sigma: noise scale, float32; 0 is the base itself.
        sign: +1 or -1 (antithetic partner), float32.
        key_data: raw threefry2x32 key of the candidate's noise, uint32[2].
    """

    index: jax.Array
    sigma: jax.Array
    sign: jax.Array
    key_data: jax.Array

    @staticmethod
    def base(count: int | None = None) -> Candidate:
        """The unperturbed base as a candidate (sigma 0), or a batch of ``count`` of them: the base goes through the same program."""
        shape = () if count is None else (count,)
        return Candidate(
            jnp.zeros(shape, jnp.uint32), jnp.zeros(shape, jnp.float32), jnp.ones(shape, jnp.float32), jnp.zeros((*shape, 2), jnp.uint32)
        )


def check_candidate(candidate: Any) -> None:
    """Refuses anything but one candidate.

    Raises:
        ValueError: it is something else, or a batch of them.
    """
    if not isinstance(candidate, Candidate):
        raise ValueError(f"candidate {type(candidate).__name__}: a Candidate is required, such as population[3]")
    if jnp.ndim(candidate.index):
        raise ValueError(f"candidate of shape {jnp.shape(candidate.index)}: one is required; use jax.vmap for several")


@dataclass(frozen=True)
class Population:
    """N candidates as metadata: a seed and a rule. ``population[17]`` is a candidate, ``population[2:5]`` a batched one.

    Candidate i has noise number n = i and sigma ``sigmas[n % len(sigmas)]`` (round robin, never a draw), sign +1. With ``antithetic``,
    candidates 2j and 2j + 1 share noise number n = j, and with it sigma, and have signs +1 and -1.

    Attributes:
        seed: of the root key; not negative, below 2**63.
        size: N, at most 2**32.
        sigmas: positive, finite, distinct noise scales.
        antithetic: pair candidates; N must then be even.

    Raises:
        ValueError: a field outside its range; it is named.
    """

    seed: int
    size: int
    sigmas: tuple[float, ...] = (1e-3,)
    antithetic: bool = False

    def __post_init__(self):
        sigmas = (self.sigmas,) if isinstance(self.sigmas, int | float) else self.sigmas
        object.__setattr__(self, "sigmas", tuple(float(sigma) for sigma in sigmas))
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed {self.seed}: must be a whole number from 0 to 2**63 - 1")
        if not 0 <= self.size <= 2**32:
            raise ValueError(f"size {self.size}: must be a whole number from 0 to 2**32")
        if self.antithetic and self.size % 2:
            raise ValueError(f"size {self.size}: antithetic candidates come in pairs; use {self.size + 1}")
        if not self.sigmas:
            raise ValueError("sigmas (): at least one noise scale is required")
        limits = np.finfo(np.float32)
        for sigma in self.sigmas:
            if not (math.isfinite(sigma) and float(limits.tiny) <= sigma <= float(limits.max)):
                raise ValueError(f"sigmas {sigma}: each must be positive, finite and in the range of float32; 0.0005 to 0.003 is usual")
        if len({float(np.float32(sigma)) for sigma in self.sigmas}) < len(self.sigmas):
            raise ValueError(f"sigmas {','.join(map(repr, self.sigmas))}: a noise scale occurs twice; name each once")

    def __len__(self) -> int:
        return self.size

    @property
    def whole(self) -> Population:
        """Itself: ``Subset`` has one too."""
        return self

    def index_of(self, positions: np.ndarray | Sequence[int]) -> np.ndarray:
        """int64 candidate indices at positions, which are the same here and not in a ``Subset``."""
        return np.asarray(positions, np.int64)

    def __getitem__(self, item: int | np.integer | slice | Sequence[int] | np.ndarray) -> Candidate:
        """The candidate of an index, or those of a slice or of a list of indices, batched along a leading axis.

        Raises:
            IndexError: an index outside 0 .. N - 1.
        """
        if isinstance(item, int | np.integer):
            return jax.tree.map(lambda leaf: leaf[0], self._batched(np.asarray([range(self.size)[item]])))
        if isinstance(item, slice):
            start, stop, step = item.indices(self.size)
            return self._batched(np.arange(start, stop, step, dtype=np.int64))
        index = np.asarray(item, np.int64)
        if index.ndim != 1 or (index.size and not (index.min() >= 0 and index.max() < self.size)):
            raise IndexError(f"candidate indices {item}: a list of numbers from 0 to {self.size - 1} is required")
        return self._batched(index)

    def noise_number(self, indices: np.ndarray | Sequence[int]) -> np.ndarray:
        """The number folded into the root key, per candidate index: int64."""
        numbers = np.asarray(indices, np.int64)
        return numbers // 2 if self.antithetic else numbers

    def sigma_of(self, indices: np.ndarray | Sequence[int]) -> np.ndarray:
        """sigma per candidate index: float32."""
        return np.asarray(self.sigmas, np.float32)[self.noise_number(indices) % len(self.sigmas)]

    def _batched(self, index: np.ndarray) -> Candidate:
        numbers = jnp.asarray(self.noise_number(index), jnp.uint32)
        sign = np.where(index % 2 == 1, -1.0, 1.0) if self.antithetic else np.ones(index.shape)
        return Candidate(
            index=jnp.asarray(index, jnp.uint32),
            sigma=jnp.asarray(self.sigma_of(index)),
            sign=jnp.asarray(sign, jnp.float32),
            key_data=jax.vmap(fold_in, (None, 0))(root_key_data(self.seed), numbers),
        )


@dataclass(frozen=True, eq=False)
class Subset:
    """Some candidates of a population, counted on their own: at position p is the candidate ``indices[p]`` of the whole, which keeps its
    index, its key and its sigma.

    Attributes:
        whole: N candidates.
        indices: (n,) int64 of those that are in it, ascending.

    Raises:
        ValueError: indices that are not ascending, or outside the whole.

    >>> subset = Subset(Population(seed=0, size=100, sigmas=(0.1, 0.2)), np.array([7, 40]))
    >>> len(subset), int(subset[1].index), subset.sigma_of([0]).tolist() == subset.whole.sigma_of([7]).tolist()
    (2, 40, True)
    """

    whole: Population
    indices: np.ndarray

    def __post_init__(self):
        indices = np.asarray(self.indices, np.int64)
        object.__setattr__(self, "indices", indices)
        if indices.ndim != 1 or (np.diff(indices) <= 0).any():
            raise ValueError("indices: a list of candidate indices in ascending order, each once, is required")
        if indices.size and not (indices[0] >= 0 and indices[-1] < len(self.whole)):
            raise ValueError(f"indices: {indices[0]} to {indices[-1]} are outside the population's 0 to {len(self.whole) - 1}")

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int | np.integer | slice | Sequence[int] | np.ndarray) -> Candidate:
        """As ``Population.__getitem__``, by position."""
        return self.whole[self.indices[item if isinstance(item, int | np.integer | slice) else np.asarray(item, np.int64)]]

    @property
    def sigmas(self) -> tuple[float, ...]:
        return self.whole.sigmas

    def index_of(self, positions: np.ndarray | Sequence[int]) -> np.ndarray:
        """int64 candidate indices in the whole population."""
        return self.indices[np.asarray(positions, np.int64)]

    def sigma_of(self, positions: np.ndarray | Sequence[int]) -> np.ndarray:
        """sigma per position: float32."""
        return self.whole.sigma_of(self.index_of(positions))
