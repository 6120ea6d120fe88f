"""Stopped rows leave the batch: whatever shrinks, every reply equals that of its prompt alone; SmolLM2's equal those of transformers."""

import json
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.paths import FIXTURES

from perturbjax.inference import decode as generate_module
from perturbjax.inference.decode import NO_TOKEN, generate
from perturbjax.inference.programs import batch_prompts, generate_replies
from perturbjax.models import attention
from perturbjax.models.attention import causal_mask
from perturbjax.models.decoder import decoder_from_params
from perturbjax.models.language_model import run_prefix
from perturbjax.noise.values import KEY_IMPL, root_key_data
from perturbjax.pretrained import load_model
from perturbjax.tasks.base import Prompt

RNG = np.random.default_rng(1)
PREFIX = RNG.integers(5, 120, 7).tolist()
PROMPTS = [RNG.integers(5, 120, n).tolist() for n in (4, 11, 1, 7, 16, 2, 9, 9, 3, 12, 5)]
WIDTH = 14
KEY = root_key_data(3)
TEMPERATURE = 0.8


@cache
def _model():
    return load_model(str(FIXTURES / "tiny_qwen2"))


@pytest.fixture
def model():
    return _model()


@partial(jax.jit, static_argnums=0)
def _next_logits(config, params, row, length):
    decoder = decoder_from_params(config, params)
    hidden, _ = decoder(row, jnp.arange(row.shape[1])[None], causal_mask(jnp.ones(row.shape, bool)))
    return decoder.logits(hidden[:, length - 1])[0]


@jax.jit
def _draw(logits, step, row_id):
    key = jax.random.fold_in(jax.random.wrap_key_data(KEY, impl=KEY_IMPL), step)
    return jax.random.categorical(jax.random.fold_in(key, row_id), logits / TEMPERATURE)


def alone(model, prompt, row_id, sampled):
    """WIDTH tokens of one prompt without a batch, a cache or a stop token."""
    tokens = list(prompt)
    for step in range(WIDTH):
        row = np.zeros((1, 40), np.int32)
        row[0, : len(tokens)] = tokens
        logits = _next_logits(model.config, model.params, row, len(tokens))
        tokens.append(int(_draw(logits, step, row_id) if sampled else logits.argmax()))
    return tokens[len(prompt) :]


def until_stop(reply, stops):
    end = next((i + 1 for i, token in enumerate(reply) if token in stops), len(reply))
    return reply[:end] + [NO_TOKEN] * (len(reply) - end)


def counted(replies, rows):
    """Rows decoded over all steps, shrinking and not. The first token comes with the prompt."""
    lengths = (np.asarray(replies) != NO_TOKEN).sum(1)
    sizes = [rows, *(size for size in generate_module.ROW_SIZES if size < rows)]
    live = [int((lengths > step).sum()) for step in range(1, WIDTH)]
    # A row that fills its last place has not stopped, but there is no step left for it either.
    steps = [count for count in live if count]
    return [sum(min(size for size in sizes if size >= count) for count in steps), rows * len(steps)]


@cache
def stopping(sampled):
    """Stop tokens that end the replies at many different places, and the replies."""
    free = [alone(_model(), PREFIX + prompt, i, sampled) for i, prompt in enumerate(PROMPTS)]
    places = np.random.default_rng(2).integers(1, WIDTH, (200, 11))
    for stops in (tuple(sorted({free[i][where[i]] for i in range(0, 11, 3)})) for where in places):
        replies = [until_stop(reply, stops) for reply in free]
        if len({reply.count(NO_TOKEN) for reply in replies}) >= 5:
            return stops, replies
    raise AssertionError("no stop tokens give replies of five lengths")


@partial(jax.jit, static_argnames=("config", "sampled", "stops", "small"))
def _replies(params, tokens, lengths, row_ids, live, *, config, sampled, stops, small):
    """``small``: whether the sizes of "in pieces" are set, which are read when this is traced."""
    decoder = decoder_from_params(config, params)
    prefix = run_prefix(decoder, jnp.asarray([PREFIX + [0] * 5]), jnp.int32(len(PREFIX)))
    return generate(decoder, tokens, lengths, live, WIDTH, stops, prefix, len(PREFIX), KEY if sampled else None, row_ids, TEMPERATURE)


def run(model, sampled, stops, order, live, small=False):
    tokens = np.zeros((len(order), 16), np.int32)
    for row, i in zip(tokens, order, strict=True):
        row[: len(PROMPTS[i])] = PROMPTS[i]
    lengths = np.asarray([len(PROMPTS[i]) for i in order])
    what = {"config": model.config, "sampled": sampled, "stops": stops, "small": small}
    return _replies(model.params, tokens, lengths, np.asarray(order), live, **what)


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("small", [False, True], ids=["one pass", "in pieces"])
def test_every_reply_equals_that_of_its_prompt_alone(model, sampled, small, monkeypatch):
    if small:  # the cache is read in four blocks, the last of them partly used, and prompts run row by row
        monkeypatch.setattr(attention, "CACHE_BLOCK", 8)
        monkeypatch.setattr(generate_module, "PREFILL_TOKENS", 20)
    stops, expected = stopping(sampled)
    order = list(range(11))
    got = run(model, sampled, stops, order, np.ones(11, bool), small)
    assert got.tokens.tolist() == expected and got.finite.all()
    assert got.row_steps.tolist() == counted(expected, 11)
    ran, plain = got.row_steps.tolist()
    assert ran < 0.8 * plain, "hardly a row leaves early: the comparison would prove nothing"
    # Reversed, other rows leave first and others move up; the last rows are padding.
    live = np.arange(11) < 7
    got = run(model, sampled, stops, order[::-1], live, small)
    expected = [expected[i] if on else [NO_TOKEN] * WIDTH for i, on in zip(order[::-1], live, strict=True)]
    assert got.tokens.tolist() == expected and got.row_steps.tolist() == counted(expected, 11)


def test_a_batch_of_padding_runs_no_step(model):
    got = run(model, False, stopping(False)[0], list(range(11)), np.zeros(11, bool))
    assert (np.asarray(got.tokens) == NO_TOKEN).all() and got.finite.all() and got.row_steps.tolist() == [0, 0]


def test_slots_count_their_steps(model):
    """Through the scored function: more prompts than a slot holds, the last slot nearly empty."""
    stops, expected = stopping(False)
    prompts = (PROMPTS * 7)[:70]
    batch = batch_prompts(PREFIX, prompts)
    replies = jax.jit(generate_replies(model.config, WIDTH, stops, False))(model.params, None, batch)
    tokens = np.asarray(replies.tokens).reshape(-1, WIDTH)
    assert tokens[:70].tolist() == (expected * 7)[:70] and (tokens[70:] == NO_TOKEN).all()
    slots = np.split(tokens, len(batch["tokens"]))
    assert np.asarray(replies.row_steps).tolist() == [counted(slot, 64) for slot in slots]


def test_prompts_without_a_common_prefix_run_none(model, monkeypatch):
    monkeypatch.setattr(generate_module, "ROW_SIZES", ())
    batch = batch_prompts([], PROMPTS[:4])
    assert batch["prefix"].shape == (1, 0)
    replies = jax.jit(generate_replies(model.config, WIDTH, (), False))(model.params, None, batch)
    expected = [alone(model, prompt, i, False) for i, prompt in enumerate(PROMPTS[:4])]
    assert np.asarray(replies.tokens)[0].tolist() == expected


def test_greedy_generations_equal_transformers(monkeypatch):
    monkeypatch.setattr(generate_module, "ROW_SIZES", (4,))  # every size is a loop to compile
    reference = json.loads((FIXTURES / "smollm2_reference.json").read_text())
    rows = reference["greedy"]
    model = load_model("smollm2-135m")
    # The reference's prompts have no near ties, so float32 rounding cannot turn a token; fewer than five would prove little.
    assert len(rows) >= 5 and reference["smallest_margin"] > 0.01
    prompts = model.tokenizer.encode_prompts([Prompt(({"role": "user", "content": row["question"]},)) for row in rows])
    assert prompts == [row["prompt_ids"] for row in rows]
    lengths = np.asarray([len(prompt) for prompt in prompts], np.int32)
    assert len(set(lengths.tolist())) > 2
    tokens = np.full((len(rows), lengths.max()), model.tokenizer.pad_id, np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt

    @jax.jit
    def run(params):
        live = jnp.ones(len(rows), bool)
        decoder = decoder_from_params(model.config, params)
        return generate(decoder, jnp.asarray(tokens), jnp.asarray(lengths), live, reference["max_new_tokens"], model.tokenizer.stop_ids)

    replies = run(model.params)
    assert np.asarray(replies.finite).all()
    for row, got in zip(rows, np.asarray(replies.tokens), strict=True):
        ids = [int(index) for index in got if index >= 0]
        assert ids == row["new_ids"], row["question"]
        assert model.tokenizer.decode(ids) == row["text"]
