"""Families beside Llama and Qwen2: one program against transformers, against NumPy, and with noise against the dense oracle."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.numpy_decoder import numpy_logits
from support.paths import FIXTURES, TINY_MODELS

import perturbjax as pj
from perturbjax.caulking.language import random_params
from perturbjax.inference.decode import generate
from perturbjax.ivl.value import make_value
from perturbjax.models.attention import causal_mask
from perturbjax.models.language_model import run_prefix
from perturbjax.pretrained import load_model
from perturbjax.pretrained.export import hf_tensors
from perturbjax.tree import leaf_paths

NAMES = [name for name in TINY_MODELS if name not in ("tiny_llama3", "tiny_llama_tied", "tiny_qwen2")]
NOISE = pj.Noise("rademacher")
CANDIDATE = pj.Population(seed=1, size=2, sigmas=(0.05,))[1]
DRAWS = np.random.default_rng(0)
BASE = jax.tree.map(lambda leaf: leaf[0], pj.Candidate.base(1))


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return load_model(str(FIXTURES / name))


@pytest.fixture(scope="module")
def rows(name):
    """Sequences of several lengths, with their logits by transformers."""
    reference = np.load(FIXTURES / name / "reference.npz")
    return [(reference[f"ids_{index}"], reference[f"logits_{index}"]) for index in range(3)]


@pytest.fixture(scope="module")
def raw(name):
    return json.loads((FIXTURES / name / "config.json").read_text())


@pytest.fixture(scope="module")
def tensors(name):
    (file,) = (FIXTURES / name).glob("*.safetensors")
    return load_file(file)


@pytest.fixture(scope="module")
def logits(model, rows):
    """Candidate -> the logits of all rows under its noise, which is made where it is used."""
    longest = max(len(ids) for ids, _ in rows)
    tokens = jnp.asarray([np.pad(ids, (0, longest - len(ids))) for ids, _ in rows])

    def forward(params):
        decoder = model.config.build(params)
        positions = jnp.broadcast_to(jnp.arange(longest), tokens.shape)
        hidden, _ = decoder(tokens, positions, causal_mask(jnp.ones(tokens.shape, bool)))
        return decoder.logits(hidden)

    return jax.jit(lambda its: pj.lazily(forward, strict=True)(pj.lazy(model.params, its, NOISE)))


def assert_close(found, expected):
    assert np.abs(found - expected).max() <= 5e-6 * np.abs(expected).max()


def test_the_base_equals_transformers_and_numpy(raw, tensors, rows, logits):
    for (ids, expected), found in zip(rows, logits(BASE), strict=True):
        assert_close(found[: len(ids)], expected)
        assert_close(found[: len(ids)], numpy_logits(raw, tensors, ids))


def test_a_candidate_equals_the_dense_oracle(model, raw, rows, logits):
    theta = jax.jit(lambda its: pj.perturb(model.params, its, NOISE))(CANDIDATE)
    moved = dict(hf_tensors(model.config, theta))
    for (ids, base), found in zip(rows, logits(CANDIDATE), strict=True):
        assert_close(found[: len(ids)], numpy_logits(raw, moved, ids))
        assert np.abs(found[: len(ids)] - base).max() > 0.01 * np.abs(base).max()


@pytest.mark.parametrize("name", ["tiny_gemma3", "tiny_qwen3_moe"], indirect=True)
def test_replies_through_prefix_and_cache_equal_the_whole_sequence(name, model, raw, tensors):
    """Prompts of several lengths after a shared prefix, all of them longer than the window of layers that slide."""
    prefix, prompts = DRAWS.integers(5, 300, 9), [DRAWS.integers(5, 300, length) for length in (4, 11, 7)]
    tokens, lengths = np.stack([np.pad(prompt, (0, 12 - len(prompt))) for prompt in prompts]), jnp.asarray([4, 11, 7])

    @jax.jit
    def replies(params):
        decoder = model.config.build(params)
        shared = run_prefix(decoder, jnp.asarray(np.pad(prefix, (0, 3)))[None], jnp.int32(len(prefix)))
        return generate(decoder, jnp.asarray(tokens), lengths, jnp.ones(3, bool), 5, (), shared, len(prefix)).tokens

    for prompt, reply in zip(prompts, np.asarray(replies(model.params)), strict=True):
        logits = numpy_logits(raw, tensors, np.concatenate([prefix, prompt, reply]))
        np.testing.assert_array_equal(logits[-6:-1].argmax(-1), reply)


@pytest.mark.parametrize("name", ["tiny_gemma3"], indirect=True)
def test_a_prefix_in_the_same_pass_equals_the_whole_sequence(name, model, raw, tensors):
    prefix, prompt = DRAWS.integers(5, 300, 9), DRAWS.integers(5, 300, 10)
    tokens = jnp.asarray([[*prefix, 7], prompt])
    positions, lead = jnp.stack([jnp.arange(10), 9 + jnp.arange(10)]), jnp.asarray([[False] * 9, [True] * 9])

    @jax.jit
    def logits(params):
        decoder = model.config.build(params)
        return decoder.logits(decoder(tokens, positions, causal_mask(jnp.ones((2, 10), bool)), lead=lead)[0])

    assert_close(logits(model.params)[1], numpy_logits(raw, tensors, np.concatenate([prefix, prompt]))[9:])


def test_norms_of_a_model_that_nothing_has_trained_multiply_by_one(model):
    _, value = make_value(model.config, {}, from_base=False)
    for params in (value, random_params(model.config, jnp.float32)(jax.random.key(0))):
        scales = [leaf + model.config.norm_offset for path, leaf in leaf_paths(params).items() if path.endswith("/scale")]
        assert len(scales) >= 3 and all((scale == 1).all() for scale in scales)
