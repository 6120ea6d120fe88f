"""Pretrained decoders: the configuration, loaders, tokenizer and chat template, export."""

from perturbjax.models.config import SUPPORTED_ARCHITECTURES as SUPPORTED_ARCHITECTURES
from perturbjax.models.config import DecoderConfig as DecoderConfig
from perturbjax.models.config import param_shapes as param_shapes
from perturbjax.pretrained.model import Model as Model
from perturbjax.pretrained.model import load_model as load_model
