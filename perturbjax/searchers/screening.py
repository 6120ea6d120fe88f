"""Gradient screening: a huge population ranked by one gradient, without running any of its candidates.

To first order a candidate changes a smooth objective by <sigma sign scale E, g>, with g the objective's gradient at the base: one
number a candidate. The noise E is made again from the candidate's key, leaf by leaf, multiplied by the gradient and added up; it is never
stored. For low-rank noise, E = A B^T / sqrt(r), the product is that of the columns of A with G B, so a block of candidates is one matrix
product (GEMM) a leaf and E is never formed.

Cost model, of a candidate: 2 r floating-point operations a moving weight (r = 1 for full rank), which is what one token's forward pass
takes with that weight; and the noise, one number a weight, or r (rows + columns) numbers a matrix of low rank. Memory: the gradient, and
``PIECE`` numbers of noise (of low rank, the factors of ``BLOCK`` candidates of one leaf), whatever N is.

What it can find is limited: the products of N independent candidates are normal with deviation sigma |scale g|, so the best of N = 100,000
lies about 4.3 deviations up. A candidate's own length is sigma sqrt(number of weights), thousands of deviations: the best candidate is
still a random one, moved a little along the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64, Int64

from perturbjax import _compat
from perturbjax.noise import Block, Noise, Population, Slice
from perturbjax.noise.low_rank import low_rank_factors
from perturbjax.noise.values import fold_in
from perturbjax.runs.console import SILENT, Progress
from perturbjax.scoring import top_k
from perturbjax.tree import Params, leaf_paths, path_hash

BLOCK = 64
"""Candidates whose low-rank factors are in memory at a time, and whose products share a GEMM."""
PIECE = 2**18
"""Numbers of full-rank noise in memory at a time."""
CALL = 512
"""Candidates of one compiled call."""


def inner_products(
    gradient: Params,
    population: Population,
    noise: Noise,
    leaf_scales: Mapping[str, jax.Array],
    indices: np.ndarray | None = None,
    progress: Progress = SILENT,
) -> Float64[np.ndarray, " n"]:
    """The change of the objective that a gradient predicts for candidates: sigma sign <scale E, g>, summed over the leaves that move.

    Args:
        gradient: of the objective at the base, a tree in the base's shapes.
        population: N candidates.
        noise: what perturbs.
        leaf_scales: ``noise.scales(params, noise)``.
        indices: (n,) of the candidates; all N when left out.
        progress: told how far it is.

    >>> import perturbjax as pj
    >>> from perturbjax.noise import scales
    >>> params = gradient = {"w": jnp.ones((2, 3))}
    >>> noise, population = pj.Noise("rademacher"), pj.Population(seed=0, size=4, sigmas=(0.5,))
    >>> found = inner_products(gradient, population, noise, scales(params, noise))
    >>> theta = pj.perturb(params, population[2], noise)
    >>> float(found[2]), float((theta["w"] - params["w"]).sum())
    (-1.0, -1.0)
    """
    indices = np.arange(len(population)) if indices is None else np.asarray(indices, np.int64)
    # Antithetic partners share noise: it is made once for both.
    _, first, inverse = np.unique(population.noise_number(indices), return_index=True, return_inverse=True)
    # Summed over the leaves a call at a time: of a huge population no more than one number a candidate is kept.
    pieces = [np.sum(list(each.values()), axis=0) for each in _calls(gradient, population, noise, leaf_scales, indices[first], progress)]
    signs = np.where(indices % 2 == 1, -1.0, 1.0) if population.antithetic else 1.0
    return population.sigma_of(indices).astype(np.float64) * signs * np.concatenate([np.zeros(0), *pieces])[inverse]


def leaf_products(
    gradient: Params,
    population: Population,
    noise: Noise,
    leaf_scales: Mapping[str, jax.Array],
    indices: np.ndarray,
    progress: Progress = SILENT,
) -> dict[str, Float64[np.ndarray, " n"]]:
    """Path -> <scale E, g> of a leaf for the (n,) candidates ``indices``: the change for a sigma of 1 and a sign of +1. Arguments as for
    ``inner_products``."""
    calls = list(_calls(gradient, population, noise, leaf_scales, indices, progress))
    return {path: np.concatenate([np.zeros(0), *(each[path] for each in calls)]) for path in leaf_paths(gradient) if path in leaf_scales}


def _calls(
    gradient: Params,
    population: Population,
    noise: Noise,
    leaf_scales: Mapping[str, jax.Array],
    indices: np.ndarray,
    progress: Progress,
) -> Iterator[dict[str, np.ndarray]]:
    """What ``leaf_products`` returns, for the candidates of one compiled call after the other."""
    if unknown := leaf_scales.keys() - leaf_paths(gradient).keys():
        raise ValueError(f"gradient: has no leaf {min(unknown)!r}, which the noise moves; give a gradient in the shapes of the base")
    leaves = {path: jnp.asarray(leaf, jnp.float32) for path, leaf in leaf_paths(gradient).items() if path in leaf_scales}
    scaled = {path: float(leaf_scales[path]) for path in leaves}
    width = block_of(noise)
    call = -(-min(CALL, max(1, len(indices))) // width) * width
    program = _program(noise)
    with progress.bar("screening", len(indices), unit="candidate") as bar:
        for start in range(0, len(indices), call):
            piece = indices[start : start + call]
            keys = population[np.resize(piece, call)].key_data  # the last call is padded with candidates of its own
            made = jax.device_get(program(keys, leaves))
            yield {path: scaled[path] * values[: len(piece)].astype(np.float64) for path, values in made.items()}
            bar.update(start + len(piece))


def block_of(noise: Noise) -> int:
    """Candidates whose products are made at a time; full-rank noise, which shares nothing between them, is made one by one."""
    return 1 if noise.rank is None else BLOCK


@cache
def _program(noise: Noise) -> Any:
    return jax.jit(partial(products_of_keys, noise=noise), compiler_options=_compat.compiler_options(jax.default_backend()))


def products_of_keys(keys: jax.Array, leaves: dict[str, jax.Array], noise: Noise) -> dict[str, jax.Array]:
    """Path -> float32 (n,) <E, g> for the (n, 2) keys of candidates, n a multiple of ``block_of``: what is compiled. Its temporaries do not
    depend on n."""

    def of_block(block: jax.Array) -> dict[str, jax.Array]:
        return {path: _of_leaf(block, path, leaf, noise.of_leaf(path, leaf.shape)) for path, leaf in leaves.items()}

    found = jax.lax.map(of_block, keys.reshape(-1, block_of(noise), 2))
    return {path: values.reshape(-1) for path, values in found.items()}


def _of_leaf(keys: jax.Array, path: str, leaf: jax.Array, noise: Noise) -> jax.Array:
    """(n,) products of one leaf with the noise of (n, 2) keys."""
    keys, block = jax.vmap(lambda key: fold_in(key, path_hash(path)))(keys), Block(leaf.shape)
    if noise.rank is None:
        return jax.lax.map(lambda key: _dense_product(key, block, leaf, noise), keys)
    *_, rows, columns = leaf.shape
    matrices = leaf.reshape(-1, rows, columns)
    a, b = jax.vmap(lambda key: low_rank_factors(key, block, noise.rank or 1, noise.distribution))(keys)
    # (matrices, candidates x rank, side): the factors are put in the order of the product, so that no copy of the gradient is made.
    a, b = (jnp.moveaxis(factor.reshape(len(keys), -1, *factor.shape[-2:]), (1, 3), (0, 2)) for factor in (a, b))
    half = jnp.einsum("lxi,lij->lxj", a.reshape(len(matrices), -1, rows), matrices, precision=jax.lax.Precision.HIGHEST)
    return (half.reshape(b.shape) * b).sum((0, 2, 3)) / math.sqrt(noise.rank)


def _dense_product(key: jax.Array, block: Block, leaf: jax.Array, noise: Noise) -> jax.Array:
    """() product of one candidate, so many rows at a time that their noise stays in a cache."""
    draw = noise.drawn.values
    if leaf.ndim < 2:
        return (draw(key, block) * leaf).sum()
    *leading, rows, columns = leaf.shape
    height = max(n for n in range(1, rows + 1) if rows % n == 0 and (n == 1 or n * columns <= PIECE))

    def add_rows(total: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
        index = jnp.unravel_index(number, (*leading, rows // height))
        place, piece = block, leaf
        for dim, (at, size) in enumerate(zip(index, (*[1] * len(leading), height), strict=True)):
            place = place.take(dim, Slice(at * size, size))
            piece = jax.lax.dynamic_slice_in_dim(piece, at * size, size, dim)
        return total + draw(key, place) * piece, None

    # Added up element by element, and once to one number: XLA:CPU makes a sum of noise in a loop without vectors, ten times as slow.
    zeros = jnp.zeros((*[1] * len(leading), height, columns), jnp.float32)
    return jax.lax.scan(add_rows, zeros, jnp.arange(math.prod(leading) * (rows // height)))[0].sum()


class Screened(NamedTuple):
    """Candidates that are worth running: (n,) positions with the highest products, best first, and (m,) drawn from the others."""

    promising: Int64[np.ndarray, " n"]
    drawn: Int64[np.ndarray, " m"]

    @property
    def all(self) -> np.ndarray:
        """(n + m,) those with the highest products first."""
        return np.concatenate(self)


def choose(products: np.ndarray, count: int, explore: float, seed: int) -> Screened:
    """Chooses the candidates to run: the most promising, and a share of others that keeps diversity.

    Candidates that a gradient puts first are alike in the one direction that it knows; those that are drawn are not, and show in passing
    what the screening is worth.

    Args:
        products: (N,) of ``inner_products``.
        count: how many are chosen in all, 1 <= count <= N.
        explore: share of them, from 0 to 1, that is drawn at random from the others, rounded to the nearest number of candidates.
        seed: of the draw.

    Raises:
        ValueError: an argument out of range.

    >>> choose(np.array([0.1, 0.4, 0.2, 0.3]), 2, explore=0.0, seed=0).promising
    array([1, 3])
    """
    if not 1 <= count <= len(products):
        raise ValueError(f"count {count}: a number from 1 to the {len(products)} candidates is required")
    if not 0 <= explore <= 1:
        raise ValueError(f"explore {explore}: a share from 0 to 1 is required")
    drawn = round(explore * count)
    best = top_k(products, count - drawn) if drawn < count else np.zeros(0, np.int64)
    others = np.setdiff1d(np.arange(len(products)), best)
    return Screened(best, np.sort(np.random.default_rng(seed).choice(others, drawn, replace=False)))
