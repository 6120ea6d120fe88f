"""The shape of a decoder, independent of the file it came from."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from perturbjax.errors import InputError

if TYPE_CHECKING:
    from perturbjax.models.decoder import Decoder
    from perturbjax.models.partition import TensorParallel


@dataclass(frozen=True)
class SlidingWindow:
    """Layers that see only the last tokens, between layers that see all.

    Attributes:
        size: tokens that such a layer sees, the newest among them.
        every: one layer in so many sees all: layers ``every``, 2 ``every``, ..., counted from 1.
        rope_theta: rotary base of the layers that slide; their frequencies are not scaled.
    """

    size: int
    every: int
    rope_theta: float

    def slides(self, layer: int) -> bool:
        """Whether a layer, counted from 0, sees only the window."""
        return (layer + 1) % self.every != 0


@dataclass(frozen=True)
class DecoderConfig:
    """A rotary, grouped-query decoder with gated ffns. The defaults are Llama's; each other field is what some family computes otherwise.

    Attributes:
        architecture: name of the model family in the table of ``pretrained.families``; nothing in this room reads it.
        vocab_size: V, rows of the embedding.
        hidden_size: D.
        intermediate_size: F; of one expert where there are several.
        num_layers: L.
        num_heads: query heads H.
        num_kv_heads: key/value heads; H is a multiple of it.
        head_dim: size of one head.
        rope_theta: rotary base.
        rope_factors: per-frequency divisors of the rotary frequencies, ``head_dim // 2`` of them (Llama 3.x scaling), or None.
        norm_eps: epsilon of every RMS norm.
        tied_head: the head is the transposed embedding.
        qkv_bias: query, key and value projections have biases (Qwen2).
        max_positions: longest context the model was made for, in tokens.
        norms: where attention and ffn have norms: "pre", before them; "post", after them, before they are added to the residual stream;
            "both".
        norm_offset: what is added to the scale of every norm.
        qk_norm: queries and keys are normalized before they are rotated: "head", each head by itself, with one scale for all heads;
            "projection", all heads as one vector; None: they are not.
        query_scalar: scores are divided by its root; None: by that of ``head_dim``.
        window: which layers slide; None: all see all.
        activation: of the gate of the ffn.
        num_experts: each layer's ffn is so many experts, and a router; 0: it is one ffn.
        experts_per_token: how many of them each token goes through.
        scaled_embedding: embeddings of tokens are multiplied by the root of D, rounded to their dtype.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    norm_eps: float
    tied_head: bool
    qkv_bias: bool = False
    rope_factors: tuple[float, ...] | None = None
    max_positions: int = 8192
    norms: Literal["pre", "post", "both"] = "pre"
    norm_offset: float = 0.0
    qk_norm: Literal["head", "projection"] | None = None
    query_scalar: float | None = None
    window: SlidingWindow | None = None
    activation: Literal["silu", "gelu_tanh"] = "silu"
    num_experts: int = 0
    experts_per_token: int = 0
    scaled_embedding: bool = False

    def __post_init__(self) -> None:
        if self.experts_per_token > self.num_experts:
            raise InputError(f"experts of a token: {self.experts_per_token}; at most {self.num_experts} is required, the number of experts")

    def partition(self, size: int) -> TensorParallel | None:
        """The layout on a "model" axis of ``size``; None where one device has all of it."""
        from perturbjax.models.partition import partition

        return partition(self, size)

    def build(self, params: Any, parallel: TensorParallel | None = None) -> Decoder:
        """The decoder over its parameters; see ``decoder_from_params``. Flax is imported when the first model is built."""
        from perturbjax.models.decoder import decoder_from_params

        return decoder_from_params(self, params, parallel)


def untied(config: DecoderConfig, params: Any) -> tuple[DecoderConfig, dict[str, Any]]:
    """The same decoder with a head of its own, which begins as the transposed embedding; as it is where it has one."""
    if not config.tied_head:
        return config, params
    return dataclasses.replace(config, tied_head=False), {**params, "head": {"kernel": params["embed"]["embedding"].T}}


STACKED = r"(^|/)layers/"
"""Paths whose leaves are stacked along a leading L axis, as ``Noise.stacked`` takes it."""


def param_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter; the layout that loaders fill and ``Decoder`` expects.

    Kernels are (in, out); everything under ``layers`` is stacked along a leading L axis, because the decoder scans over layers. Kernels of
    experts are stacked over these besides: (L, X, in, out).
    Rotary embedding is the rotate-half form of Hugging Face.
    """
    d, f, n = config.hidden_size, config.intermediate_size, config.num_layers
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    stack = (n, config.num_experts) if config.num_experts else (n,)
    shapes: dict[str, tuple[int, ...]] = {
        "embed/embedding": (config.vocab_size, d),
        "layers/attention_norm/scale": (n, d),
        "layers/attention/q/kernel": (n, d, q),
        "layers/attention/k/kernel": (n, d, kv),
        "layers/attention/v/kernel": (n, d, kv),
        "layers/attention/o/kernel": (n, q, d),
        "layers/mlp_norm/scale": (n, d),
        "layers/mlp/gate/kernel": (*stack, d, f),
        "layers/mlp/up/kernel": (*stack, d, f),
        "layers/mlp/down/kernel": (*stack, f, d),
        "norm/scale": (d,),
    }
    if config.qkv_bias:
        shapes |= {f"layers/attention/{name}/bias": (n, size) for name, size in (("q", q), ("k", kv), ("v", kv))}
    if config.num_experts:
        shapes["layers/mlp/router/kernel"] = (n, d, config.num_experts)
    if config.norms != "pre":
        shapes |= {f"layers/{part}_post_norm/scale": (n, d) for part in ("attention", "mlp")}
    if config.norms == "post":
        del shapes["layers/attention_norm/scale"], shapes["layers/mlp_norm/scale"]
    if config.qk_norm is not None:
        sizes = {"head": (config.head_dim, config.head_dim), "projection": (q, kv)}[config.qk_norm]
        shapes |= {f"layers/attention/{name}_norm/scale": (n, size) for name, size in zip(("q", "k"), sizes, strict=True)}
    if not config.tied_head:
        shapes["head/kernel"] = (d, config.vocab_size)
    return shapes


def used_parameters(config: DecoderConfig) -> int:
    """Parameters that one token goes through: all of them, but for the experts that are not chosen. Of the embedding, all of it."""
    total = 0
    for shape in param_shapes(config).values():
        experts = len(shape) == 4
        total += math.prod(shape) * (config.experts_per_token if experts else 1) // (config.num_experts if experts else 1)
    return total


def forward_flops(config: DecoderConfig, rows: int, tokens: float, logits: int) -> float:
    """Multiply-adds times two of ``rows`` sequences of ``tokens`` with logits at ``logits`` positions: matrices (of experts those that a
    token goes through), attention (half of the square, or what a window leaves of it), head."""
    matrices = used_parameters(config) - config.vocab_size * config.hidden_size * (1 if config.tied_head else 2)
    window, layers = config.window, range(config.num_layers)
    reach = [min(tokens, window.size) if window and window.slides(layer) else tokens for layer in layers]
    attention = 2 * 2 * config.num_heads * config.head_dim * rows * sum(last * (tokens - last / 2) for last in reach)
    return 2 * matrices * rows * tokens + attention + 2 * config.vocab_size * config.hidden_size * logits
