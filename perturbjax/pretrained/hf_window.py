"""Sliding windows in Hugging Face's config.json <-> ``SlidingWindow``: which layers slide, and their rotary base."""

import reprlib
from collections.abc import Mapping
from typing import Any

from perturbjax.errors import InputError
from perturbjax.models.config import SlidingWindow

_FULL, _SLIDING = "full_attention", "sliding_attention"


def window_defaults(window: SlidingWindow) -> dict[str, Any]:
    """The keys of config.json that say a family's usual window."""
    return {"sliding_window": window.size, "sliding_window_pattern": window.every, "rope_local_base_freq": window.rope_theta}


def window_every(raw: Mapping[str, Any], layers: int) -> int:
    """One layer in how many sees all: by ``layer_types``, or before it by ``sliding_window_pattern``.

    Raises:
        InputError: the layers are in no such order.
    """
    kinds, usual = raw.get("layer_types"), raw["sliding_window_pattern"]
    if isinstance(usual, bool) or not isinstance(usual, int) or usual < 1:
        raise InputError(f"sliding_window_pattern {reprlib.repr(usual)}; a positive whole number is required")
    if kinds is None:
        return usual
    if isinstance(kinds, list) and len(kinds) == layers and set(map(str, kinds)) <= {_FULL, _SLIDING}:
        every = kinds.index(_FULL) + 1 if _FULL in kinds else max(usual, layers + 1)
        if kinds == layer_types(SlidingWindow(1, every, 1.0), layers):
            return every
    required = f"one of {_FULL} and {_SLIDING} for each of {layers} layers, every n-th being {_FULL}"
    raise InputError(f"layer_types {reprlib.repr(kinds)} is not supported; required: {required}")


def layer_types(window: SlidingWindow, layers: int) -> list[str]:
    """The kind of each layer, as transformers calls it."""
    return [_SLIDING if window.slides(layer) else _FULL for layer in range(layers)]


def split_ropes(raw: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json as it would be if all layers saw all, and as if all slid, as far as rotary settings go.

    transformers 5 writes ``rope_parameters`` for each kind of layer; before it there was ``rope_local_base_freq`` for those that slide,
    beside the ``rope_theta`` and ``rope_scaling`` of the others.
    """
    both = raw.get("rope_parameters")
    rest = {key: value for key, value in raw.items() if key != "rope_parameters"}
    local = {key: value for key, value in rest.items() if key != "rope_scaling"} | {"rope_theta": raw["rope_local_base_freq"]}
    if both is None:
        return rest, local
    if not isinstance(both, Mapping) or not both.keys() <= {_FULL, _SLIDING}:
        raise InputError(f"rope_parameters {reprlib.repr(both)} is not supported; required: settings for {_FULL} and {_SLIDING}")
    return rest | {"rope_parameters": both.get(_FULL, {})}, local | {"rope_parameters": both.get(_SLIDING, {})}
