"""What searchers cost, by one formula."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import jax.numpy as jnp

from perturbjax.models.config import DecoderConfig, used_parameters
from perturbjax.noise import Noise
from perturbjax.noise.spec import moving
from perturbjax.tree import Params, leaf_paths


@dataclass(frozen=True)
class Cost:
    """Floating-point operations of a decoder under a noise; a multiply-add is two.

    - forward: 2 a token and weight of the layers (of experts those that a token uses). Attention's own products are left out, and the head,
      which is asked at few tokens.
    - backward: twice the forward pass.
    - an inner product with a gradient, or a candidate's part of an ES update: 2 r a weight that moves, r the rank, 1 for full rank.
    - noise is counted apart, in numbers drawn: one a weight that moves; of low rank, r (rows + columns) a matrix.

    Attributes:
        weights: of the layers, as one token meets them.
        moved: weights that the noise moves.
        rank: of the noise; 1 for full rank.
        drawn: numbers of one making of the noise.
    """

    weights: int
    moved: int
    rank: int
    drawn: int

    @classmethod
    def of(cls, config: DecoderConfig, params: Params, noise: Noise) -> Self:
        """Of a decoder; shapes are enough for ``params``."""
        weights = used_parameters(config) - config.vocab_size * config.hidden_size * (1 if config.tied_head else 2)
        shapes = {path: jnp.shape(leaf) for path, leaf in leaf_paths(params).items()}
        shapes = {path: shapes[path] for path in moving(params, noise)}
        ranks = {path: noise.of_leaf(path, shape).rank for path, shape in shapes.items()}
        drawn = sum(
            math.prod(shape) if (rank := ranks[path]) is None else rank * math.prod(shape[:-2]) * sum(shape[-2:])
            for path, shape in shapes.items()
        )
        return cls(weights, sum(map(math.prod, shapes.values())), noise.rank or 1, drawn)

    def forward(self, tokens: float) -> float:
        return 2.0 * self.weights * tokens

    def gradient(self, tokens: float) -> float:
        """Forward and backward."""
        return 3.0 * self.forward(tokens)

    def products(self, candidates: int) -> float:
        """Inner products of so many candidates with a gradient, or the sum of their noise in an update."""
        return 2.0 * self.rank * self.moved * candidates
