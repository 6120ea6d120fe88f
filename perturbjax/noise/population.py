"""Candidates and populations: a few numbers each, never weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

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


@dataclass(frozen=True)
class Population:
    """N candidates as metadata: a seed and a rule. Indexing gives a Candidate, slicing a Population.

    Candidate i has noise number n = i and sigma ``sigmas[n % len(sigmas)]`` (round robin, never a draw), sign +1. With ``antithetic``,
    candidates 2j and 2j + 1 share noise number n = j, and with it sigma, and have signs +1 and -1.

    Attributes:
        seed: of the root key; not negative, below 2**63.
        size: N, at most 2**32.
        sigmas: positive, finite noise scales.
        antithetic: pair candidates; N must then be even.
        start, step: which indices of the whole population these are (set by slicing).
    """

    seed: int
    size: int
    sigmas: tuple[float, ...] = (1e-3,)
    antithetic: bool = False
    start: int = 0
    step: int = 1

    def __post_init__(self):
        sigmas = (self.sigmas,) if isinstance(self.sigmas, int | float) else self.sigmas
        object.__setattr__(self, "sigmas", tuple(float(s) for s in sigmas))
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed {self.seed}: must be a whole number from 0 to 2**63 - 1")
        if self.size < 0 or self.start < 0 or self.step < 1 or (self.size and self.start + (self.size - 1) * self.step >= 2**32):
            raise ValueError(f"size {self.size}: must be a whole number from 0 to 2**32")
        if not self.sigmas or not all(math.isfinite(s) and s > 0 for s in self.sigmas):
            raise ValueError(f"sigmas {self.sigmas}: at least one, each positive and finite")
        if self.antithetic and self.start == 0 and self.step == 1 and self.size % 2:
            raise ValueError(f"size {self.size}: antithetic pairs need an even population; use {self.size + 1}")

    def __len__(self) -> int:
        return self.size

    @property
    def indices(self) -> np.ndarray:
        """Indices in the whole population, int64 (N,)."""
        return self.start + self.step * np.arange(self.size, dtype=np.int64)

    @overload
    def __getitem__(self, item: int) -> Candidate: ...
    @overload
    def __getitem__(self, item: slice) -> Population: ...
    def __getitem__(self, item: int | slice) -> Candidate | Population:
        positions = range(self.size)[item]
        if isinstance(positions, range):
            if positions.step < 1:
                raise IndexError(f"slice step {positions.step}: a population is sliced forwards only")
            start = self.start + self.step * positions.start
            # Slices of an antithetic population may cut a pair, so the evenness check is for whole populations only.
            step = self.step * positions.step
            return _slice_of(self, len(positions), start, step)
        return jax.tree.map(lambda leaf: leaf[0], self.candidates([self.start + self.step * positions]))

    def noise_number(self, indices: np.ndarray | Sequence[int]) -> np.ndarray:
        """The number folded into the root key, per candidate index: int64."""
        numbers = np.asarray(indices, np.int64)
        return numbers // 2 if self.antithetic else numbers

    def sigma_of(self, indices: np.ndarray | Sequence[int]) -> np.ndarray:
        """sigma per candidate index: float32."""
        return np.asarray(self.sigmas, np.float32)[self.noise_number(indices) % len(self.sigmas)]

    def candidates(self, indices: np.ndarray | Sequence[int] | None = None) -> Candidate:
        """The candidates of these indices of the whole population (all of this one's if None), batched along a leading axis."""
        index = self.indices if indices is None else np.asarray(indices, np.int64)
        if index.size and not (index.min() >= 0 and index.max() < 2**32):
            raise IndexError(f"candidate index {index.min()}..{index.max()}: must lie in 0 .. 2**32 - 1")
        numbers = jnp.asarray(self.noise_number(index), jnp.uint32)
        sign = np.where(index % 2 == 1, -1.0, 1.0) if self.antithetic else np.ones(index.shape)
        return Candidate(
            index=jnp.asarray(index, jnp.uint32),
            sigma=jnp.asarray(self.sigma_of(index)),
            sign=jnp.asarray(sign, jnp.float32),
            key_data=jax.vmap(fold_in, (None, 0))(root_key_data(self.seed), numbers),
        )


def _slice_of(population: Population, size: int, start: int, step: int) -> Population:
    # Bypasses the evenness check of a whole antithetic population when the slice happens to begin at 0.
    part = object.__new__(Population)
    for name, value in (("seed", population.seed), ("size", size), ("sigmas", population.sigmas),
                        ("antithetic", population.antithetic), ("start", start), ("step", step)):  # fmt: skip
        object.__setattr__(part, name, value)
    return part
