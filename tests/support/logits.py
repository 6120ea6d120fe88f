"""Logits of whole sequences by the decoder."""

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax.models.attention import causal_mask
from perturbjax.models.decoder import decoder_from_params


def logits_of(model, rows):
    """Logits at every position of each row, the rows run as one batch padded on the right."""
    longest = max(map(len, rows))
    tokens, valid = np.zeros((2, len(rows), longest), np.int32)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = row
        valid[index, : len(row)] = 1
    positions = np.broadcast_to(np.arange(longest), tokens.shape)

    @jax.jit
    def forward(params):
        decoder = decoder_from_params(model.config, params)
        hidden, _ = decoder(jnp.asarray(tokens), jnp.asarray(positions), causal_mask(jnp.asarray(valid, bool)))
        return decoder.logits(hidden)

    logits = np.asarray(forward(model.params))
    return [logits[index, : len(row)] for index, row in enumerate(rows)]
