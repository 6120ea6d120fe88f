"""Which strategy a chunk of candidates gets: a cost model in a few lines, so that the choice can be checked by hand.

Costs are per moving weight and candidate, in token equivalents: 1 is what one token's multiply-add with a weight takes. A candidate of T
tokens costs T for the products alone. On top comes, for

copy      copies * (noise + copy): every weight's noise, and writing and re-reading the perturbed weight, once a compiled program (low-rank
          noise costs as much as dense there: XLA draws the factors anew for each element of their product);
lazy      passes * (noise + store): noise again in every pass over the weights (a slot of packed rows, a decode step), stored one matrix at
          a time; of embedding rows only those that are looked up, which counts as nothing. Low-rank factors are drawn once beforehand;
low_rank  factor * T + launch * passes: two thin products beside each dot, in every pass. Only for float32 matrices: a narrower type rounds
          the perturbed weight, which the factors beside the base do not, so candidates would be other models than those that vote.

The constants are fitted by hand to one table of ``perturbjax bench`` on a CPU of 2 cores (SmolLM2-135M, float32), where a row's cost is
(plain rate / rate - 1) * tokens. No other platform has been measured; until one is, they serve as the guess.
A strategy whose memory does not fit is not considered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import jax.numpy as jnp

from perturbjax.errors import InputError
from perturbjax.noise import DISTRIBUTIONS, Noise
from perturbjax.noise.spec import moving
from perturbjax.tree import Params, leaf_paths

Strategy = Literal["lazy", "copy", "low_rank"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
"""How the noise of a candidate meets the base weights.

lazy: made at the point of use, in every pass over the weights; one layer's noise exists at a time for each candidate in flight.
copy: one perturbed copy of the weights per candidate in flight, made inside the compiled program; the noise is paid once.
low_rank: noise as its two factors beside a product with the base weights that all candidates in flight share. A dot that rounds the weight
    on the way (a cast; bfloat16 or TF32 arithmetic of an accelerator) makes the noise at the point of use, as lazy does.
"""

LOW_RANK_COST = 2.0
COPY_COST = 45.0
STORE_COST = 5.0
FACTOR_COST = 0.05
LAUNCH_COST = 2.0


@dataclass(frozen=True)
class Work:
    """What one candidate has to do.

    Attributes:
        tokens: put through the model.
        passes: over the moving weights that lie in dots; 0.79 where one pass uses 79 % of them.
        copies: compiled programs that the candidate goes through (one a bucket of row lengths), each with a perturbed copy of its own.
        copy_bytes: of one perturbed copy per candidate in flight.
        factors: whether the noise can be applied as factors beside the weights (``has_factors``).
    """

    tokens: int
    passes: float
    copies: int
    copy_bytes: int
    factors: bool


def has_factors(params: Params, noise: Noise) -> bool:
    """Whether low-rank noise can be applied as factors beside the weights: every matrix that moves is float32 and so rounds nothing."""
    leaves = leaf_paths(params)
    matrices = [leaves[path] for path in moving(params, noise) if noise.of_leaf(path, jnp.shape(leaves[path])).rank is not None]
    return noise.rank is not None and all(leaf.dtype == jnp.float32 for leaf in matrices)


def check_strategy(strategy: str, params: Params, noise: Noise) -> None:
    """Refuses a strategy that there is not, or that cannot give the candidates of this noise around ``params`` (shapes are enough).

    Raises:
        InputError: naming the strategies that can.
    """
    if strategy not in STRATEGIES:
        raise InputError(f"strategy {strategy!r}: must be one of {', '.join(STRATEGIES)}")
    if strategy != "low_rank":
        return
    if noise.rank is None:
        raise InputError("strategy 'low_rank': the noise has full rank; give it a rank, or use lazy or copy")
    if not has_factors(params, noise):
        raise InputError(
            "strategy 'low_rank': requires float32 for every matrix that moves, because a narrower type rounds the perturbed weight and "
            "factors beside it do not; use lazy or copy, or float32 parameters"
        )


def costs(work: Work, noise: Noise) -> dict[Strategy, float]:
    """Token equivalents per weight that each strategy adds to the products; only strategies that noise and weights allow."""
    dense = DISTRIBUTIONS[noise.distribution].cost
    made = dense if noise.rank is None else LOW_RANK_COST
    table: dict[Strategy, float] = {"copy": work.copies * (dense + COPY_COST), "lazy": work.passes * (made + STORE_COST)}
    if work.factors:
        table["low_rank"] = FACTOR_COST * work.tokens + LAUNCH_COST * work.passes
    return table


def cheapest(work: Work, noise: Noise, free_bytes: int | None) -> Strategy:
    """The cheapest strategy whose memory fits into ``free_bytes`` of a device (None: unknown, taken as enough)."""
    table = costs(work, noise)
    if free_bytes is not None and work.copy_bytes > free_bytes:
        del table["copy"]
    return min(table, key=lambda name: table[name])
