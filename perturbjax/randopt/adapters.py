"""Members of an ensemble as LoRA adapters: exactly, where low-rank noise moves matrices alone, or the nearest of a rank."""

import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax.errors import InputError
from perturbjax.models.adapters import LoRA
from perturbjax.noise import Block, Candidate, Noise, scales
from perturbjax.noise.low_rank import low_rank_factors
from perturbjax.noise.values import fold_in
from perturbjax.pretrained import Model
from perturbjax.pretrained.adapter_files import adapted_matrices
from perturbjax.tree import Params, leaf_paths, nest, path_hash


@dataclass(frozen=True)
class WeightsAdapter:
    """Changed weights theta of a model as an adapter of it.

    Attributes:
        lora: the adapter; its scale is 1.
        trained: its factors, float32.
        error: |theta - (W + A B)| / |theta - W|, Frobenius norms over all parameters: what the adapter leaves out of the change, the
            rounding of theta to its dtype included.
        left_out: paths of the leaves that moved and have no place in an adapter.
    """

    lora: LoRA
    trained: dict[str, Any]
    error: float
    left_out: tuple[str, ...]


def exact_adapter(model: Model, theta: Params, candidates: Candidate, noise: Noise) -> WeightsAdapter:
    """The mean change of K members of rank r as an adapter of rank K r: their factors side by side.

    Args:
        model: the base.
        theta: the weights that it stands for: ``perturb`` of one member, or ``merge`` of several. They are the sum, rounded to its dtype.
        candidates: (K,) batched members.
        noise: theirs.

    Raises:
        InputError: the noise is dense, or moves a leaf that is no matrix of an adapter; both are named.
    """
    if noise.rank is None:
        raise InputError(
            "`format` peft: the noise of the run has full rank, which no adapter holds; give `adapter_rank` for the nearest one of a rank"
        )
    leaf_scales = scales(model.params, noise)
    if others := sorted(leaf_scales.keys() - adapted_matrices(model)):
        excluded = "search with rules that exclude them, such as norm=exclude,embed=exclude,bias=exclude"
        raise InputError(
            f"`format` peft: the noise also moves {', '.join(others)}, for which an adapter has no place; "
            f"give `adapter_rank` for the nearest adapter without them, or {excluded}"
        )
    leaves = leaf_paths(model.params)
    shapes = tuple((path, jnp.shape(leaves[path])) for path in leaf_scales)
    return _adapter(model, theta, _factors(noise, shapes, leaf_scales, candidates), ())


def nearest_adapter(model: Model, theta: Params, rank: int) -> WeightsAdapter:
    """The adapter of a rank that is nearest to changed weights, in the Frobenius norm (Eckart and Young, 1936): the first singular vectors
    of the change of each matrix. Leaves that are no matrices of an adapter are left out.

    Raises:
        InputError: a rank above the smaller dim of a matrix that moved, or no such matrix has moved.
    """
    matrices, left_out = adapted_matrices(model), []
    flat: dict[str, np.ndarray] = {}
    for path, step in _steps(model.params, theta):
        if path not in matrices:
            left_out.append(path)
            continue
        if rank > (most := min(step.shape[-2:])):
            raise InputError(f"`adapter_rank` {rank}: at most {most} is required, the smaller dim of {path}; lower it")
        u, s, vt = np.linalg.svd(step, full_matrices=False)
        flat |= {f"{path}/a": u[..., :rank], f"{path}/b": s[..., :rank, None] * vt[..., :rank, :]}
    if not flat:
        raise InputError(f"`format` peft: of what moved ({', '.join(left_out)}) an adapter holds nothing; export the whole model")
    return _adapter(model, theta, flat, tuple(left_out))


@functools.partial(jax.jit, static_argnames=("noise", "shapes"))
def _factors(
    noise: Noise, shapes: tuple[tuple[str, tuple[int, ...]], ...], leaf_scales: Mapping[str, jax.Array], candidates: Candidate
) -> dict[str, jax.Array]:
    """PATH/a (..., R, K r) and PATH/b (..., K r, C) of the leaves of these shapes (..., R, C): their product is the mean of the members'
    sigma * sign * scale * E."""
    rank = noise.rank or 1

    def one(candidate: Candidate, path: str, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        a, b = low_rank_factors(fold_in(candidate.key_data, path_hash(path)), Block(shape), rank, noise.distribution)
        return a, (candidate.sigma * candidate.sign * leaf_scales[path] / jnp.float32(math.sqrt(rank))) * b

    flat: dict[str, jax.Array] = {}
    for path, shape in shapes:
        a, b = jax.vmap(functools.partial(one, path=path, shape=shape))(candidates)
        flat |= {f"{path}/a": jnp.concatenate(a, axis=-1), f"{path}/b": jnp.concatenate(b / jnp.float32(len(b)), axis=-1).mT}
    return flat


def _adapter(model: Model, theta: Params, factors: Mapping[str, Any], left_out: tuple[str, ...]) -> WeightsAdapter:
    flat = {path: np.asarray(leaf) for path, leaf in factors.items()}
    paths = [path[:-2] for path in flat if path.endswith("/a")]
    missing = total = 0.0
    for path, step in _steps(model.params, theta):
        total += float(np.square(step).sum(dtype=np.float64))
        left = step - flat[f"{path}/a"] @ flat[f"{path}/b"] if path in paths else step
        missing += float(np.square(left).sum(dtype=np.float64))
    rank = flat[f"{paths[0]}/a"].shape[-1]
    lora = LoRA(rank, float(rank), tuple(f"^{re.escape(path)}$" for path in paths))
    return WeightsAdapter(lora, nest(flat), math.sqrt(missing / total) if total else 0.0, left_out)


def _steps(params: Params, theta: Params) -> Iterator[tuple[str, np.ndarray]]:
    """Path and change, float32, of the leaves that moved."""
    moved = leaf_paths(theta)
    for path, leaf in leaf_paths(params).items():
        step = np.asarray(moved[path], np.float32) - np.asarray(leaf, np.float32)
        if step.any():
            yield path, step
