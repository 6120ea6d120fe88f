"""The byte head: marginals against sums by hand and an enumeration of all token sequences, and what its map does to a model."""

import dataclasses
import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny_tokenizers import byte_level, marked_spaces
from support.value_cases import base, decoder_logits, log_softmax, random_map

from perturbjax.ivl.byte_head import END, OUT, STOP, byte_map, byte_marginals, classes_of, covering_byte_log_probs, token_classes
from perturbjax.ivl.combined import combine
from perturbjax.ivl.loss import value_loss
from perturbjax.ivl.tokens import token_table
from perturbjax.ivl.value import make_value
from perturbjax.models.attention import causal_mask
from perturbjax.train.demonstrations import EncodedDemonstration
from perturbjax.train.rows import pack_rows

# Two bytes, tokens that overlap in every way, a stop token and a special one.
TEXTS = (b"a", b"b", b"ab", b"ba", b"aba", None, None)
STOPS = (5,)


@cache
def plain():
    return byte_level(420)


def marginals(logits, classes):
    return jax.jit(lambda logits: byte_marginals(logits, classes))(logits)


def test_classes_by_hand():
    assert classes_of(TEXTS, STOPS).tolist() == [97, 98, 97, 98, 97, STOP, OUT]
    assert classes_of(TEXTS, STOPS, b"a").tolist() == [END, OUT, 98, OUT, 98, OUT, OUT]
    assert classes_of(TEXTS, STOPS, b"ab").tolist() == [OUT, OUT, END, OUT, 97, OUT, OUT]


@pytest.mark.parametrize("emitted", [b"", b"ab"])
def test_marginals_are_sums_by_class(emitted):
    logits = np.random.default_rng(0).normal(size=(2, 3, 9)).astype(np.float32) * 4  # two logits of padding
    classes = classes_of(TEXTS, STOPS, emitted)
    log_bytes, log_end = marginals(logits, classes)
    weight = np.exp(logits[..., :7].astype(np.float64)) * (classes < OUT)
    weight /= weight.sum(axis=-1, keepdims=True)
    sums = np.stack([weight[..., classes == value].sum(axis=-1) for value in range(END + 1)], axis=-1)
    np.testing.assert_allclose(np.exp(log_bytes), sums[..., :END], atol=1e-6)
    np.testing.assert_allclose(np.exp(log_end), sums[..., END], atol=1e-6)
    assert log_bytes.shape == (2, 3, 257)


def test_marginals_survive_classes_of_tiny_probability():
    logits = jnp.array([0.0, -300.0, -1.0, -301.0, -2.0, -600.0, 50.0])
    log_bytes, _ = marginals(logits, classes_of(TEXTS, STOPS))
    np.testing.assert_allclose(log_bytes[98], np.logaddexp(-300, -301) - np.logaddexp.reduce([0, -1, -2]), rtol=1e-6)
    assert np.isfinite(log_bytes[STOP]) and np.isneginf(log_bytes[99])
    log_bytes, log_end = marginals(logits, classes_of(TEXTS, STOPS, b"b"))
    np.testing.assert_allclose([log_bytes[97], log_end], np.array([-301, -300]) - np.logaddexp(-300, -301), atol=1e-4)


def test_gradients_are_finite_and_those_of_the_log_of_a_sum():
    logits = jnp.asarray(np.random.default_rng(1).normal(size=7), jnp.float32)
    gradient = jax.jit(jax.grad(lambda logits: byte_marginals(logits, classes_of(TEXTS, STOPS))[0][97]))(logits)
    all_of_them, of_class = np.array([1, 1, 1, 1, 1, 1, 0]), np.array([1, 0, 1, 0, 1, 0, 0])
    weight = np.exp(np.asarray(logits, np.float64))
    wanted = weight * of_class / (weight * of_class).sum() - weight * all_of_them / (weight * all_of_them).sum()
    np.testing.assert_allclose(gradient, wanted, atol=1e-6)


def test_narrow_logits_are_summed_in_float32():
    logits = jnp.zeros((420,), jnp.bfloat16)
    log_bytes, _ = marginals(logits, token_classes(plain()))
    assert log_bytes.dtype == jnp.float32
    counts = np.bincount(token_classes(plain()), minlength=OUT + 1)[:END]
    np.testing.assert_allclose(np.exp(log_bytes), counts / counts.sum(), rtol=1e-5)


def test_refusals():
    with pytest.raises(ValueError, match="no token begins"):
        byte_marginals(jnp.zeros(7), classes_of(TEXTS, STOPS, b"c"))
    with pytest.raises(ValueError, match=r"logits \(6,\): at least 7"):
        byte_marginals(jnp.zeros(6), classes_of(TEXTS, STOPS))
    with pytest.raises(ValueError, match="prefix b'c' has probability 0"):
        covering_byte_log_probs(model, TEXTS, STOPS, b"c")


def model(sequence):
    """A next-token distribution that depends on the last two tokens."""
    rng = np.random.default_rng([7, *[token + 1 for token in sequence[-2:]]])
    logits = rng.normal(size=len(TEXTS)) * 2
    logits[6] = -np.inf  # the special token is never written
    return logits - np.logaddexp.reduce(logits)


def enumerated(prefix, allowed=None):
    """P(next byte or stop | bytes) from all sequences of as many tokens as can matter, written out."""
    totals = np.zeros(END)
    longest = len(prefix) + 1
    for length in range(1, longest + 1):
        for sequence in itertools.product(range(6), repeat=length):
            if any(token in STOPS for token in sequence[:-1]):
                continue
            spelled = [TEXTS[token] or b"" for token in sequence]
            before = b"".join(spelled[:-1])
            stops = sequence[-1] in STOPS
            # Counted at the token with which the text first reaches beyond the prefix.
            if len(before) > len(prefix) or not (before + spelled[-1]).startswith(prefix):
                continue
            if stops and before != prefix:
                continue
            if not stops and len(before + spelled[-1]) <= len(prefix):
                continue
            if allowed is not None and not all(allowed(sequence[:i])[token] for i, token in enumerate(sequence)):
                continue
            chance = np.exp(sum(model(sequence[:i])[token] for i, token in enumerate(sequence)))
            totals[STOP if stops else (before + spelled[-1])[len(prefix)]] += chance
    return totals / totals.sum()


@pytest.mark.parametrize("prefix", [b"", b"a", b"ab", b"aba", b"baba"])
def test_the_covering_tree_equals_an_enumeration(prefix):
    np.testing.assert_allclose(np.exp(covering_byte_log_probs(model, TEXTS, STOPS, prefix)), enumerated(prefix), atol=1e-12)


def test_the_valid_tree_leaves_out_what_the_tokenizer_would_not_write():
    def greedy(sequence):
        """As if "a" were never followed by a token that begins with "b"."""
        allowed = np.ones(len(TEXTS), bool)
        if sequence[-1:] == (0,):
            allowed[[1, 3]] = False
        return allowed

    for prefix in (b"ab", b"aba"):
        found = np.exp(covering_byte_log_probs(model, TEXTS, STOPS, prefix, greedy))
        np.testing.assert_allclose(found, enumerated(prefix, greedy), atol=1e-12)
        assert np.abs(found - enumerated(prefix)).max() > 1e-3


def test_one_pass_marginals_are_the_first_node_of_the_tree():
    """At a boundary both agree; inside a token the tree adds the sequences that end there and go on."""
    log_bytes, _ = marginals(jnp.asarray(np.maximum(model(()), -80), jnp.float32), classes_of(TEXTS, STOPS))
    np.testing.assert_allclose(np.exp(log_bytes), np.exp(covering_byte_log_probs(model, TEXTS, STOPS, b"")), atol=1e-6)
    inside, ends = (np.exp(x) for x in marginals(jnp.asarray(model(()), jnp.float32).at[6].set(-80), classes_of(TEXTS, STOPS, b"a")))
    after, _ = marginals(jnp.asarray(model((0,)), jnp.float32).at[6].set(-80), classes_of(TEXTS, STOPS))
    whole = inside + ends * np.exp(after)
    np.testing.assert_allclose(whole, np.exp(covering_byte_log_probs(model, TEXTS, STOPS, b"a")), atol=1e-6)


def test_the_map_gives_each_token_its_first_byte():
    for tokenizer in (plain(), marked_spaces(["▁the", "dog"])):
        table, vocabulary_map = token_table(tokenizer), byte_map(tokenizer)
        z = np.random.default_rng(2).normal(size=(2, 257)).astype(np.float32)
        change = np.asarray(vocabulary_map.apply(jnp.asarray(z), tokenizer.vocab_size + 5))
        centered = z - z.mean(axis=-1, keepdims=True)
        for index, text in enumerate(table.texts):
            stops = index in tokenizer.stop_ids
            wanted = centered[:, STOP] if stops else centered[:, text[0]] if text else np.zeros(2)
            np.testing.assert_allclose(change[:, index], wanted, atol=1e-6)
        assert not change[:, tokenizer.vocab_size :].any()


def test_byte_marginals_of_the_combination_are_those_that_the_head_was_trained_for():
    """softmax over tokens of (z_B + map(z)), summed by first byte, is softmax over bytes of (log marginal of B + z)."""
    rng = np.random.default_rng(3)
    base = jnp.asarray(rng.normal(size=(4, 420)) * 3, jnp.float32)
    z = jnp.asarray(rng.normal(size=(4, 257)) * 2, jnp.float32)
    classes = token_classes(plain())
    combined, _ = marginals(base + jax.jit(byte_map(plain()).apply)(z), classes)
    before, _ = marginals(base, classes)
    np.testing.assert_allclose(np.exp(combined), jax.nn.softmax(before + z, axis=-1), atol=1e-6)


def spoken():
    """A value network of bytes beside the tiny base, with a head that matters."""
    value, params = make_value(base().config, base().params, layers=1, outputs="bytes")
    kernel = np.random.default_rng(3).normal(0, 0.3, params["byte_head"]["kernel"].shape).astype(np.float32)
    return value, params | {"byte_head": {"kernel": kernel}}


def z_bytes(value, params, tokens):
    """(B, T, 257) by another way: a head of tokens, of which the first 257 columns are those of bytes."""
    head = np.zeros((value.decoder.hidden_size, value.decoder.vocab_size), np.float32)
    head[:, : STOP + 1] = params["byte_head"]["kernel"]
    rest = {name: leaf for name, leaf in params.items() if name != "byte_head"} | {"head": {"kernel": head}}
    return decoder_logits(dataclasses.replace(value.decoder, tied_head=False), rest, tokens)[..., : STOP + 1]


def test_a_network_of_bytes_begins_as_its_base_and_moves_tokens_by_their_first_byte():
    table = byte_map(base().tokenizer)
    tokens = np.random.default_rng(0).integers(0, 380, (2, 12)).astype(np.int32)
    plain = decoder_logits(base().config, base().params, tokens)

    @partial(jax.jit, static_argnums=0)
    def logits(config, params):
        model = config.build(params)
        columns = jnp.broadcast_to(jnp.arange(12), tokens.shape)
        hidden, _ = model(tokens, columns, causal_mask(jnp.ones(tokens.shape, bool)))
        return model.logits(hidden)

    value, zero = make_value(base().config, base().params, layers=1, outputs="bytes")
    both = combine(base(), value, zero)
    np.testing.assert_array_equal(logits(both.config, both.params), logits(base().config, base().params))
    value, params = spoken()
    both = combine(base(), value, params)
    z = z_bytes(value, params, tokens)
    wanted = plain + np.pad((z - z.mean(-1, keepdims=True)) @ table.dense().T, ((0, 0), (0, 0), (0, plain.shape[-1] - table.base_size)))
    np.testing.assert_allclose(logits(both.config, both.params), wanted, rtol=1e-4, atol=1e-4)
    for wrong in (None, random_map(0, 380, 384)):
        with pytest.raises(ValueError, match="bytes take a byte map"):
            dataclasses.replace(both.config, vocabulary=wrong)


def test_the_loss_of_bytes_is_the_cross_entropy_of_the_joined_marginals():
    value, params = spoken()
    classes = token_classes(base().tokenizer)
    texts = np.flatnonzero(classes < STOP)
    special = int(np.flatnonzero(classes == OUT)[0])
    tokens = np.random.default_rng(1).choice(texts, (1, 12)).astype(np.int32)
    learned = (*tokens[0, 6:10].tolist(), special, int(base().tokenizer.turn_end))
    rows = pack_rows([EncodedDemonstration("0", tuple(tokens[0, :6].tolist()), learned)], 12)
    loss = value_loss(value, base().config, jnp.float32, penalty=0.5, classes=classes)
    batch = jax.tree.map(jnp.asarray, rows.arrays)
    sums = jax.jit(loss)(params, base().params, batch)
    whole = np.array([[*tokens[0, :10], special, 0]])
    z_base = decoder_logits(base().config, base().params, whole)[0, 5:11].astype(np.float64)
    z_value = z_bytes(value, params, whole)[0, 5:11]
    weight = np.exp(z_base[:, : len(classes)] - z_base.max(-1, keepdims=True))
    weight = np.stack([weight[:, classes == each].sum(-1) for each in range(STOP + 1)], axis=-1)
    with np.errstate(divide="ignore"):
        log_probs = log_softmax(np.log(weight) + z_value)
    labels = classes[list(learned)]
    counted = labels <= STOP
    entropies = -log_probs[np.arange(6), np.minimum(labels, STOP)] * counted
    norm = np.abs(z_value).mean(-1) * counted
    assert float(sums["weight"]) == counted.sum() == 5
    np.testing.assert_allclose(float(sums["cross_entropy"]), entropies.sum(), rtol=1e-5)
    np.testing.assert_allclose(float(sums["loss"]), entropies.sum() + 0.5 * norm.sum(), rtol=1e-5)
    gradients = jax.jit(jax.grad(lambda p: loss(p, base().params, batch)["loss"]))(params)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradients))
    with pytest.raises(ValueError, match="classes None"):
        value_loss(value, base().config, jnp.float32)
