"""Files to parameters and back: loaders, tokenizers, chat templates, export."""

from perturbjax.pretrained.model import Model as Model
from perturbjax.pretrained.model import load_model as load_model
