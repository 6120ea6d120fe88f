"""Evolution strategies on seeds: candidates around a center that moves, and an update made of their noise, which is never kept.

One step: n candidates theta + sigma sign scale E_i are scored, their scores become centred ranks w_i in [-1/2, 1/2], and

    theta <- theta + rate / (n sigma) * sum_i w_i sign_i scale E_i

(Salimans et al., arXiv 1703.03864, eq. 2 with rank shaping; for language models arXiv 2509.24372). The sum is made leaf by leaf, candidate
by candidate, from the keys, and donated parameters take it: one model and one leaf are in memory, whatever n is. For low-rank noise it is
A diag(w) B^T of the factors, a GEMM a block of candidates.

A trajectory is a list of ``Step``: a seed, and n weights. ``rebuild`` makes the same parameters of it, bit for bit on the same backend.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from perturbjax.noise import Block, Candidate, Noise, Population, scales
from perturbjax.noise.low_rank import low_rank_factors
from perturbjax.noise.spec import moving, wide_dtype
from perturbjax.noise.values import fold_in
from perturbjax.tree import Params, derived_seed, map_with_paths, path_hash

BLOCK = 32
"""Candidates whose low-rank factors are in memory at a time, and whose sum is one GEMM."""


@dataclass(frozen=True)
class Step:
    """What one step was: enough to make it again.

    Attributes:
        seed, sigma, antithetic: of its population, whose size is the number of weights.
        weights: (n,) w_i of its candidates.
        rate: the learning rate.
    """

    seed: int
    sigma: float
    antithetic: bool
    rate: float
    weights: tuple[float, ...]

    @property
    def population(self) -> Population:
        return Population(self.seed, len(self.weights), (self.sigma,), self.antithetic)


class EvolutionStrategy:
    """Ask for candidates around ``params``, tell their scores, go on from where the update leads.

    Args:
        params: where it begins; copied, floating-point leaves that move to float32 (``Noise``'s own types are for candidates).
        noise: what perturbs, of any distribution and rank.
        size: n, candidates of a step; even with ``antithetic``, at least 2.
        sigma: their noise scale.
        rate: the learning rate, above 0. ``rate_of_length`` gives one by the length of the step.
        antithetic: candidates come in pairs of opposite sign.
        seed: step t has the population of ``derived_seed(seed, "step t")``.
        steps: those of a trajectory to go on from; they are made again.

    Raises:
        ValueError: an argument out of range; it is named.

    >>> import perturbjax as pj
    >>> params, noise = {"w": jnp.zeros(3)}, pj.Noise()
    >>> score = jax.jit(jax.vmap(lambda c, w: -jnp.sum((pj.perturb({"w": w}, c, noise)["w"] - 1.0) ** 2), in_axes=(0, None)))
    >>> strategy = EvolutionStrategy(params, noise, size=20, sigma=0.1, rate=0.1)
    >>> for _ in range(40):
    ...     strategy.tell(score(strategy.ask()[:], strategy.params["w"]))
    >>> bool(jnp.allclose(strategy.params["w"], 1, atol=0.15)), len(strategy.steps)
    (True, 40)
    """

    def __init__(
        self,
        params: Params,
        noise: Noise,
        size: int,
        sigma: float,
        rate: float,
        antithetic: bool = False,
        seed: int = 0,
        steps: Sequence[Step] = (),
    ):
        if size < 2:
            raise ValueError(f"size {size}: at least 2 candidates are required, or there are no ranks")
        if not 0 < rate < float("inf"):
            raise ValueError(f"rate {rate}: a number above 0 is required")
        Population(0, size, (sigma,), antithetic)
        self.noise, self.size, self.sigma, self.rate, self.antithetic, self.seed = noise, size, sigma, rate, antithetic, seed
        self.steps: tuple[Step, ...] = tuple(steps)
        self.params = rebuild(params, noise, self.steps)

    def ask(self) -> Population:
        """The candidates of the next step, around ``params``."""
        return Population(derived_seed(self.seed, f"step {len(self.steps)}"), self.size, (self.sigma,), self.antithetic)

    def tell(self, scores: np.ndarray | jax.Array) -> None:
        """Moves ``params`` by the (n,) scores of the candidates that ``ask`` gave; higher is better.

        Raises:
            ValueError: scores of another shape, or not finite.
        """
        values = np.asarray(scores, np.float64)
        if values.shape != (self.size,) or not np.isfinite(values).all():
            raise ValueError(f"scores of shape {values.shape}: ({self.size},) finite numbers are required, one of each candidate asked for")
        step = Step(self.ask().seed, self.sigma, self.antithetic, self.rate, tuple(centred_ranks(values).tolist()))
        self.params = updated(self.params, self.noise, step)
        self.steps = (*self.steps, step)


def centred_ranks(scores: np.ndarray) -> Float64[np.ndarray, " n"]:
    """Ranks from -1/2, the lowest score, to 1/2, the highest; ties share their mean, so equal scores move nothing.

    >>> centred_ranks(np.array([0.1, 0.9, 0.5, 0.5])).tolist()
    [-0.5, 0.5, 0.0, 0.0]
    """
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - (counts + 1) / 2) / (len(scores) - 1) - 0.5)[inverse]


def rate_of_length(length: float, sigma: float, size: int) -> float:
    """The rate with which a step without ties is about ``length`` times as long as a candidate.

    n ranks without ties have the squares n / 12 in all, and independent noise adds up in squares (antithetic pairs, in which ranks
    oppose each other, to at most the double). Ties, which say less, make it shorter.
    """
    return length * sigma**2 * math.sqrt(12 * size)


def rebuild(params: Params, noise: Noise, steps: Sequence[Step]) -> Params:
    """The parameters after the steps of a trajectory that began at ``params``, which are not written; moving leaves in float32."""
    wide = widened(params, noise)
    for step in steps:
        wide = updated(wide, noise, step)
    return wide


def widened(params: Params, noise: Noise) -> Params:
    """A copy of the leaves that move, in float32, beside the others as they are: what ``displaced`` may take."""
    found = moving(params, noise)
    return map_with_paths(
        lambda path, leaf: jnp.array(leaf, wide_dtype(jnp.result_type(leaf)), copy=True) if path in found else leaf, params
    )


def updated(params: Params, noise: Noise, step: Step) -> Params:
    """The parameters after one step. Leaves that move are donated: they cannot be read any more."""
    candidates = step.population[:]
    factors = step.rate / (len(step.weights) * step.sigma) * np.asarray(candidates.sign, np.float64) * step.weights
    return displaced(params, noise, candidates, factors)


def displaced(params: Params, noise: Noise, candidates: Candidate, factors: np.ndarray) -> Params:
    """params + sum over k of factors_k * scale * E_k, leaf by leaf from the keys: no candidate's weights are ever made.

    Args:
        params: leaves that move are donated, and cannot be read any more; scales are theirs.
        noise: of the candidates.
        candidates: (n,) batched. Their sigma and sign are not read: they belong into the factors.
        factors: (n,) float64.
    """
    leaf_scales = scales(params, noise)
    # Factors are multiplied a block at a time; full-rank noise is made one by one, and padding would be made too.
    padding = 0 if noise.rank is None else -len(factors) % BLOCK
    keys, weights = jnp.pad(candidates.key_data, [(0, padding), (0, 0)]), np.pad(factors, (0, padding)).astype(np.float32)

    def one(path: str, leaf: jax.Array) -> jax.Array:
        if path not in leaf_scales:
            return leaf
        return moved(leaf, keys, weights * leaf_scales[path], np.uint32(path_hash(path)), noise.of_leaf(path, leaf.shape))

    return map_with_paths(one, params)


@partial(jax.jit, static_argnames="noise", donate_argnums=0)
def moved(leaf: jax.Array, keys: jax.Array, weights: jax.Array, hash_of_path: jax.Array, noise: Noise) -> jax.Array:
    """leaf + sum of weights * E over (n, 2) keys of candidates; ``noise`` is that of the leaf, and n a multiple of ``BLOCK`` where it has a
    rank. Temporaries do not depend on n, and leaves of one shape share a program."""
    block = Block(leaf.shape)

    def add_one(total: jax.Array, one: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        key, weight = one
        return noise.drawn.add(total, weight, fold_in(key, hash_of_path), block), None

    def add_block(total: jax.Array, some: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        keys, weights = some
        folded = jax.vmap(lambda key: fold_in(key, hash_of_path))(keys)
        a, b = jax.vmap(lambda key: low_rank_factors(key, block, noise.rank or 1, noise.distribution))(folded)
        weighted = a * (weights / math.sqrt(noise.rank or 1))[(slice(None), *[None] * (a.ndim - 1))]
        return total + jnp.einsum("n...ir,n...jr->...ij", weighted, b, precision=jax.lax.Precision.HIGHEST), None

    zeros = jnp.zeros(leaf.shape, jnp.float32)
    if noise.rank is None:
        total, _ = jax.lax.scan(add_one, zeros, (keys, weights))
    else:
        total, _ = jax.lax.scan(add_block, zeros, (keys.reshape(-1, BLOCK, 2), weights.reshape(-1, BLOCK)))
    return leaf + total.astype(leaf.dtype)
