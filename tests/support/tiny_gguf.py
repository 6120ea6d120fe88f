"""Writes a small Hugging Face fixture as a GGUF file in llama.cpp's layout.

It shares no table with the package: tensor names and the order of rows are stated again here, so that tests check the loader against them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import quantize
from safetensors.numpy import load_file

from support.paths import FIXTURES

_BLOCK = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.bias": "attn_v.bias",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
_POST = {"post_attention_layernorm.weight": "post_attention_norm.weight", "post_feedforward_layernorm.weight": "post_ffw_norm.weight"}
_OTHERWISE = {"olmo2": _POST, "gemma3_text": _POST | {"pre_feedforward_layernorm.weight": "ffn_norm.weight"}}
_OTHER = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}

_PRE_TOKENIZERS = {"llama": "llama-bpe", "qwen2": "qwen2", "qwen3": "qwen2", "olmo2": "dbrx", "gemma3": "dbrx", "qwen3moe": "qwen2"}
_ARCHITECTURES = {"gemma3_text": "gemma3", "qwen3_moe": "qwen3moe"}
_INTERLEAVED = {"llama": ("self_attn.q_proj.weight", "self_attn.k_proj.weight")}


def gguf_tensors(fixture: str) -> dict[str, np.ndarray]:
    """The fixture's tensors under GGUF names, float32, q and k rows in llama.cpp's order for Llama models."""
    config = json.loads((FIXTURES / fixture / "config.json").read_text())
    tensors = {}
    experts: dict[str, dict[int, np.ndarray]] = {}
    for file in sorted((FIXTURES / fixture).glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            tensor = tensor.astype(np.float32)
            if config["model_type"] == "gemma3_text" and name.endswith("norm.weight"):
                tensor = tensor + 1
            if name in _OTHER:
                tensors[_OTHER[name]] = tensor
                continue
            layer, rest = name.removeprefix("model.layers.").split(".", 1)
            if rest.startswith("mlp.experts."):
                *_, number, matrix, _ = rest.split(".")
                stacked = experts.setdefault(f"blk.{layer}.ffn_{matrix.removesuffix('_proj')}_exps.weight", {})
                stacked[int(number)] = tensor
                continue
            if rest in _INTERLEAVED.get(config["model_type"], ()):
                tensor = interleaved(tensor, config["num_attention_heads" if "q_proj" in rest else "num_key_value_heads"])
            tensors[f"blk.{layer}.{(_BLOCK | _OTHERWISE.get(config['model_type'], {}))[rest]}"] = tensor
    return tensors | {name: np.stack([matrices[number] for number in sorted(matrices)]) for name, matrices in experts.items()}


def interleaved(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Row i of the first half of a head goes to row 2i, row i of its second half to row 2i + 1."""
    size = matrix.shape[0] // heads
    out = np.empty_like(matrix)
    for head in range(heads):
        for i in range(size // 2):
            out[head * size + 2 * i] = matrix[head * size + i]
            out[head * size + 2 * i + 1] = matrix[head * size + size // 2 + i]
    return out


def gguf_metadata(fixture: str) -> dict[str, Any]:
    """The fixture's configuration and tokenizer as GGUF metadata."""
    folder = FIXTURES / fixture
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    names = json.loads((folder / "tokenizer_config.json").read_text())
    vocabulary = {token["content"]: token["id"] for token in tokenizer["added_tokens"]} | tokenizer["model"]["vocab"]
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    # Files pad the vocabulary to the rows of the embedding with unused tokens (type 5).
    unused = [f"[PAD{index}]" for index in range(len(tokens), config["vocab_size"])]
    special = {token["content"] for token in tokenizer["added_tokens"]}
    arch = _ARCHITECTURES.get(kind := config["model_type"]) or kind
    rope = config["rope_parameters"].get("full_attention", config["rope_parameters"])
    metadata: dict[str, Any] = {
        f"{arch}.block_count": config["num_hidden_layers"],
        f"{arch}.context_length": config["max_position_embeddings"],
        f"{arch}.embedding_length": config["hidden_size"],
        f"{arch}.feed_forward_length": config["intermediate_size"],
        f"{arch}.attention.head_count": config["num_attention_heads"],
        f"{arch}.attention.head_count_kv": config["num_key_value_heads"],
        f"{arch}.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        f"{arch}.rope.freq_base": rope["rope_theta"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _PRE_TOKENIZERS[arch],
        "tokenizer.ggml.tokens": tokens + unused,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens] + [5] * len(unused),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in tokenizer["model"]["merges"]],
        "tokenizer.ggml.eos_token_id": vocabulary[names["eos_token"]],
        "tokenizer.chat_template": (folder / "chat_template.jinja").read_text(),
    }
    if rope["rope_type"] == "linear":
        metadata |= {f"{arch}.rope.scaling.type": "linear", f"{arch}.rope.scaling.factor": rope["factor"]}
    if arch == "qwen3moe":
        metadata |= {f"{arch}.expert_count": config["num_local_experts"], f"{arch}.expert_used_count": config["num_experts_per_tok"]}
        metadata[f"{arch}.expert_feed_forward_length"] = config["moe_intermediate_size"]
    if arch == "gemma3":
        local = config["rope_parameters"]["sliding_attention"]["rope_theta"]
        every = config["layer_types"].index("full_attention") + 1
        metadata |= {f"{arch}.attention.sliding_window": config["sliding_window"], f"{arch}.attention.sliding_window_pattern": every}
        metadata[f"{arch}.rope.freq_base_swa"] = local
    if "head_dim" in config:
        metadata |= {
            f"{arch}.{key}": config["head_dim"] for key in ("attention.key_length", "attention.value_length", "rope.dimension_count")
        }
    if "bos_token" in names:
        metadata["tokenizer.ggml.bos_token_id"] = vocabulary[names["bos_token"]]
    return metadata


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    types: Mapping[str, gguf.GGMLQuantizationType] | None = None,
    architecture: str | None = None,
) -> Path:
    """Writes the file; ``types`` names the tensors to quantize; None values in ``metadata`` leave a key out."""
    architecture = architecture or next(key.split(".")[0] for key in metadata if key.endswith(".block_count"))
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        match value:
            case None:
                continue
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
            case _:
                writer.add_array(key, value)
    for name, tensor in tensors.items():
        kind = (types or {}).get(name)
        if kind is None:
            writer.add_tensor(name, np.ascontiguousarray(tensor))
        else:
            writer.add_tensor(name, quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
