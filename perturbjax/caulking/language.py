"""A choice task for the grid of a language model: encoded questions, their loss and error, and the methods.

Axis letters: N questions, C choices, W rows a question, T tokens, Q asked positions of a row. Where every choice is one token, a question
is one row with one asked position, and C logits are read there; else each choice is a row of its own. Scores are log-probabilities of the
choices; the loss is the cross-entropy of their softmax, the error the fraction of questions whose right choice is not the highest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax.caulking.config import Grid
from perturbjax.caulking.program import Method
from perturbjax.errors import InputError
from perturbjax.inference.engine import encode_prompts
from perturbjax.models.adapters import Bottleneck, LoRA, bitfit, full, head
from perturbjax.models.attention import causal_mask
from perturbjax.models.config import DecoderConfig, param_shapes
from perturbjax.models.decoder import Decoder
from perturbjax.pretrained import Model
from perturbjax.tasks.base import Example, Task, Template
from perturbjax.tree import nest, path_hash

TEST_ROWS = 16
"""Questions of one forward pass of the error."""


@dataclass(frozen=True)
class Questions:
    """Encoded questions.

    Attributes:
        arrays: ``tokens`` (N, W, T), ``lengths`` (N, W), ``query`` and ``labels`` (N, W, Q) (or ``labels`` (N, 1, C), of the choices at
            the last token), ``weights`` as ``labels``, 0 on padding, ``answer`` (N,), the number of the right choice.
        single: every choice is one token.
        tokens: of all rows, padding not counted.
    """

    arrays: dict[str, np.ndarray]
    single: bool
    tokens: int

    @property
    def padded_tokens(self) -> int:
        """Of one question, padding included: what a compiled program computes."""
        return int(np.prod(self.arrays["tokens"].shape[1:]))


def encode_questions(model: Model, task: Task, examples: Sequence[Example], template: Template, least: int = 0) -> Questions:
    """Questions as arrays of one shape.

    Args:
        least: T at least, so that training and test rows have one shape.

    Raises:
        InputError: a question is longer than the model's context, or they differ in the number of choices.
    """
    prompts, choices = encode_prompts(model, task, examples, template, 0)
    counts = {len(each) for each in choices}
    if len(counts) > 1:
        raise InputError(
            f"`target` {task.name}: questions of one number of choices are required, these have {min(counts)} to {max(counts)}"
        )
    single = all(len(choice) == 1 for each in choices for choice in each)
    rows = [[(p, [c[0] for c in each])] if single else [(p + c[:-1], c) for c in each] for p, each in zip(prompts, choices, strict=True)]
    longest, asked = (max(len(row[part]) for each in rows for row in each) for part in (0, 1))
    width, t = len(rows[0]), max(least, -(-longest // 8) * 8)
    tokens, lengths = np.zeros((len(rows), width, t), np.int32), np.zeros((len(rows), width), np.int32)
    query, labels = (np.zeros((len(rows), width, asked), np.int32) for _ in range(2))
    weights = np.zeros(labels.shape, np.float32)
    for number, each in enumerate(rows):
        for w, (row, ids) in enumerate(each):
            first = len(row) - (1 if single else len(ids))
            tokens[number, w, : len(row)], lengths[number, w] = row, len(row)
            query[number, w, : len(ids)] = first if single else first + np.arange(len(ids))
            labels[number, w, : len(ids)], weights[number, w, : len(ids)] = ids, 1
    answer = np.array([example.choices.index(example.answer) for example in examples], np.int32)
    arrays = {"tokens": tokens, "lengths": lengths, "query": query, "labels": labels, "weights": weights, "answer": answer}
    return Questions(arrays, single, int(lengths.sum()))


def choice_scores(decoder: Decoder, batch: dict[str, jax.Array], single: bool, remat: bool = False) -> jax.Array:
    """Log-probability of each choice, up to what is common to a question's choices: float32 (B, C)."""
    b, w, t = batch["tokens"].shape
    tokens, lengths, query, labels = (batch[name].reshape(b * w, -1) for name in ("tokens", "lengths", "query", "labels"))
    positions = jnp.broadcast_to(jnp.arange(t)[None], (b * w, t))
    hidden, _ = decoder(tokens, positions, causal_mask(positions < lengths), remat=remat)
    if single:
        last = jnp.take_along_axis(hidden, query[:, :1, None], axis=1)[:, 0]
        return decoder.logits_at(last, labels)
    asked = jnp.take_along_axis(hidden, query[:, :, None], axis=1)
    logits = decoder.logits(asked)
    found = jnp.take_along_axis(logits, labels[:, :, None], axis=-1)[..., 0] - jax.nn.logsumexp(logits, axis=-1)
    return jnp.sum(batch["weights"] * found.reshape(b, w, -1), axis=-1)


@dataclass(frozen=True)
class ChoiceProblem:
    """Loss and error of a decoder on questions, for ``run_grid``; hashable, static."""

    config: DecoderConfig
    single: bool
    remat: bool = False

    def loss(self, params: Any, batch: Any) -> jax.Array:
        """Mean cross-entropy of the softmax over the choices."""
        logs = jax.nn.log_softmax(choice_scores(self.config.build(_cast(params)), batch, self.single, self.remat), axis=-1)
        return -jnp.take_along_axis(logs, batch["answer"][:, None], axis=1).mean()

    def error(self, params: Any, test: Any) -> jax.Array:
        """Fraction of wrong answers, some questions at a time; NaN where scores are."""
        decoder_of = self.config.build
        count = len(test["answer"])
        blocks = -(-count // TEST_ROWS)
        numbers = jnp.arange(blocks * TEST_ROWS).reshape(blocks, TEST_ROWS)

        def block(numbers: jax.Array) -> jax.Array:
            batch = jax.tree.map(lambda array: array[jnp.minimum(numbers, count - 1)], test)
            scores = choice_scores(decoder_of(_cast(params)), batch, self.single)
            wrong = jnp.where(jnp.isnan(scores).any(axis=1), jnp.nan, (scores.argmax(axis=1) != batch["answer"]).astype(jnp.float32))
            return jnp.sum(jnp.where(numbers < count, wrong, 0.0))

        return jax.lax.map(block, numbers).sum() / count


def make_methods(grid: Grid, config: DecoderConfig) -> dict[str, Method]:
    """The methods that were asked for, of a decoder; with ``head`` it must have one of its own (``models.config.untied``)."""
    made = {
        "lora": LoRA(grid.rank, 2.0 * grid.rank),
        "adapter": Bottleneck(grid.bottleneck),
        "head": None if config.tied_head else head(),
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
