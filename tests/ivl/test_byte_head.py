"""The byte head: marginals against sums by hand and an enumeration of all token sequences, and what its map does to a model."""

import itertools
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny_tokenizers import byte_level, marked_spaces

from perturbjax.ivl.byte_head import END, OUT, STOP, byte_map, byte_marginals, classes_of, covering_byte_log_probs, token_classes
from perturbjax.ivl.tokens import token_table

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
