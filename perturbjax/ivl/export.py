"""A value network as a Hugging Face directory that transformers loads, with a page on how to add its logits."""

from pathlib import Path

from perturbjax.errors import InputError
from perturbjax.ivl.config import VocabularyName
from perturbjax.ivl.map_files import save_map
from perturbjax.ivl.map_statistics import statistics
from perturbjax.ivl.reopen import ValueRun
from perturbjax.pretrained.export import export_safetensors
from perturbjax.pretrained.model import Model

_PAGE = """\
# A value network

Trained with inverse value learning (arXiv 2410.21027) beside {base}, connection {connection}. Alone it is no language model: its logits are
what the demonstrations changed in those of its base. Add them to a base's, at every token:

```python
import torch
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("BASE")
value = AutoModelForCausalLM.from_pretrained("THIS DIRECTORY")
{added}"""
_ONE = """
def logits(tokens):
    z_base, z_value = base(tokens).logits, value(tokens).logits
    return {join}
```

The base must have this directory's tokenizer.
"""
_MAPPED = """```

BASE is {name}, which has another vocabulary. `vocabulary_map.npz` says which tokens of the value network stand for each of its own. The
value network reads, for each token of BASE, the weighted mean of their embeddings, one position for one, and its logits are mapped back:

```python
import numpy as np
from torch.nn.functional import pad

table = {{name: torch.tensor(array) for name, array in np.load("vocabulary_map.npz").items()}}
read = table["weights"] / table["weights"].sum(-1, keepdim=True).clamp(min=1e-30)

def change(tokens):  # what is added to z_base, for tokens of BASE below len(read)
    embeddings = value.get_input_embeddings().weight[table["indices"][tokens]]
    z_value = value(inputs_embeds=(embeddings * read[tokens][..., None]).sum(-2)).logits
    centered = z_value - z_value[..., table["valid"].nonzero()[:, 0]].mean(-1, keepdim=True)
    return (centered[..., table["indices"]] * table["weights"]).sum(-1)

def logits(tokens):
    z_base = base(tokens).logits
    return z_base + pad(change(tokens), (0, z_base.shape[-1] - len(read)))
```
"""


def export_network(value: ValueRun, base: str | None, vocabulary: VocabularyName | None, out: Path) -> Path:
    """Writes the value network, and with ``base`` the map to its vocabulary if it has another.

    Raises:
        InputError: a connection that reads the base's logits, which no plain model does; a directory that holds something.
    """
    config = value.record.config
    if config.needs_base_logits:
        raise InputError(
            f"{out}: a {config.connection} value network reads the base's logits, so it is no plain model; it cannot be exported"
        )
    if config.outputs == "bytes":
        raise InputError(f"{out}: a value network of bytes has a head that no plain model has; it cannot be exported")
    on = value.on(base, vocabulary, 1.0, None)
    decoder, trained = config.decoder, value.trained
    hf = trained.hf_config | {"num_hidden_layers": decoder.num_layers, "tie_word_embeddings": decoder.tied_head}
    model = Model(f"value network of {trained.name}", trained.source, decoder, value.params, trained.tokenizer, hf)
    export_safetensors(model, value.params, out)
    if on.vocabulary is not None:
        save_map(on.vocabulary, out, statistics(on.vocabulary, trained.tokenizer, on.base.tokenizer))
    join = "z_base * (1 + z_value)" if config.connection == "multiplicative" else "z_base + z_value"
    added = _ONE.format(join=join) if on.vocabulary is None else _MAPPED.format(name=on.base.name)
    page = _PAGE.format(base=value.record.base, connection=config.connection, added=added)
    (out / "README.md").write_text(page, encoding="utf-8")
    return out
