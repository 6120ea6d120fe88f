"""Nets: the decoder, its configuration and its vocabulary; a vision transformer. Nothing here reads a file."""

from perturbjax.models.config import DecoderConfig as DecoderConfig
from perturbjax.models.config import param_shapes as param_shapes
