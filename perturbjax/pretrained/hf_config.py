"""Hugging Face's config.json <-> ``DecoderConfig``: what is understood, what is refused, and Llama 3's rotary scaling."""

import reprlib
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from perturbjax.errors import InputError
from perturbjax.models.config import DecoderConfig, SlidingWindow
from perturbjax.pretrained.families import FAMILIES, Family
from perturbjax.pretrained.hf_window import layer_types, split_ropes, window_defaults, window_every

_LARGEST = 100_000_000
_LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_ROPE_KEYS = {"default": (), "linear": ("factor",), "llama3": _LLAMA3_KEYS}
"""Supported rope types, and the settings that each of them reads."""
# Llama 3.1, 3.2 and 3.3 share these and differ in ``factor`` only (8 or 32).
_LLAMA3_RELEASED = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def llama3_rope_factors(theta: float, head_dim: int, rope: Mapping[str, Any]) -> tuple[float, ...]:
    """Divisors of the rotary frequencies, ``head_dim // 2`` of them, for Llama 3's scaling.

    Wavelengths shorter than original / high_freq_factor stay; longer than original / low_freq_factor are slowed by ``factor``; between, the
    frequency is interpolated linearly in original / wavelength (Llama 3.1 release; transformers' rope type "llama3").
    """
    factor, low, high, original = (float(rope[key]) for key in _LLAMA3_KEYS)
    frequency = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    unscaled = np.clip((original * frequency / (2 * np.pi) - low) / (high - low), 0.0, 1.0)
    return tuple(float(value) for value in 1.0 / ((1.0 - unscaled) / factor + unscaled))


def decoder_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """The ``DecoderConfig`` of a parsed config.json.

    Raises:
        InputError: an architecture or option that the decoder does not implement, or a missing or senseless value. The message begins with
            "config.json: ".
    """
    try:
        return _decoder_config(raw)
    except InputError as error:
        raise InputError(f"config.json: {error}") from error


def _decoder_config(raw: Mapping[str, Any]) -> DecoderConfig:
    family = _family(raw)
    for option, is_set, required in family.refusals:
        if is_set(raw):
            shown = f"{option} {reprlib.repr(raw[option])}" if option in raw else option
            raise InputError(f"{shown} is not supported; required: {required}")
    raw = {**family.defaults, **{key: value for key, value in raw.items() if value is not None or key == "num_key_value_heads"}}
    hidden, layers, heads = (_positive(raw, key) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    kv_heads = heads if raw["num_key_value_heads"] is None else _positive(raw, "num_key_value_heads")
    head_dim = _positive(raw, "head_dim") if "head_dim" in raw else hidden // heads
    if heads % kv_heads or head_dim % 2 or ("head_dim" not in raw and hidden % heads):
        sizes = f"hidden_size {hidden}, {heads} heads, {kv_heads} key-value heads and head_dim {head_dim}"
        raise InputError(f"{sizes} do not divide as a decoder needs")
    window = None
    if family.window is not None:
        raw = window_defaults(family.window) | raw
        every = window_every(raw, layers)
        raw, local = split_ropes(raw)
        local_theta, factors = _rope(local, head_dim)
        if factors is not None:
            raise InputError("scaled rotary frequencies in layers that slide are not supported; required: rope type 'default'")
        window = SlidingWindow(_positive(raw, "sliding_window"), every, local_theta) if every > 1 else None
    theta, factors = _rope(raw, head_dim)
    config = DecoderConfig(
        architecture=family.name,
        vocab_size=_positive(raw, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_positive(raw, "intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rope_theta=theta,
        rope_factors=factors,
        norm_eps=_number(raw, "rms_norm_eps"),
        tied_head=bool(raw["tie_word_embeddings"]),
        max_positions=_positive(raw, "max_position_embeddings"),
        window=window,
        **family.decoder,
    )
    keys = {field: next((key for key in names.hf if key in raw), names.hf[0]) for field, names in family.numbers.items()}
    return replace(config, **{field: _positive(raw, key) for field, key in keys.items()})


def hf_config(config: DecoderConfig, stop_ids: tuple[int, ...], bos_id: int | None, pad_id: int) -> dict[str, Any]:
    """A config.json for a model that came without one (GGUF).

    Rotary factors are expressed as Llama 3 scaling when they are that of a released Llama 3.x, as linear scaling when they are all one;
    others are left out, and ``export`` refuses such a model because the file would describe another one.
    """
    family = FAMILIES[config.architecture]
    raw: dict[str, Any] = {
        "architectures": [family.hf_class],
        "model_type": family.model_type,
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
        **family.hf_extras,
        **{names.hf[0]: getattr(config, field) for field, names in family.numbers.items()},
    }
    if config.window is not None:
        raw |= {"sliding_window": config.window.size, "layer_types": layer_types(config.window, config.num_layers)}
        raw["rope_local_base_freq"] = config.window.rope_theta
    if config.rope_factors is not None:
        released = _LLAMA3_RELEASED | {"factor": max(config.rope_factors)}
        if same_factors(llama3_rope_factors(config.rope_theta, config.head_dim, released), config.rope_factors):
            raw["rope_scaling"] = {"rope_type": "llama3"} | released
        elif same_factors((config.rope_factors[0],) * len(config.rope_factors), config.rope_factors):
            raw["rope_scaling"] = {"rope_type": "linear", "factor": config.rope_factors[0]}
    return raw


def same_factors(a: tuple[float, ...] | None, b: tuple[float, ...] | None) -> bool:
    """Whether the factors are equal up to float32 rounding (GGUF stores them in float32)."""
    if a is None or b is None:
        return a is b
    return len(a) == len(b) and bool(np.allclose(a, b, rtol=1e-5, atol=0.0))


def _family(raw: Mapping[str, Any]) -> Family:
    """The family that ``architectures`` names, or ``model_type`` where that key is absent."""
    names, kind = raw.get("architectures"), raw.get("model_type")
    for family in FAMILIES.values():
        if names == [family.hf_class] or (names is None and kind == family.model_type):
            return family
    shown = f"model_type {kind!r}" if names is None else reprlib.repr(names)
    raise InputError(f"architecture {shown} is not supported; supported are {', '.join(family.hf_class for family in FAMILIES.values())}")


def _rope(raw: Mapping[str, Any], head_dim: int) -> tuple[float, tuple[float, ...] | None]:
    # transformers 5 writes one ``rope_parameters``; before it there were ``rope_theta`` and ``rope_scaling``.
    for key in ("rope_scaling", "rope_parameters"):
        if not isinstance(raw.get(key, {}), Mapping):
            raise InputError(f"{key} {reprlib.repr(raw[key])} is not an object")
    ropes = raw.get("rope_scaling", {}), raw.get("rope_parameters", {})
    rope: dict[str, Any] = {**ropes[0], **ropes[1]}
    theta = _number({"rope_theta": rope.get("rope_theta", raw["rope_theta"])}, "rope_theta")
    if (partial := rope.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))) != 1.0:
        raise InputError(f"partial_rotary_factor {partial!r} is not supported; required: 1.0")
    kinds = [rope[key] for rope in ropes for key in ("rope_type", "type") if key in rope] or ["default"]
    kind = next((kind for kind in kinds if str(kind) not in _ROPE_KEYS), kinds[0])
    if str(kind) not in _ROPE_KEYS or kinds != [kind] * len(kinds):
        shown = " and ".join(reprlib.repr(each) for each in dict.fromkeys(map(str, kinds)))
        raise InputError(f"rope type {shown} is not supported; supported is one of {', '.join(map(repr, _ROPE_KEYS))}")
    known = ("rope_type", "type", "rope_theta", "partial_rotary_factor", *_ROPE_KEYS[kind])
    if unknown := [key for key in rope if key not in known]:
        raise InputError(f"rope type {kind!r} with {', '.join(map(reprlib.repr, unknown))} is not supported; required: without")
    if kind == "default":
        return theta, None
    for key in _ROPE_KEYS[kind]:
        _number(rope, key)
    if kind == "linear":
        return theta, (float(rope["factor"]),) * (head_dim // 2)
    if not rope["low_freq_factor"] < rope["high_freq_factor"]:
        raise InputError(f"low_freq_factor {rope['low_freq_factor']} must be below high_freq_factor {rope['high_freq_factor']}")
    return theta, llama3_rope_factors(theta, head_dim, rope)


def _number(raw: Mapping[str, Any], key: str) -> float:
    value = raw.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
        raise InputError(f"{key} {'is missing' if key not in raw else reprlib.repr(value)}; a positive number is required")
    return float(value)


def _positive(raw: Mapping[str, Any], key: str) -> int:
    value = raw.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST:
        raise InputError(f"{key} {'is missing' if key not in raw else reprlib.repr(value)}; a whole number of 1 to {_LARGEST} is required")
    return value
