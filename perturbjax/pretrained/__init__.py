"""Files to parameters and back: loaders, tokenizers, chat templates, export."""

from perturbjax.pretrained.load import load_model as load_model
from perturbjax.pretrained.model import Model as Model
