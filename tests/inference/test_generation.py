"""Greedy generations of SmolLM2 against transformers, token for token, as one ragged batch."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from support.tiny_gguf import FIXTURES

from perturbjax.inference.decode import generate
from perturbjax.models.decoder import decoder_from_params
from perturbjax.pretrained import load_model
from perturbjax.tasks.base import Prompt


def test_greedy_generations_equal_transformers():
    reference = json.loads((FIXTURES / "smollm2_reference.json").read_text())
    rows = reference["greedy"]
    model = load_model("smollm2-135m")
    # The reference's prompts have no near ties, so float32 rounding cannot turn a token; fewer than five would prove little.
    assert len(rows) >= 5 and reference["smallest_margin"] > 0.01
    prompts = [model.tokenizer.encode_prompt(Prompt(({"role": "user", "content": row["question"]},))) for row in rows]
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
