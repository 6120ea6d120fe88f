"""The decoder against itself used naively and against transformers: caches, prefixes, packing and batching change nothing but the time."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.logits import logits_of as logits_of_rows
from support.paths import FIXTURES

from perturbjax.inference.decode import NO_TOKEN, generate
from perturbjax.models.attention import Prefix, causal_mask
from perturbjax.models.decoder import decoder_from_params
from perturbjax.noise.values import root_key_data
from perturbjax.pretrained import load_model

MODELS = ["tiny_llama3", "tiny_qwen2"]
RNG = np.random.default_rng(0)
PREFIX = RNG.integers(5, 120, 9)
PROMPTS = [RNG.integers(5, 120, n) for n in (4, 11, 1, 7)]


@pytest.fixture(scope="module", params=MODELS)
def decoder(request):
    model = load_model(str(FIXTURES / request.param))
    return decoder_from_params(model.config, jax.tree.map(jnp.asarray, model.params))


@nnx.jit
def _padded_logits(decoder, row):
    hidden, _ = decoder(row, jnp.arange(row.shape[1])[None], causal_mask(jnp.ones(row.shape, bool)))
    return decoder.logits(hidden)[0]


def logits_of(decoder, tokens):
    """The plainest use: one sequence, no cache, (T, V); padding behind it is invisible to a causal model and saves compiling every
    length."""
    row = np.zeros((1, 40), np.int32)
    row[0, : len(tokens)] = tokens
    return np.asarray(_padded_logits(decoder, row)[: len(tokens)])


def padded(prompts, width):
    tokens = np.zeros((len(prompts), width), np.int32)
    for i, prompt in enumerate(prompts):
        tokens[i, : len(prompt)] = prompt
    return jnp.asarray(tokens), jnp.asarray([len(p) for p in prompts])


def run_prefix(decoder, tokens, width):
    row, length = padded([tokens], width)
    valid = jnp.arange(width) < length[0]
    _, cache = decoder(row, jnp.arange(width)[None], causal_mask(valid[None]))
    return Prefix(cache, valid)


def test_ragged_batch_with_a_shared_prefix_equals_single_sequences(decoder):
    tokens, lengths = padded(PROMPTS, 16)
    valid = jnp.arange(16)[None] < lengths[:, None]
    prefix = run_prefix(decoder, PREFIX, 12)
    hidden, _ = decoder(tokens, len(PREFIX) + jnp.broadcast_to(jnp.arange(16)[None], tokens.shape), causal_mask(valid), prefix)
    logits = np.asarray(decoder.logits(hidden))
    for i, prompt in enumerate(PROMPTS):
        alone = logits_of(decoder, np.concatenate([PREFIX, prompt]))
        np.testing.assert_allclose(logits[i, : len(prompt)], alone[len(PREFIX) :], rtol=2e-4, atol=2e-5)


def test_chosen_logits_equal_the_full_ones(decoder):
    hidden = jnp.asarray(RNG.standard_normal((5, decoder.config.hidden_size)), jnp.float32)
    ids = jnp.asarray(RNG.integers(0, decoder.config.vocab_size, (5, 3)))
    full = np.take_along_axis(np.asarray(decoder.logits(hidden)), np.asarray(ids), axis=1)
    np.testing.assert_allclose(np.asarray(decoder.logits_at(hidden, ids)), full, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("with_prefix", [False, True])
def test_greedy_generation_equals_the_uncached_loop(decoder, with_prefix):
    steps = 6
    before = PREFIX if with_prefix else PREFIX[:0]
    naive = []
    for prompt in PROMPTS:
        tokens = list(np.concatenate([before, prompt]).astype(int))
        for _ in range(steps):
            tokens.append(int(logits_of(decoder, tokens)[-1].argmax()))
        naive.append(tokens[-steps:])
    tokens, lengths = padded(PROMPTS, 16)
    prefix = run_prefix(decoder, PREFIX, 12) if with_prefix else None
    live = jnp.ones(len(PROMPTS), bool)
    replies = jax.jit(lambda t, n: generate(decoder, t, n, live, steps, (), prefix, len(before)))(tokens, lengths)
    assert np.asarray(replies.tokens).tolist() == naive and bool(replies.finite.all())
    # A stop token ends its own row only, is kept, and is followed by NO_TOKEN; padding rows produce nothing.
    stop = naive[1][2]
    live = live.at[3].set(False)
    stopped = np.asarray(jax.jit(lambda t, n: generate(decoder, t, n, live, steps, (stop,), prefix, len(before)).tokens)(tokens, lengths))
    for row, full in zip(stopped[:3], naive[:3], strict=True):
        end = full.index(stop) + 1 if stop in full else steps
        assert row.tolist() == full[:end] + [NO_TOKEN] * (steps - end)
    assert (stopped[3] == NO_TOKEN).all()


def test_sampling_follows_the_model_and_ignores_the_batch(decoder):
    tokens, lengths = padded(PROMPTS, 16)
    key, ids = root_key_data(3), jnp.arange(4)

    @jax.jit
    def drawn(rows, temperature):
        live = jnp.ones(len(rows), bool)
        return generate(decoder, tokens[rows], lengths[rows], live, 3, (), None, 0, key, ids[rows], temperature).tokens

    def sample(rows, temperature):
        return np.asarray(drawn(rows, jnp.float32(temperature)))

    rows = jnp.arange(4)
    np.testing.assert_array_equal(sample(rows, 0.9)[2], sample(rows[2:3], 0.9)[0])
    greedy = np.asarray(jax.jit(lambda t, n: generate(decoder, t, n, jnp.ones(4, bool), 3, ()).tokens)(tokens, lengths))
    np.testing.assert_array_equal(sample(rows, 1e-4), greedy)
    assert not np.array_equal(sample(rows, 1.5), greedy)
    # First tokens of many draws follow softmax(logits / temperature): a chi-squared test with p = 1e-6.
    many = 4000

    @jax.jit
    def first(prompt, length):
        wide, live = jnp.broadcast_to(prompt, (many, 16)), jnp.ones(many, bool)
        return generate(decoder, wide, jnp.full(many, length), live, 1, (), None, 0, key, jnp.arange(many), 0.7).tokens[:, 0]

    expected = np.asarray(jax.nn.softmax(logits_of(decoder, PROMPTS[0])[-1] / 0.7)) * many
    counts = np.bincount(np.asarray(first(tokens[:1], lengths[0])), minlength=len(expected))
    rare = expected < 5
    observed, wanted = np.append(counts[~rare], counts[rare].sum()), np.append(expected[~rare], expected[rare].sum())
    degrees = len(wanted) - 1
    assert ((observed - wanted) ** 2 / wanted).sum() < degrees + 4.75 * np.sqrt(2 * degrees) + 15


def test_non_finite_logits_are_reported(decoder):
    broken = decoder_from_params(
        decoder.config, jax.tree.map(lambda p: p * jnp.float32(np.nan), load_model(str(FIXTURES / _name(decoder))).params)
    )
    tokens, lengths = padded(PROMPTS, 16)
    assert not jax.jit(lambda t, n: generate(broken, t, n, jnp.ones(4, bool), 2, ()).finite)(tokens, lengths).any()


def _name(decoder):
    return "tiny_qwen2" if decoder.config.qkv_bias else "tiny_llama3"


def test_mis_shaped_and_missing_parameters_are_named(decoder):
    params = load_model(str(FIXTURES / _name(decoder))).params
    with pytest.raises(ValueError, match=r"norm/scale.*None"):
        decoder_from_params(decoder.config, {k: v for k, v in params.items() if k != "norm"})
    with pytest.raises(ValueError, match=r"norm/scale: shape \(3,\)"):
        decoder_from_params(decoder.config, params | {"norm": {"scale": np.ones(3, np.float32)}})


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_weights_give_bfloat16_activations_and_float32_logits(name):
    tokens = jnp.asarray(PREFIX)[None]
    logits = {}
    for dtype in ("float32", "bfloat16"):
        model = load_model(str(FIXTURES / name), dtype)
        decoder = decoder_from_params(model.config, jax.tree.map(jnp.asarray, model.params))
        with jax.numpy_dtype_promotion("standard"):  # flax's RMSNorm multiplies float32 with a bfloat16 scale
            hidden, cache = decoder(tokens, jnp.arange(len(PREFIX))[None], causal_mask(jnp.ones(tokens.shape, bool)))
        assert {hidden.dtype, cache.keys.dtype, cache.values.dtype} == {jnp.dtype(dtype)}
        logits[dtype] = np.asarray(decoder.logits(hidden))
        assert logits[dtype].dtype == np.float32
    assert np.abs(logits["bfloat16"] - logits["float32"]).max() < 0.05 * np.abs(logits["float32"]).max()


@pytest.mark.parametrize("fixture", ["tiny_llama3", "tiny_llama_tied", "tiny_qwen2"])
def test_logits_equal_transformers(fixture):
    reference = np.load(FIXTURES / fixture / "reference.npz")
    count = sum(name.startswith("ids_") for name in reference.files)
    got = logits_of_rows(load_model(str(FIXTURES / fixture)), [reference[f"ids_{index}"] for index in range(count)])
    for index in range(count):
        expected = reference[f"logits_{index}"]
        assert np.abs(got[index] - expected).max() <= 1e-4 * np.abs(expected).max()


def test_smollm2_logits_equal_transformers():
    """The embedded default: dequantisation, q and k row order, tied head and chat prompt at once."""
    rows = json.loads((FIXTURES / "smollm2_reference.json").read_text())["logits"]
    got = logits_of_rows(load_model("smollm2-135m"), [row["prompt_ids"] for row in rows])
    for logits, row in zip(got, rows, strict=True):
        last = logits[-1].astype(np.float64)
        scale = np.abs(row["top_logits"]).max()
        assert np.argsort(-last)[:20].tolist() == row["top_ids"]
        np.testing.assert_allclose(last[row["top_ids"]], row["top_logits"], rtol=0, atol=1e-4 * scale)
        np.testing.assert_allclose(last.mean(), row["mean"], rtol=0, atol=1e-4 * scale)
        np.testing.assert_allclose(np.logaddexp.reduce(last), row["log_normaliser"], rtol=0, atol=1e-4 * scale)


def test_a_backward_pass_keeps_what_linear_layers_and_attention_give_and_makes_the_rest_again(decoder):
    """What a scan over layers hands on to its backward pass, by shape: no weights of attention (L, B, K, Q, S), nothing of norms."""
    config, tokens = decoder.config, jnp.asarray(RNG.integers(5, 120, (2, 24)))
    graphdef, params = nnx.split(decoder)

    def loss(params):
        hidden, _ = nnx.merge(graphdef, params)(tokens, jnp.arange(24)[None].repeat(2, 0), causal_mask(jnp.ones((2, 24), bool)))
        return jnp.sum(hidden)

    scans: list[Any] = [equation for equation in jax.make_jaxpr(jax.grad(loss))(params).eqns if equation.primitive.name == "scan"]
    forward, backward = scans
    handed = [variable.aval.shape for variable in forward.outvars if variable in backward.invars]
    heads, kv, size = config.num_heads, config.num_kv_heads, config.head_dim
    products = (heads * size, kv * size, kv * size, config.hidden_size, config.intermediate_size, config.intermediate_size)
    attended = [(kv, heads // kv * 24, size), (kv, heads // kv * 24, 1)]
    kept = [(24, config.hidden_size), *((24, width) for width in products), *attended]
    assert sorted(handed) == sorted((config.num_layers, 2, *shape) for shape in kept)
