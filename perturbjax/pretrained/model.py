"""A loaded model: parameters, configuration and tokenizer."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perturbjax.models.config import DecoderConfig

if TYPE_CHECKING:
    from perturbjax.pretrained.tokenizer import Tokenizer


@dataclass(frozen=True)
class Model:
    """A pretrained decoder with all that is needed to prompt it and to write it back.

    Attributes:
        name: short name for people.
        source: one line for people: where it came from and how it was quantized. Say it beside any figure.
        config: its shape.
        params: nested plain dict of numpy arrays or ``StoredLeaf``, paths and shapes as ``param_shapes(config)``. Read-only by convention.
        tokenizer: text <-> ids and the chat format.
        hf_config: the config.json it came with, or an equivalent one; ``export`` writes it.
    """

    name: str
    source: str
    config: DecoderConfig
    params: dict[str, Any]
    tokenizer: "Tokenizer"
    hf_config: dict[str, Any]
