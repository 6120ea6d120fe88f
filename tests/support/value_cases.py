"""Value networks with outputs that matter, vocabulary maps without tokenizers, and logits by whole sequences, one after the other."""

from __future__ import annotations

import dataclasses
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax.ivl.value import CASCADES, PROBES, ValueConfig, make_value
from perturbjax.ivl.vocabulary import VocabularyMap
from perturbjax.models.attention import causal_mask
from perturbjax.models.decoder import decoder_from_params
from perturbjax.pretrained import load_model
from support.paths import FIXTURES


@cache
def base(name="tiny_llama_tied"):
    return load_model(str(FIXTURES / name))


def live_value(model, connection: Any = "residual", layers=1, seed=0, size=None, scale=0.3):
    """A value network that changes what its base says: the base's layers, a random head. ``size``: of a vocabulary of its own."""
    rng = np.random.default_rng(seed)
    shape = model.config if size is None else dataclasses.replace(model.config, vocab_size=size)
    config, params = make_value(shape, model.params, connection, layers, from_base=size is None, seed=seed)
    head = params["up"] if connection in PROBES else params["head"]
    spread = {"multiplicative": scale / 3, "linear": 3 * scale, "mlp": 9 * scale}.get(connection, scale)
    head["kernel"] = rng.normal(0, spread, head["kernel"].shape).astype(np.float32)
    return config, params


def random_map(seed, rows, columns, entries=3, holes=(0, 5), without=(2, 7)):
    """A map of random entries; ``holes``: ids of the value network that no token has, ``without``: tokens of the base without partner."""
    rng = np.random.default_rng(seed)
    valid = np.ones(columns, bool)
    valid[list(holes)] = False
    indices = rng.choice(np.flatnonzero(valid), (rows, entries)).astype(np.int32)
    weights = rng.random((rows, entries)).astype(np.float32)
    exact = rng.random(rows) < 0.5
    weights[exact] = [1.0] + [0.0] * (entries - 1)
    weights[list(without)], exact[list(without)] = 0, False
    return VocabularyMap("exact_first", indices, weights, exact, valid, "v", "b")


@partial(jax.jit, static_argnums=0)
def _forward(config, params, inputs_BxTxD):
    decoder = decoder_from_params(config, params)
    b, t, _ = inputs_BxTxD.shape
    positions = jnp.broadcast_to(jnp.arange(t)[None], (b, t))
    mask = causal_mask(jnp.ones((b, t), bool))
    hidden, _ = decoder(jnp.zeros((b, t), jnp.int32), positions, mask, inputs_BxTxD=inputs_BxTxD)
    return decoder.logits(hidden)


def _logits(config, params, inputs):
    """All logits. Rows and positions are filled up, which causal models do not see: one program for most numbers of either."""
    b, t, d = inputs.shape
    filled = np.zeros((-(-b // 16) * 16, max(t, 40), d), np.float32)
    filled[:b, :t] = inputs
    return np.asarray(_forward(config, params, filled))[:b, :t]


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def log_softmax(z):
    z = np.asarray(z, np.float64)
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def decoder_logits(config, params, tokens):
    """All logits (B, T, V) of rows of one length."""
    return _logits(config, params, np.asarray(params["embed"]["embedding"])[tokens])


def value_logits(value: ValueConfig, params: Any, tokens, z_base, vocabulary: VocabularyMap | None = None):
    """z_V (B, T, v) by dense formulas: one embedding a position, made in numpy."""
    if value.connection in PROBES:
        narrow = log_softmax(z_base) @ params["down"]["kernel"]
        if value.connection == "mlp":
            narrow = narrow / (1 + np.exp(-narrow))
        return narrow @ params["up"]["kernel"]
    table = np.asarray(params["embed"]["embedding"])
    if value.connection in CASCADES:
        inputs = softmax(z_base) @ table
        if value.connection == "cascade_plus":
            inputs = inputs + table[tokens]
    elif vocabulary is not None:
        matrix = vocabulary.dense()
        rows = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1e-30)
        missing = z_base.shape[-1] - vocabulary.base_size
        inputs = np.pad(rows @ table[: vocabulary.value_size], ((0, missing), (0, 0)))[tokens]
    else:
        inputs = table[tokens]
    return _logits(value.decoder, params, inputs)


def mapped(vocabulary: VocabularyMap | None, z_value, size):
    """W (z - mean z), zeros beyond the base's tokens."""
    if vocabulary is None:
        return z_value
    z = np.asarray(z_value, np.float64)[..., : vocabulary.value_size]
    change = (z - z[..., vocabulary.valid].mean(axis=-1, keepdims=True)) @ vocabulary.dense().astype(np.float64).T
    return np.pad(change, [(0, 0)] * (change.ndim - 1) + [(0, size - change.shape[-1])])


def joined(value: ValueConfig, z_base, z_value, alpha=1.0):
    return z_base * (1 + alpha * z_value) if value.connection == "multiplicative" else z_base + alpha * z_value


def entropy(z):
    """Of the softmax, in nats."""
    log_probs = log_softmax(z)
    return -(np.exp(log_probs) * log_probs).sum(axis=-1)
