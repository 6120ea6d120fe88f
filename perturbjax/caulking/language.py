"""A choice task as the loss and the error of a grid on a language model, and the methods.

Axis letters as in ``questions``. Scores are log-probabilities of the choices; the loss is the cross-entropy of their softmax, the error the
fraction of questions whose right choice is not the highest.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from perturbjax.caulking.config import Grid
from perturbjax.caulking.program import Method
from perturbjax.caulking.questions import Layout, pack_rows
from perturbjax.caulking.sizes import BySize
from perturbjax.models.adapters import BLOCK_ENDS, Bottleneck, LoRA, bitfit, full, head, of_decoder
from perturbjax.models.config import DecoderConfig, param_shapes
from perturbjax.models.decoder import Decoder
from perturbjax.tree import nest, path_hash

TEST_ROWS = 16
"""Questions of one forward pass of the error."""


def asked_hidden(decoder: Decoder, batch: dict[str, jax.Array], layout: Layout, width: int, remat: bool = False) -> jax.Array:
    """Hidden states of the tokens whose next token is asked for, (B, Q, D)."""
    rows = pack_rows(layout, batch, width)
    hidden, _ = decoder(rows.tokens, rows.positions, rows.mask, remat=remat)
    return jnp.take_along_axis(hidden, rows.query[:, :, None], axis=1).reshape(*batch["query"].shape, -1)


def scores_of_logits(logits_BxQxV: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    """Log-probability of each choice, up to what is common to a question's choices: float32 (B, C)."""
    found = jnp.take_along_axis(logits_BxQxV, batch["labels"], axis=2)
    if "asked" not in batch:
        return found[:, 0]
    return jnp.einsum("bcq,bq->bc", batch["asked"], found[:, :, 0] - jax.nn.logsumexp(logits_BxQxV, axis=2))


def choice_scores(decoder: Decoder, batch: dict[str, jax.Array], layout: Layout, width: int, remat: bool = False) -> jax.Array:
    """Scores of the choices as ``scores_of_logits``, float32 (B, C)."""
    hidden = asked_hidden(decoder, batch, layout, width, remat)
    if "asked" not in batch:
        return decoder.logits_at(hidden[:, 0], batch["labels"][:, 0])
    return scores_of_logits(decoder.logits(hidden), batch)


def cross_entropy(scores_BxC: jax.Array, answer_B: jax.Array) -> jax.Array:
    """Mean cross-entropy of the softmax over the choices, ()."""
    return -jnp.take_along_axis(jax.nn.log_softmax(scores_BxC, axis=-1), answer_B[:, None], axis=1).mean()


def wrong(scores_BxC: jax.Array, answer_B: jax.Array) -> jax.Array:
    """1 where the answer is wrong, 0 where it is right, NaN where scores are: float32 (B,)."""
    return jnp.where(jnp.isnan(scores_BxC).any(axis=1), jnp.nan, (scores_BxC.argmax(axis=1) != answer_B).astype(jnp.float32))


@dataclass(frozen=True)
class ChoiceProblem:
    """Loss and error of a decoder on questions, for ``GridProgram``; hashable, static.

    Attributes:
        config: of the decoder.
        layout: of the questions of a loss; ``test_layout``: of ``TEST_ROWS`` questions of an error.
        remat: as of ``Decoder``.
    """

    config: DecoderConfig
    layout: Layout
    test_layout: Layout
    remat: bool = False

    def loss(self, params: Any, batch: Any, width: int | None = None) -> jax.Array:
        """Mean cross-entropy of the softmax over the choices; in rows of the highest width where none is given."""
        width = self.layout.widths[-1] if width is None else width
        return cross_entropy(choice_scores(self.config.build(_cast(params)), batch, self.layout, width, self.remat), batch["answer"])

    @property
    def loss_by_size(self) -> BySize:
        """The loss in rows of each width."""
        losses = tuple(functools.partial(self.loss, width=width) for width in self.layout.widths)
        return BySize(losses, lambda batch: self.layout.needed(batch["lengths"]))

    def error(self, params: Any, test: Any) -> jax.Array:
        """Fraction of wrong answers, some questions at a time; NaN where scores are."""

        def block(batch: Any) -> jax.Array:
            def scores(params: Any, batch: Any, width: int) -> jax.Array:
                return choice_scores(self.config.build(_cast(params)), batch, self.test_layout, width)

            return wrong(by_width(self.test_layout, scores, params, batch), batch["answer"])

        return jax.lax.map(block, in_blocks(test)).reshape(-1)[: len(test["answer"])].mean()


def by_width(layout: Layout, fn: Any, params: Any, batch: Any) -> jax.Array:
    """``fn(params, batch, width)`` in rows of the first width that holds the batch."""
    branches = [functools.partial(fn, width=width) for width in layout.widths]
    return jax.lax.switch(layout.needed(batch["lengths"]), branches, params, batch)


def in_blocks(test: Any) -> Any:
    """Rows as blocks of ``TEST_ROWS``, the last filled up with the last row."""
    count = len(test["answer"])
    numbers = jnp.minimum(jnp.arange(-(-count // TEST_ROWS) * TEST_ROWS), count - 1).reshape(-1, TEST_ROWS)
    return jax.tree.map(lambda array: array[numbers], test)


def make_methods(grid: Grid, config: DecoderConfig) -> dict[str, Method]:
    """The methods that were asked for, of this decoder; ``head`` is one of ``features.HeadFeatures``."""
    made = {
        "lora": LoRA(grid.rank, 2.0 * grid.rank, of_decoder(config)),
        "adapter": Bottleneck(grid.bottleneck, of_decoder(config, BLOCK_ENDS)),
        "head": head(),
        "bitfit": bitfit(),
        "full": full(),
        "scratch": None,
    }
    return {name: Method(made[name], learning_rate=grid.rate(name), attach=name in ("lora", "adapter")) for name in grid.methods}


def random_params(config: DecoderConfig, dtype: Any) -> Any:
    """key -> parameters of a decoder that nothing has trained: normal with standard deviation fan-in^-1/2 (0.02 for the embedding), norms
    multiply by 1, biases are 0."""

    def init(key: jax.Array) -> dict[str, Any]:
        flat = {}
        for path, shape in param_shapes(config).items():
            name = path.rpartition("/")[2]
            if name == "scale":
                leaf = jnp.full(shape, 1 - config.norm_offset)
            elif name == "bias":
                leaf = jnp.zeros(shape)
            else:
                size = 0.02 if name == "embedding" else 1 / math.sqrt(shape[-2])
                leaf = size * jax.random.normal(jax.random.fold_in(key, path_hash(path)), shape)
            flat[path] = leaf.astype(dtype)
        return nest(flat)

    return init


def _cast(params: Any) -> Any:
    """What is trained is float32; the decoder runs in the type of its embedding, and so do all its leaves."""
    dtype = params["embed"]["embedding"].dtype
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, params)
