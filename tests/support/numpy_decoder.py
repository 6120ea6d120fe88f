"""Every model family written a second time in NumPy: one sequence, loops over layers, heads and positions, from the tensors of the files.

It shares nothing with the package: names, options and formulas are those of the papers and of transformers' model files.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np


def numpy_logits(raw: dict, tensors: Mapping[str, Any], ids: np.ndarray) -> np.ndarray:
    """Logits (T, V) of one sequence, float64.

    Args:
        raw: the parsed config.json, as transformers 5 writes it.
        tensors: by their names in safetensors files.
        ids: of the tokens.
    """
    return _Net(raw, {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}).logits(ids)


class _Net:
    def __init__(self, raw: dict, tensors: dict[str, np.ndarray]):
        self.raw, self.tensors, self.kind = raw, tensors, raw["model_type"]
        self.head_dim = raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"]

    def logits(self, ids: np.ndarray) -> np.ndarray:
        embedding = self.tensors["model.embed_tokens.weight"]
        x = embedding[ids]
        if self.kind == "gemma3_text":
            x = x * np.sqrt(self.raw["hidden_size"])
        for layer in range(self.raw["num_hidden_layers"]):
            x = self.block(x, layer)
        head = embedding if self.raw.get("tie_word_embeddings") else self.tensors["lm_head.weight"]
        return self.norm(x, "model.norm") @ head.T

    def block(self, x: np.ndarray, layer: int) -> np.ndarray:
        at = f"model.layers.{layer}."
        if self.kind == "olmo2":
            x = x + self.norm(self.attention(x, layer), at + "post_attention_layernorm")
            return x + self.norm(self.ffn(x, at), at + "post_feedforward_layernorm")
        if self.kind == "gemma3_text":
            mixed = self.attention(self.norm(x, at + "input_layernorm"), layer)
            x = x + self.norm(mixed, at + "post_attention_layernorm")
            mixed = self.ffn(self.norm(x, at + "pre_feedforward_layernorm"), at)
            return x + self.norm(mixed, at + "post_feedforward_layernorm")
        x = x + self.attention(self.norm(x, at + "input_layernorm"), layer)
        return x + self.ffn(self.norm(x, at + "post_attention_layernorm"), at)

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        weight = self.tensors[name + ".weight"]
        normal = x / np.sqrt((x**2).mean(-1, keepdims=True) + self.raw["rms_norm_eps"])
        return normal * (1 + weight if self.kind == "gemma3_text" else weight)

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.tensors[name + ".weight"].T + self.tensors.get(name + ".bias", 0.0)

    def attention(self, x: np.ndarray, layer: int) -> np.ndarray:
        at, size = f"model.layers.{layer}.self_attn.", self.head_dim
        q, k, v = (self.linear(x, at + f"{name}_proj") for name in "qkv")
        if self.kind == "olmo2":
            q, k = self.norm(q, at + "q_norm"), self.norm(k, at + "k_norm")
        slides = self.raw.get("layer_types", [""] * 99)[layer] == "sliding_attention"
        scale = (self.raw["query_pre_attn_scalar"] if self.kind == "gemma3_text" else size) ** -0.5
        group = self.raw["num_attention_heads"] // self.raw["num_key_value_heads"]
        mixed = np.zeros_like(q)
        for head in range(self.raw["num_attention_heads"]):
            own, shared = slice(head * size, (head + 1) * size), slice(head // group * size, (head // group + 1) * size)
            q_head, k_head = q[:, own], k[:, shared]
            if self.kind in ("qwen3", "qwen3_moe", "gemma3_text"):
                q_head, k_head = self.norm(q_head, at + "q_norm"), self.norm(k_head, at + "k_norm")
            q_head, k_head = self.rotated(q_head, slides), self.rotated(k_head, slides)
            for t in range(len(x)):
                first = max(0, t - self.raw["sliding_window"] + 1) if slides else 0
                scores = k_head[first : t + 1] @ q_head[t] * scale
                weights = np.exp(scores - scores.max())
                mixed[t, own] = weights / weights.sum() @ v[first : t + 1, shared]
        return self.linear(mixed, at + "o_proj")

    def rotated(self, x: np.ndarray, slides: bool) -> np.ndarray:
        rope = self.raw["rope_parameters"]
        if self.kind == "gemma3_text":
            rope = rope["sliding_attention" if slides else "full_attention"]
        half = self.head_dim // 2
        out = np.empty_like(x)
        for i in range(half):
            frequency = rope["rope_theta"] ** (-2 * i / self.head_dim)
            if rope["rope_type"] == "linear":
                frequency /= rope["factor"]
            elif rope["rope_type"] == "llama3":
                frequency = _llama3(frequency, rope)
            angle = np.arange(len(x)) * frequency
            out[:, i] = x[:, i] * np.cos(angle) - x[:, i + half] * np.sin(angle)
            out[:, i + half] = x[:, i + half] * np.cos(angle) + x[:, i] * np.sin(angle)
        return out

    def ffn(self, x: np.ndarray, at: str) -> np.ndarray:
        if self.kind != "qwen3_moe":
            return self.gated(x, at + "mlp.")
        scores = self.linear(x, at + "mlp.gate")
        probabilities = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        out = np.zeros_like(x)
        for t in range(len(x)):
            chosen = np.argsort(-probabilities[t])[: self.raw["num_experts_per_tok"]]
            for expert in chosen:
                share = probabilities[t, expert] / probabilities[t, chosen].sum()
                out[t] += share * self.gated(x[t], at + f"mlp.experts.{expert}.")
        return out

    def gated(self, x: np.ndarray, at: str) -> np.ndarray:
        gate = self.linear(x, at + "gate_proj")
        if self.kind == "gemma3_text":
            gate = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        else:
            gate = gate / (1 + np.exp(-gate))
        return self.linear(gate * self.linear(x, at + "up_proj"), at + "down_proj")


def _llama3(frequency: float, rope: dict) -> float:
    wavelength, original = 2 * np.pi / frequency, rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    if wavelength < original / high:
        return frequency
    if wavelength > original / low:
        return frequency / rope["factor"]
    smooth = (original / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / rope["factor"] + smooth * frequency
