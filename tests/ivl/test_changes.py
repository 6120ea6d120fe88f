"""Which tokens a value network changed: packed, batched and jitted as one sequence after the other, position by position."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.paths import FIXTURES
from support.toy import TEMPLATE, Toy, one_batch_size

from perturbjax.inference.decode import NO_TOKEN
from perturbjax.ivl import changes, evaluation
from perturbjax.ivl.changes import token_changes
from perturbjax.ivl.combined import combine
from perturbjax.ivl.evaluation import measure_base
from perturbjax.ivl.results import TokenChanges
from perturbjax.ivl.value import ValueConfig, make_value
from perturbjax.models.attention import causal_mask
from perturbjax.models.decoder import decoder_from_params
from perturbjax.pretrained import load_model
from perturbjax.sharding import make_mesh

LENGTHS = ((5, 3), (1, 1), (9, 6), (3, 4), (2, 5))


@pytest.fixture(scope="module")
def model():
    return load_model(str(FIXTURES / "tiny_qwen2"))


@pytest.fixture(scope="module")
def value(model):
    """A random network whose logits are about as large as the base's."""
    config, params = make_value(model.config, model.params, layers=1, from_base=False, zero_head=False, seed=3)
    # The head is tied to the embedding, which the first norm makes any size of the same.
    params["embed"]["embedding"] = params["embed"]["embedding"] * 8
    return config, params


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    one_batch_size(monkeypatch)


@pytest.fixture
def mesh():
    return make_mesh(jax.devices()[:1])


@partial(jax.jit, static_argnums=0)
def _logits(config, params, row):
    decoder = decoder_from_params(config, params)
    hidden, _ = decoder(row, jnp.arange(row.shape[1])[None], causal_mask(jnp.ones(row.shape, bool)))
    return decoder.logits(hidden)[0]


def logits_of(config, params, tokens):
    """One sequence alone, (T, V)."""
    row = np.zeros((1, 32), np.int32)
    row[0, : len(tokens)] = tokens
    return np.asarray(_logits(config, params, row)[: len(tokens)], np.float64)


def one_by_one(model, value: tuple[ValueConfig, dict], prompts, replies, gate=None) -> TokenChanges:
    """The naive twin: every reply alone, every position alone."""
    config, params = value
    tokens = changed = shut = 0
    for prompt, reply in zip(prompts, replies, strict=True):
        text = [*prompt, *reply]
        base, beside = logits_of(model.config, model.params, text), logits_of(config.decoder, params, text)
        for place in range(len(prompt) - 1, len(text) - 1):
            p = np.exp(base[place] - np.logaddexp.reduce(base[place]))
            open_ = gate is None or -(p * np.log(p)).sum() > gate
            tokens, shut = tokens + 1, shut + (not open_)
            changed += np.argmax(base[place] + (beside[place] if open_ else 0)) != np.argmax(base[place])
    return TokenChanges(tokens, changed / tokens, shut / tokens)


def texts(vocabulary):
    rng = np.random.default_rng(0)
    return tuple([rng.integers(0, vocabulary, pair[side]).tolist() for pair in LENGTHS] for side in (0, 1))


def entropies(model, prompts, replies):
    for prompt, reply in zip(prompts, replies, strict=True):
        logits = logits_of(model.config, model.params, [*prompt, *reply])[len(prompt) - 1 : -1]
        log_p = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        yield from (-(np.exp(log_p) * log_p).sum(axis=-1)).tolist()


@pytest.mark.parametrize(("gated", "small"), [(False, False), (True, True)], ids=["one pass", "gated, a row a pass"])
def test_packed_replies_are_judged_as_single_ones(model, value, mesh, gated, small, monkeypatch):
    if small:
        # Rows that hold two or three of the texts, several passes, few logits at a time.
        for name, number in {"ROW_MULTIPLE": 16, "PASS_TOKENS": 32, "LOGITS": 8}.items():
            monkeypatch.setattr(changes, name, number)
    prompts, replies = texts(model.config.vocab_size)
    gate = float(np.median(list(entropies(model, prompts, replies)))) + 1e-4 if gated else None
    wanted = one_by_one(model, value, prompts, replies, gate)
    assert wanted.tokens == 19 and 0 < wanted.changed < 1 and (0 < wanted.gated < 1) == gated
    padded = [[*reply, NO_TOKEN, NO_TOKEN] for reply in replies]
    found = token_changes(combine(model, value[0], value[1], gate=gate), prompts, padded, mesh)
    np.testing.assert_allclose((found.tokens, found.changed, found.gated), (wanted.tokens, wanted.changed, wanted.gated), rtol=1e-6)


def test_a_network_of_zeros_changes_nothing(model, mesh):
    zero = make_value(model.config, model.params, layers=1)
    prompts, replies = texts(model.config.vocab_size)
    assert token_changes(combine(model, zero[0], zero[1]), prompts, replies, mesh) == TokenChanges(19, 0.0, 0.0)


def test_a_cascade_reads_the_base_here_as_in_generation(model, mesh):
    config, params = make_value(model.config, model.params, "cascade", layers=1, from_base=False, zero_head=False, seed=3)
    prompts, replies = texts(model.config.vocab_size)
    found = token_changes(combine(model, config, params, alpha=50.0), prompts, replies, mesh)
    assert found.tokens == 19 and found.changed > 0


def test_no_replies_change_nothing(model, value, mesh):
    assert token_changes(combine(model, value[0], value[1]), [[1], [2]], [[NO_TOKEN], []], mesh) == TokenChanges(0, 0.0, 0.0)


def test_the_replies_measured_are_those_that_were_graded(model, value, mesh, monkeypatch):
    """Cached generation and one pass over the whole reply agree: every token of a reply is the joined choice there."""
    task, given = Toy("generation"), []

    def recorded(combined, prompts, replies, mesh):
        given.append((prompts, replies))
        return token_changes(combined, prompts, replies, mesh)

    monkeypatch.setattr(evaluation, "token_changes", recorded)
    questions = task.examples()[:3]
    entries = measure_base(model, combine(model, *value), model.tokenizer, task, TEMPLATE, questions, mesh, 0)
    ((prompts, padded),) = given
    replies = [[token for token in reply if token != NO_TOKEN] for reply in padded]
    assert prompts == model.tokenizer.encode_prompts([task.prompt(question, TEMPLATE) for question in questions])
    assert max(map(len, replies)) == task.max_new_tokens
    for prompt, reply in zip(prompts, replies, strict=True):
        text = [*prompt, *reply]
        joined = logits_of(model.config, model.params, text) + logits_of(value[0].decoder, value[1], text)
        assert np.argmax(joined[len(prompt) - 1 : -1], axis=-1).tolist() == reply
    wanted = one_by_one(model, value, prompts, replies)
    assert entries.changes is not None and entries.changes.tokens == wanted.tokens == sum(map(len, replies))
    assert entries.changes.changed == pytest.approx(wanted.changed) and entries.changes.gated == 0
    assert entries.with_value.tokens > wanted.tokens
