"""Hugging Face's config.json <-> ``DecoderConfig``: what is understood, what is refused, and Llama 3's rotary scaling."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from perturbjax.errors import InputError
from perturbjax.models.config import DecoderConfig

ARCHITECTURES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}
"""Hugging Face class name -> ``DecoderConfig.architecture``."""

# What transformers assumes for a key that is absent.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "num_key_value_heads": None},
    "qwen2": {"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "num_key_value_heads": 32},
}
_LARGEST = 100_000_000
_DEFAULT_THETA = 10000.0
_DEFAULT_WINDOW_LAYERS = 28
_LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
# Llama 3.1, 3.2 and 3.3 share these and differ in ``factor`` only (8 or 32).
_LLAMA3_RELEASED = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def llama3_rope_factors(theta: float, head_dim: int, rope: Mapping[str, Any]) -> tuple[float, ...]:
    """Divisors of the rotary frequencies, ``head_dim // 2`` of them, for Llama 3's scaling.

    Wavelengths shorter than original / high_freq_factor stay; longer than original / low_freq_factor are slowed by ``factor``; between, the
    frequency is interpolated linearly in original / wavelength (Llama 3.1 release; transformers' rope type "llama3").
    """
    factor, low, high, original = (float(rope[key]) for key in _LLAMA3_KEYS)
    frequency = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    share = np.clip((original * frequency / (2 * np.pi) - low) / (high - low), 0.0, 1.0)
    return tuple(float(value) for value in 1.0 / ((1.0 - share) / factor + share))


def decoder_config(raw: Mapping[str, Any], where: str) -> DecoderConfig:
    """The ``DecoderConfig`` of a parsed config.json.

    Args:
        raw: the parsed file.
        where: names the file in errors, e.g. ``--model /models/x: config.json``.

    Raises:
        InputError: an architecture or option that the decoder does not implement, or a missing or senseless value.
    """
    architecture = _architecture(raw, where)
    _refuse_unsupported(raw, architecture, where)
    raw = _DEFAULTS[architecture] | {key: value for key, value in raw.items() if value is not None or key == "num_key_value_heads"}
    hidden, layers, heads = (_positive(raw, key, where) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    kv_heads = heads if raw["num_key_value_heads"] is None else _positive(raw, "num_key_value_heads", where)
    head_dim = _positive(raw, "head_dim", where) if "head_dim" in raw else hidden // heads
    if heads % kv_heads or head_dim % 2 or ("head_dim" not in raw and hidden % heads):
        sizes = f"hidden_size {hidden}, {heads} heads, {kv_heads} key-value heads and head_dim {head_dim}"
        raise InputError(f"{where}: {sizes} do not divide as a decoder needs")
    theta, factors = _rope(raw, head_dim, where)
    return DecoderConfig(
        architecture=architecture,
        vocab_size=_positive(raw, "vocab_size", where),
        hidden_size=hidden,
        intermediate_size=_positive(raw, "intermediate_size", where),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rope_theta=theta,
        rope_factors=factors,
        norm_eps=_number(raw, "rms_norm_eps", where),
        tied_head=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=architecture == "qwen2",
        max_positions=_positive(raw, "max_position_embeddings", where),
    )


def hf_config(config: DecoderConfig, stop_ids: tuple[int, ...], bos_id: int | None, pad_id: int) -> dict[str, Any]:
    """A config.json for a model that came without one (GGUF).

    Rotary factors are expressed as Llama 3 scaling when they are that of a released Llama 3.x; other factors are left out, and ``export``
    refuses such a model because the file would describe another one.
    """
    raw: dict[str, Any] = {
        "architectures": [name for name, short in ARCHITECTURES.items() if short == config.architecture],
        "model_type": config.architecture,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "tie_word_embeddings": config.tied_head,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": bos_id,
        "eos_token_id": list(stop_ids),
        "pad_token_id": pad_id,
    }
    if config.architecture == "llama":
        raw |= {"attention_bias": False, "mlp_bias": False}
    else:
        raw |= {"use_sliding_window": False}
    if config.rope_factors is not None:
        released = _LLAMA3_RELEASED | {"factor": max(config.rope_factors)}
        if same_factors(llama3_rope_factors(config.rope_theta, config.head_dim, released), config.rope_factors):
            raw["rope_scaling"] = {"rope_type": "llama3"} | released
    return raw


def same_factors(a: tuple[float, ...] | None, b: tuple[float, ...] | None) -> bool:
    """Equal up to float32 rounding (GGUF stores the factors in float32)."""
    if a is None or b is None:
        return a is b
    return len(a) == len(b) and bool(np.allclose(a, b, rtol=1e-5, atol=0.0))


def _architecture(raw: Mapping[str, Any], where: str) -> str:
    supported = ", ".join(ARCHITECTURES)
    names = raw.get("architectures")
    if names is None:
        name = next((name for name, short in ARCHITECTURES.items() if short == raw.get("model_type")), None)
        names = [name] if name else [f"model_type {raw.get('model_type')!r}"]
    if not isinstance(names, list) or len(names) != 1 or names[0] not in ARCHITECTURES:
        raise InputError(f"{where}: architecture {names} is not supported; supported are {supported}")
    return ARCHITECTURES[names[0]]


def _refuse_unsupported(raw: Mapping[str, Any], architecture: str, where: str) -> None:
    def refuse(what: str, instead: str) -> None:
        raise InputError(f"{where}: {what} is not supported; required: {instead}")

    if raw.get("hidden_act", "silu") not in ("silu", "swish"):
        refuse(f"hidden_act {raw['hidden_act']!r}", "silu")
    if raw.get("quantization_config"):
        refuse("quantization_config", "unquantised safetensors, or a GGUF file")
    if raw.get("mlp_bias"):
        refuse("mlp_bias true", "false")
    if architecture == "llama" and raw.get("attention_bias"):
        refuse("attention_bias true", "false")
    layer_types = raw.get("layer_types")
    if layer_types is None:
        first = _DEFAULT_WINDOW_LAYERS if raw.get("max_window_layers") is None else raw["max_window_layers"]
        sliding = bool(raw.get("use_sliding_window")) and not (
            isinstance(first, int) and first >= _positive(raw, "num_hidden_layers", where)
        )
    else:
        sliding = not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types)
    if architecture == "qwen2" and sliding:
        refuse("sliding window attention", "use_sliding_window false and only full_attention layers")


def _rope(raw: Mapping[str, Any], head_dim: int, where: str) -> tuple[float, tuple[float, ...] | None]:
    # transformers 5 writes one ``rope_parameters``; before it there were ``rope_theta`` and ``rope_scaling``.
    rope: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        if not isinstance(raw.get(key, {}), Mapping):
            raise InputError(f"{where}: {key} {raw[key]!r} is not an object")
        rope |= raw.get(key, {})
    theta = _number({"rope_theta": rope.get("rope_theta", raw.get("rope_theta", _DEFAULT_THETA))}, "rope_theta", where)
    partial = rope.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))
    if partial != 1.0:
        raise InputError(f"{where}: partial_rotary_factor {partial!r} is not supported; required: 1.0")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise InputError(f"{where}: rope type {kind!r} is not supported; supported are 'default' and 'llama3'")
    for key in _LLAMA3_KEYS:
        _number(rope, key, where)
    if not rope["low_freq_factor"] < rope["high_freq_factor"]:
        raise InputError(f"{where}: low_freq_factor {rope['low_freq_factor']} must be below high_freq_factor {rope['high_freq_factor']}")
    return theta, llama3_rope_factors(theta, head_dim, rope)


def _number(raw: Mapping[str, Any], key: str, where: str) -> float:
    value = raw.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise InputError(f"{where}: {key} {'is missing' if key not in raw else repr(value)}; a positive number is required")
    return float(value)


def _positive(raw: Mapping[str, Any], key: str, where: str) -> int:
    value = raw.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST:
        raise InputError(f"{where}: {key} {'is missing' if key not in raw else repr(value)}; a whole number of 1 to {_LARGEST} is required")
    return value
