"""A base with a value network in a batch whose rows leave: each reply equals that of its prompt alone; and likelihoods of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.value_cases import base, live_value

from perturbjax.inference.decode import NO_TOKEN, generate
from perturbjax.ivl.combined import combine
from perturbjax.models.attention import causal_mask
from perturbjax.serve.config import Limits
from perturbjax.serve.likelihood import Likelihoods
from perturbjax.serve.one_model import OneModel
from perturbjax.serve.runs import Opened
from perturbjax.serve.work import Piece, Work

LIMITS = Limits(max_tokens=10, max_prompt_tokens=12, max_batch=4)
RNG = np.random.default_rng(2)
PROMPTS = [RNG.integers(5, 120, n).tolist() for n in (4, 11, 1, 7)]


@pytest.fixture(scope="module")
def model():
    return combine(base(), *live_value(base()))


@pytest.fixture(scope="module")
def answering(model):
    return OneModel(model, LIMITS)


def test_rows_that_leave_do_not_change_the_others(model, answering):
    @jax.jit
    def alone(row, length, limit):
        return generate(
            model.config.build(model.params), row, length, jnp.ones(1, bool), 10, model.tokenizer.stop_ids, limits_B=limit
        ).tokens[0]

    said: list[list[int]] = [[] for _ in PROMPTS]
    ends: list[str | None] = [None] * len(PROMPTS)

    def emit_to(place: int):
        def emit(piece: Piece) -> None:
            said[place].extend(piece.tokens)
            ends[place] = piece.ended

        return emit

    lengths = (10, 2, 5, 9)
    generated = answering.answer([Work(prompt, most, emit_to(i)) for i, (prompt, most) in enumerate(zip(PROMPTS, lengths, strict=True))])
    total = 0
    for prompt, most, found, end in zip(PROMPTS, lengths, said, ends, strict=True):
        row = jnp.asarray([prompt + [0] * (12 - len(prompt))])
        tokens = [int(t) for t in np.asarray(alone(row, jnp.asarray([len(prompt)]), jnp.asarray([most]))) if t != NO_TOKEN]
        total += len(tokens)
        stopped = tokens[-1] in model.tokenizer.stop_ids
        assert (found, end) == (tokens[:-1] if stopped else tokens, "stop" if stopped else "length")
    assert generated == total and len(said[1]) <= 2


def test_a_cancelled_row_ends(answering):
    pieces: list[Piece] = []
    works = [Work(prompt, 10, pieces.append if i == 0 else lambda _: None) for i, prompt in enumerate(PROMPTS)]
    works[0].cancelled = True
    answering.answer(works)
    assert sum(len(piece.tokens) for piece in pieces) == 1 and pieces[-1].ended == "length"


def test_likelihoods_of_a_model_of_two_parts(model):
    tokens = PROMPTS[1]

    @jax.jit
    def logits(row):
        built = model.config.build(model.params)
        hidden, _ = built(row, jnp.arange(row.shape[1])[None], causal_mask(jnp.ones(row.shape, bool)))
        return built.logits(hidden)[0]

    z = np.asarray(logits(jnp.asarray([tokens])), np.float64)
    log_probs = z - np.logaddexp.reduce(z, axis=-1, keepdims=True)
    expected = sum(log_probs[place - 1, tokens[place]] for place in (8, 9, 10))
    ((found, _),) = Likelihoods(Opened(model), rows=2, longest=12)([(tokens[:8], tokens[8:])])
    assert found == pytest.approx(expected, rel=1e-4)
