"""``TopKDesigner``: a small decoder that says at each position which of the learner's likely tokens a target shall lean to, and how far.

It sees the context, the true next token, and, if so set, the learner's log-probabilities of the candidates. It scores the K candidates
alone, so its head costs nothing of the size of a vocabulary. Float32 throughout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax.models.config import DecoderConfig, param_shapes
from perturbjax.sharding import ShardedDim
from perturbjax.train.language import hidden_at_queries
from perturbjax.tree import nest

OF_A_CANDIDATE = 3
"""Features of a candidate: its log-probability, its probability, whether it is the true token."""
LOG_PROB_SCALE = 0.1
"""Of log-probabilities as an input, which lie between 0 and about -20."""
SILENT_GATE = -2.0
"""The gate's bias at the start, so that targets begin near the true tokens: alpha is 0.12 of its cap."""
GATE_BOUND = 5.0
"""Largest size of the gate's logit: alpha lies between 0.007 and 0.993 of its cap."""

_SHARDED = (
    ("decoder/embed/embedding", 1, 1),
    ("next/kernel", 0, 1),
    ("mlp/up/kernel", 1, 2),
    ("mlp/down/kernel", 0, 2),
    ("query/kernel", 1, 1),
)
"""Path, sharded dim, and its length in widths of the designer, of what is sharded beside the layers."""


@dataclass(frozen=True)
class TopKDesigner:
    """The static shape of a designer (arXiv 2601.22108: hidden 256, 6 layers, 4 heads, K = 64, alpha at most 0.5).

    How context, true token and candidates meet is ours: the paper says only what the designer sees.

    Attributes:
        vocab_size: V, the learner's.
        candidates: K, the true token included.
        hidden: D, width of its decoder.
        layers, heads: of its decoder.
        alpha_max: cap of the share of a target that does not lie on the true token alone.
        sees_log_probs: the learner's log-probabilities of the candidates are an input.
    """

    vocab_size: int
    candidates: int = 64
    hidden: int = 256
    layers: int = 6
    heads: int = 4
    alpha_max: float = 0.5
    sees_log_probs: bool = True

    @property
    def decoder(self) -> DecoderConfig:
        ffn = -(-8 * self.hidden // 3 // 8) * 8  # the size of SwiGLU that has the parameters of a plain MLP of 4 D
        size = self.hidden // self.heads
        return DecoderConfig("designer", self.vocab_size, self.hidden, ffn, self.layers, self.heads, self.heads, size, 1e4, 1e-6, True)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Path of every parameter -> its shape."""
        d, k = self.hidden, self.candidates
        shapes: dict[str, tuple[int, ...]] = {f"decoder/{path}": shape for path, shape in param_shapes(self.decoder).items()}
        shapes |= {"next/kernel": (d, d), "mlp/up/kernel": (d, 2 * d), "mlp/down/kernel": (2 * d, d), "query/kernel": (d, d)}
        shapes |= {"features/kernel": (d, OF_A_CANDIDATE), "gate/kernel": (d, 1), "gate/bias": (1,)}
        if self.sees_log_probs:
            shapes["log_probs/kernel"] = (2 * k, d)
        return shapes

    @property
    def parameters(self) -> int:
        """How many there are."""
        return sum(map(math.prod, self.shapes.values()))

    def init(self, seed: int) -> dict[str, Any]:
        """Random parameters as nested dicts of float32 numpy arrays: normal with 1 / sqrt(inputs), embeddings with 0.02."""
        rng = np.random.default_rng(seed)

        def one(path: str, shape: tuple[int, ...]) -> np.ndarray:
            if path.endswith("/scale"):
                return np.ones(shape, np.float32)
            if path.endswith("/bias"):
                return np.full(shape, SILENT_GATE, np.float32)
            return rng.normal(0, 0.02 if path.endswith("/embedding") else shape[-2] ** -0.5, shape).astype(np.float32)

        return nest({path: one(path, shape) for path, shape in self.shapes.items()})

    def dims(self, size: int) -> dict[str, ShardedDim]:
        """Path -> the sharded dim of a parameter on a "model" axis of ``size``; those that are not named are on every device.

        Its layers are sharded as the learner's. The embedding is sharded by width, and what comes before and after it so that they meet:
        K rows of it are looked up at each position, and by vocabulary all of them would be summed over the devices.
        """
        layout = self.decoder.partition(size)
        dims = {f"decoder/{path}": dim for path, dim in layout.dims(self.decoder).items()} if layout else {}
        dims.pop("decoder/embed/embedding", None)
        if size > 1 and self.hidden % size == 0:
            for path, dim, widths in _SHARDED:
                block = widths * self.hidden // size
                dims[path] = ShardedDim(dim, block, tuple(block * device for device in range(size)))
        return dims

    def states(self, params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        """What it knows of each learned position but for the candidates: (B, Q, D)."""
        decoder = self.decoder.build(params["decoder"])
        hidden = hidden_at_queries(decoder, batch)
        return hidden + decoder.embed.embedding[...][batch["labels"]] * self.hidden**0.5 @ params["next"]["kernel"]

    def targets(self, params: Any, states: jax.Array, ids: jax.Array, log_probs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Alpha (B, Q) in [0, alpha_max], and the log-probabilities of r over the candidates (B, Q, K).

        Args:
            states: of ``states``.
            ids: candidates (B, Q, K), the true token first.
            log_probs: the learner's, of the candidates; not read without ``sees_log_probs``.
        """
        first = jnp.zeros(ids.shape, jnp.float32).at[..., 0].set(1.0)
        if self.sees_log_probs:
            scaled = jnp.maximum(LOG_PROB_SCALE * log_probs, -2.0)
            probs = jnp.exp(log_probs)
            states = states + jnp.concatenate([scaled, probs], axis=-1) @ params["log_probs"]["kernel"]
        else:
            scaled = probs = jnp.zeros(ids.shape, jnp.float32)
        features = jnp.stack([scaled, probs, first], axis=-1)
        up = jax.nn.gelu(_normed(states) @ params["mlp"]["up"]["kernel"])
        mixed = _normed(states + up @ params["mlp"]["down"]["kernel"])
        rows = params["decoder"]["embed"]["embedding"][ids]
        scores = jnp.einsum("bqd,bqkd->bqk", mixed @ params["query"]["kernel"], rows)
        scores = scores + jnp.einsum("bqf,bqkf->bqk", mixed @ params["features"]["kernel"], features)
        gate = _bounded((mixed @ params["gate"]["kernel"])[..., 0] + params["gate"]["bias"][0])
        return self.alpha_max * jax.nn.sigmoid(gate), jax.nn.log_softmax(scores, axis=-1)


@jax.custom_vjp
def _bounded(logit: jax.Array) -> jax.Array:
    """A gate that can open again. r begins near uniform, where its value is below that of the true tokens, so the gate first shuts. Without
    a bound it goes on to alphas of 1e-6, where neither r nor the gate has a gradient left. Slopes that would lead further out are 0."""
    return jnp.clip(logit, -GATE_BOUND, GATE_BOUND)


def _forward(logit: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _bounded(logit), logit


def _backward(logit: jax.Array, slope: jax.Array) -> tuple[jax.Array]:
    outwards = ((logit <= -GATE_BOUND) & (slope < 0)) | ((logit >= GATE_BOUND) & (slope > 0))
    return (jnp.where(outwards, 0.0, slope),)


_bounded.defvjp(_forward, _backward)


def _normed(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
