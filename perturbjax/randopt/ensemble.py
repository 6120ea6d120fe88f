"""The K models that vote: which candidates of which population around which base. Never their weights."""

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax.errors import InputError
from perturbjax.noise import Candidate, Noise, Population, perturb, scales
from perturbjax.noise.spec import wide_dtype
from perturbjax.randopt.document import FORMAT, VERSION, EnsembleDocument, Member, read_document, sigma_as_written, write_document
from perturbjax.randopt.voting import MAJORITY, Voting
from perturbjax.tree import Params, fingerprint, leaf_paths, map_with_paths


class Ensemble:
    """Members of a population in rank order, best first.

    Attributes:
        population: where the members come from.
        members: (K,) int64 candidate indices in the whole population.
        noise: how their weights differ from the base's.
        fingerprint: identity of the base; the weights themselves are not kept.
        scores: (K,) float64 search scores, or None.
        voting: how the members vote.
    """

    def __init__(
        self,
        population: Population,
        indices: Sequence[int] | np.ndarray,
        noise: Noise,
        params: Params | str,
        scores: Sequence[float] | np.ndarray | None = None,
        rule: str = MAJORITY,
    ):
        """
        Args:
            population: N candidates.
            indices: (K,) positions in ``population``, best first, as ``top_k`` gives them.
            noise: the noise of the search.
            params: the base parameters, or their fingerprint if that is at hand.
            scores: (K,) search scores of the members, in their order.
            rule: by which they vote, one of ``VOTE_RULES``.

        Raises:
            InputError: no members, an index twice or outside the population, or scores that are not one finite number per member.
        """
        positions = np.asarray(indices)
        if positions.ndim != 1 or not positions.size or not np.issubdtype(positions.dtype, np.integer):
            raise InputError(
                f"indices: a list of at least one candidate index is required, got shape {positions.shape} of {positions.dtype}"
            )
        if len(set(positions.tolist())) < positions.size:
            raise InputError("indices: a candidate occurs twice; every member votes once")
        if positions.min() < 0 or positions.max() >= len(population):
            raise InputError(f"indices: {positions.min()} to {positions.max()} are outside the population's 0 to {len(population) - 1}")
        self.population = population
        self.members = positions.astype(np.int64)
        self.noise = noise
        self.fingerprint = params if isinstance(params, str) else fingerprint(params)
        self.scores = None if scores is None else np.asarray(scores, np.float64)
        if self.scores is not None and self.scores.shape != positions.shape:
            raise InputError(f"scores: shape {self.scores.shape} for {positions.size} members; give one score per member")
        if self.scores is not None and not np.isfinite(self.scores).all():
            raise InputError("scores: every score must be a finite number")
        self.voting = Voting(rule, self.scores)

    def __len__(self) -> int:
        return len(self.members)

    @property
    def candidates(self) -> Candidate:
        """The members, batched along a leading axis (K,), best first."""
        return self.population[self.members]

    def of_rank(self, rank: int) -> int:
        """The index in the population of the member of a rank, 1 being the best; ``InputError`` if there is none."""
        if not 1 <= rank <= len(self):
            raise InputError(f"`rank` {rank}: the ensemble has ranks 1 to {len(self)}")
        return int(self.members[rank - 1])

    def check_base(self, params: Params) -> None:
        """Raise ``InputError`` unless ``params`` are the base that the members were found around. Hashes every byte of them."""
        try:
            found = fingerprint(params)
        except jax.errors.TracerArrayConversionError:
            raise InputError(
                "params: inside jit their fingerprint cannot be checked; call check_base outside and pass check=False"
            ) from None
        if found != self.fingerprint:
            raise InputError(
                f"params: fingerprint {found}, the ensemble was found around {self.fingerprint}; load the base model of the search"
            )

    def apply(self, fn: Callable[[Params, Any], Any], params: Params, x: Any, *, check: bool = True) -> Any:
        """``fn(theta_k, x)`` for every member k, one member in memory at a time.

        Args:
            fn: any JAX function of (parameters, inputs); hashable, and the same object in every call to be compiled once.
            params: the base parameters.
            x: inputs, a pytree of arrays.
            check: compare the fingerprint of ``params`` first; it costs one pass over their bytes, so turn it off in an inner loop.

        Returns:
            Outputs of ``fn`` with a leading axis K, best member first.

        Raises:
            InputError: ``params`` are not the base of this ensemble; both fingerprints are named.

        >>> import perturbjax as pj
        >>> fn = lambda params, x: x @ params["w"]
        >>> params, x, noise = {"w": jnp.eye(3)}, jnp.ones((2, 3)), pj.Noise()
        >>> members = pj.Ensemble(pj.Population(seed=0, size=8, sigmas=(0.1,)), [6, 1], noise, params)
        >>> outputs = members.apply(fn, params, x)
        >>> outputs.shape
        (2, 2, 3)
        >>> bool(jnp.allclose(outputs[0], fn(pj.perturb(params, members.population[6], noise), x)))
        True
        """
        if check:
            self.check_base(params)
        return _apply(fn, self.noise, params, self.candidates, x)

    def save(self, path: str | Path) -> None:
        """Write ensemble.json, atomically; equal ensembles give equal bytes."""
        scores = [None] * len(self) if self.scores is None else self.scores.tolist()
        ranked = zip(self.members.tolist(), scores, strict=True)
        members = tuple(Member(index, sigma_as_written(self.population, index), score) for index, score in ranked)
        document = EnsembleDocument(FORMAT, VERSION, self.fingerprint, self.noise, self.population, members, self.voting.rule)
        write_document(Path(path), document)

    @classmethod
    def load(cls, path: str | Path) -> "Ensemble":
        """Read ensemble.json.

        Raises:
            InputError: the file is missing, not JSON, of another format or version, or says something that cannot be.
        """
        document = read_document(Path(path))
        indices, scores = zip(*((member.index, member.score) for member in document.members), strict=True)
        scores = None if None in scores else scores
        return cls(document.population, indices, document.noise, document.base_fingerprint, scores, document.vote)


@functools.partial(jax.jit, static_argnames=("fn", "noise"))
def _apply(fn: Callable[[Params, Any], Any], noise: Noise, params: Params, candidates: Candidate, x: Any) -> Any:
    leaf_scales = scales(params, noise)  # once, not once per member
    return jax.lax.map(lambda candidate: fn(perturb(params, candidate, noise, leaf_scales), x), candidates)


def merge(params: Params, candidates: Candidate, noise: Noise, weights: Sequence[float] | np.ndarray | None = None) -> Params:
    """One model out of several: the weighted mean of the members' perturbed weights.

    merged = params + sum_k w_k (theta_k - params) / sum_k w_k, summed in float32 (a float64 leaf in float64) and rounded once to each
    leaf's dtype. Besides the base, one such accumulator and one member are in memory. Weighting members by their reward is the idea of
    CoRP (arXiv 2605.31494), which accepts a merge only if held-out data approve of it. There is no such gate here: ``consolidate`` has one,
    and measures what it merges.

    Args:
        params: base parameters.
        candidates: (K,) batched members.
        noise: their noise.
        weights: (K,) not negative, not all zero; None is the plain mean. The members' scores give the reward-weighted merge.

    Raises:
        InputError: weights of another length, negative, not finite, or all zero.
    """
    count = int(candidates.index.shape[0])
    given = np.ones(count) if weights is None else np.asarray(weights, np.float64)
    if given.shape != (count,):
        raise InputError(f"weights: shape {given.shape} for {count} members; give one weight per member")
    if not np.isfinite(given).all() or (given < 0).any() or not given.sum() > 0:
        raise InputError(f"weights: {given.tolist()} must be finite, not negative and not all zero")
    return _merge(noise, params, candidates, (given / math.fsum(given)).astype(np.float32))


@functools.partial(jax.jit, static_argnames=("noise",))
def _merge(noise: Noise, params: Params, candidates: Candidate, weights: jax.Array) -> Params:
    leaf_scales = scales(params, noise)
    base = {path: leaf for path, leaf in leaf_paths(params).items() if path in leaf_scales}

    def add(sums: dict[str, jax.Array], member: tuple[Candidate, jax.Array]) -> tuple[dict[str, jax.Array], None]:
        candidate, weight = member
        theta = leaf_paths(perturb(params, candidate, noise, leaf_scales))
        steps = {path: theta[path].astype(s.dtype) - base[path].astype(s.dtype) for path, s in sums.items()}
        return {path: s + weight.astype(s.dtype) * steps[path] for path, s in sums.items()}, None

    zeros = {path: jnp.zeros(leaf.shape, wide_dtype(leaf.dtype)) for path, leaf in base.items()}
    sums = jax.lax.scan(add, zeros, (candidates, weights))[0]
    return map_with_paths(lambda path, p: (p.astype(sums[path].dtype) + sums[path]).astype(p.dtype) if path in sums else p, params)
