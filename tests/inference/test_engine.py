"""The engine against plain loops: what is packed, chunked, prefixed, vmapped or sharded gives the same answers."""

import json
import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.paths import FIXTURES, TESTS
from support.toy import POPULATION, TEMPLATE, Toy

from perturbjax.errors import InputError
from perturbjax.inference import Engine
from perturbjax.inference.packing import common_prefix
from perturbjax.models.decoder import causal_mask, decoder_from_params
from perturbjax.noise import Candidate, Noise, Rule, perturb
from perturbjax.pretrained import load_model
from perturbjax.scoring import ChunkProgram, score_population
from perturbjax.scoring.scorer import _strategy_of
from perturbjax.scoring.strategy import Work, choose, costs
from perturbjax.sharding import make_mesh
from perturbjax.tasks.base import Example
from perturbjax.tree import fingerprint


@pytest.fixture(scope="module")
def model():
    return load_model(str(FIXTURES / "tiny_qwen2"))


def mesh_of_one():
    return make_mesh(jax.devices()[:1])


@partial(jax.jit, static_argnums=0)
def _padded_logits(config, params, row):
    decoder = decoder_from_params(config, params)
    hidden, _ = decoder(row, jnp.arange(row.shape[1])[None], causal_mask(jnp.ones(row.shape, bool)))
    return decoder.logits(hidden)[0]


def logits_of(model, params, tokens):
    """One sequence alone, (T, V); padding behind it is invisible to a causal model and saves compiling every length."""
    row = np.zeros((1, 64), np.int32)
    row[0, : len(tokens)] = tokens
    return _padded_logits(model.config, params, row)[: len(tokens)]


@pytest.mark.parametrize("choices", [("x", "y"), ("river of stone", "x", "yes or no")])
def test_choice_log_probabilities_equal_the_unpacked_ones(model, choices):
    task = Toy("choice", choices)
    noise = Noise("gaussian")
    engine = Engine(model, task, noise, mesh_of_one(), chunk=2)
    prepared = engine.prepare(task.examples(), TEMPLATE)
    candidates = POPULATION[:3]
    outputs = engine.run(candidates, prepared)
    assert outputs.log_probs is not None
    encode = model.tokenizer.encode
    single = all(len(encode(f" {c}")) == 1 for c in choices)
    total = 0
    for n in range(3):
        params = perturb(model.params, POPULATION[n], noise)
        for e, example in enumerate(task.examples()):
            prompt = encode(task.prompt(example, TEMPLATE).text)
            wanted = []
            for choice in choices:
                ids = encode(f" {choice}")
                log_probs = jax.nn.log_softmax(logits_of(model, params, prompt + ids), axis=-1)
                wanted.append(sum(float(log_probs[len(prompt) - 1 + j, t]) for j, t in enumerate(ids)))
            wanted = np.array(wanted)
            if single:
                wanted = wanted - np.logaddexp.reduce(wanted)
            np.testing.assert_allclose(outputs.log_probs[n, e], wanted, rtol=1e-4, atol=1e-4)
            assert outputs.answers[n][e] == choices[int(np.argmax(wanted))]
            assert outputs.scores[n, e] == outputs.lenient[n, e] == (outputs.answers[n][e] == example.answer)
    prompts = [encode(task.prompt(e, TEMPLATE).text) for e in task.examples()]
    shared = common_prefix(prompts)
    given = 0 if single else sum(len(encode(f" {c}")) - 1 for c in choices) * len(prompts)
    total = shared + sum(len(p) - shared for p in prompts) + given  # one slot holds them all
    assert outputs.tokens.tolist() == [total] * 3


@pytest.mark.parametrize(("kind", "noise"), [("choice", Noise()), ("choice", Noise(rank=1)), ("generation", Noise(rank=1))], ids=str)
def test_strategies_give_the_same_answers(model, kind, noise):
    task = Toy(kind)
    examples = task.examples()[:4]  # decoding is compiled for every batch size that it shrinks to
    found = {}
    for strategy in ("lazy", "copy", *(["low_rank"] if noise.rank else [])):
        engine = Engine(model, task, noise, mesh_of_one(), chunk=4, strategy=strategy)
        found[strategy] = engine.run(POPULATION[:4], engine.prepare(examples, TEMPLATE))
    for outputs in found.values():
        assert outputs.answers == found["copy"].answers
        if kind == "choice":
            np.testing.assert_allclose(outputs.log_probs, found["copy"].log_probs, rtol=1e-4, atol=1e-4)


def test_auto_follows_the_cost_model():
    few, many = Work(250, 0.8, 1, 1), Work(60_000, 30.0, 1, 1)
    assert choose(few, Noise(), None) == "lazy" and choose(many, Noise(), None) == "copy"
    decoding = Work(1000, 33.0, 1, 1)
    assert choose(few, Noise(rank=1), None) == "lazy" and choose(decoding, Noise(rank=1), None) == "low_rank"
    assert choose(many, Noise(), 0) == "lazy", "a copy that does not fit is no choice"
    for work in (few, many, decoding):
        for noise in (Noise(), Noise("rademacher"), Noise(rank=2)):
            table = costs(work, noise)
            assert table[choose(work, noise, None)] == min(table.values())


def test_score_population_chooses_by_how_often_the_noise_would_be_made():
    def once(params, x):
        return (x @ params["w"]).sum()

    def often(params, x):
        return jax.lax.fori_loop(0, 50, lambda _, x: jnp.tanh(x @ params["w"]), x).sum()

    params, x = {"w": jnp.ones((8, 8))}, jnp.ones((2, 8))
    arguments = (params, POPULATION, x, Noise(), mesh_of_one(), 1)
    assert _strategy_of(once, *arguments) == "lazy" and _strategy_of(often, *arguments) == "copy"


@pytest.mark.parametrize("kind", ["choice", "generation"])
def test_chunking_and_candidates_in_flight_do_not_change_answers(model, kind):
    task = Toy(kind)
    answers, scores = [], []
    for chunk, in_flight in ((1, 1), (8, 1), (4, 2)):
        engine = Engine(model, task, Noise("rademacher"), mesh_of_one(), chunk=chunk, in_flight=in_flight)
        outputs = engine.run(POPULATION[:7], engine.prepare(task.examples(), TEMPLATE))
        answers.append(outputs.answers)
        scores.append(outputs.scores)
    assert all(a == answers[0] for a in answers)
    assert all(np.array_equal(s, scores[0]) for s in scores)
    assert len(set(answers[0])) > 1, "all candidates answer alike: the comparison would prove nothing"


def test_eight_devices_give_the_answers_of_one(model):
    code = """
import sys, json; sys.path.insert(0, sys.argv[1])
import jax, numpy as np
from support.paths import FIXTURES
from support.toy import POPULATION, TEMPLATE, Toy
from perturbjax.inference import Engine
from perturbjax.noise import Noise
from perturbjax.pretrained import load_model
from perturbjax.sharding import make_mesh
model = load_model(str(FIXTURES / "tiny_qwen2"))
out = {}
for kind in ("choice", "generation"):
    task = Toy(kind)
    for devices in (1, 8):
        engine = Engine(model, task, Noise(), make_mesh(jax.devices()[:devices]), chunk=8)
        o = engine.run(POPULATION[:], engine.prepare(task.examples(), TEMPLATE))
        out[f"{kind} {devices}"] = [o.answers, o.scores.tolist(), o.tokens.tolist()]
print(json.dumps(out))
"""
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code, str(TESTS)], env=env, capture_output=True, text=True, check=True)
    out = json.loads(done.stdout.splitlines()[-1])
    for kind in ("choice", "generation"):
        assert out[f"{kind} 1"] == out[f"{kind} 8"]


def test_population_examples_and_lengths_compile_nothing_anew():
    model = load_model(str(FIXTURES / "tiny_llama3"))  # takes 512 tokens, two buckets of row length
    task = Toy("choice")
    engine = Engine(model, task, Noise(), mesh_of_one(), chunk=2, strategy="lazy")
    examples = task.examples()
    for count, candidates in ((2, 1), (5, 4), (8, 7)):
        engine.run(POPULATION[:candidates], engine.prepare(examples[:count], TEMPLATE))
    assert engine.traces == 1
    long = Example("long", "river " * 180, "x", ("x", "y"))
    engine.run(POPULATION[:1], engine.prepare([*examples, long], TEMPLATE))
    assert engine.traces == 2
    generation = Toy("generation")
    engine = Engine(model, generation, Noise(), mesh_of_one(), chunk=2)
    for count, candidates in ((5, 1), (6, 4), (8, 7)):
        engine.run(POPULATION[:candidates], engine.prepare(examples[:count], TEMPLATE))
    assert engine.traces == 1


def test_generated_texts_are_judged_strictly_and_leniently(model):
    task = Toy("generation")
    engine = Engine(model, task, Noise(), mesh_of_one(), chunk=2)
    prepared = engine.prepare(task.examples(), TEMPLATE)
    outputs = engine.run(Candidate.base(1), prepared)
    encode, ids = model.tokenizer.encode, []
    for e, example in enumerate(task.examples()):
        tokens = encode(task.prompt(example, TEMPLATE).text)
        reply = []
        for _ in range(task.max_new_tokens):
            reply.append(int(logits_of(model, model.params, tokens + reply)[-1].argmax()))
            if reply[-1] in model.tokenizer.stop_ids:
                break
        ids.append(reply)
        assert outputs.answers[0][e] == model.tokenizer.decode(reply)[:3]
    shared = common_prefix([encode(task.prompt(e, TEMPLATE).text) for e in task.examples()])
    prompts = shared + sum(len(encode(task.prompt(e, TEMPLATE).text)) - shared for e in task.examples())
    assert outputs.tokens[0] == prompts + sum(map(len, ids))


def test_samples_are_seeded_and_follow_the_temperature(model):
    for kind in ("choice", "generation"):
        task = Toy(kind)
        engine = Engine(model, task, Noise(), mesh_of_one(), chunk=4)
        prepared = engine.prepare(task.examples(), TEMPLATE)
        base = engine.run(Candidate.base(1), prepared)
        one, again, other = (engine.sample(prepared, 6, 1.0, seed) for seed in (1, 1, 2))
        assert one.answers == again.answers != other.answers
        assert engine.sample(prepared, 2, 1e-4, 0).answers == base.answers * 2
        assert one.tokens[0] > 0 and (kind == "generation" or one.tokens[1:].sum() == 0)


def test_choice_samples_follow_the_base_distribution(model):
    task = Toy("choice")
    engine = Engine(model, task, Noise(), mesh_of_one(), chunk=1)
    prepared = engine.prepare(task.examples(), TEMPLATE)
    log_probs = engine.run(Candidate.base(1), prepared).log_probs
    assert log_probs is not None
    drawn = np.array([[a == "x" for a in row] for row in engine.sample(prepared, 4000, 0.5, 3).answers]).mean(0)
    scaled = np.exp(log_probs[0] / 0.5)
    np.testing.assert_allclose(drawn, scaled[:, 0] / scaled.sum(-1), atol=5 * 0.5 / np.sqrt(4000))


def test_a_broken_candidate_scores_zero_is_counted_and_stops_nothing(model):
    for kind in ("choice", "generation"):
        task = Toy(kind)
        engine = Engine(model, task, Noise(), mesh_of_one(), chunk=4)
        good = POPULATION[:3]
        broken = good._replace(sigma=good.sigma.at[1].set(jnp.inf))
        prepared = engine.prepare(task.examples(), TEMPLATE)
        outputs, fine = engine.run(broken, prepared), engine.run(good, prepared)
        assert outputs.nonfinite == 1 and fine.nonfinite == 0
        assert outputs.scores[1].max() == 0 and set(outputs.answers[1]) == {None}
        assert outputs.answers[0] == fine.answers[0] and outputs.answers[2] == fine.answers[2]


def test_the_base_is_bit_identical_after_a_search(model):
    task = Toy("choice")
    engine = Engine(model, task, Noise(), mesh_of_one(), chunk=4)
    before = fingerprint(model.params)
    engine.run(POPULATION[:], engine.prepare(task.examples(), TEMPLATE))
    assert fingerprint(model.params) == before == fingerprint(jax.device_get(engine.spread.arrays))


def test_reference_counts_the_same_tokens(model):
    task = Toy("choice")
    engine = Engine(model, task, Noise(), mesh_of_one(), chunk=4)
    assert engine.reference(engine.prepare(task.examples(), TEMPLATE), rounds=1) > 0


def test_examples_beyond_the_context_are_named(model):
    task = Toy("choice")
    engine = Engine(model, task, Noise(), mesh_of_one())
    with pytest.raises(InputError, match=r"example 'huge' needs .* tokens under template 'plain'; the model takes"):
        engine.prepare([Example("huge", "river " * (model.config.max_positions + 1), "x", ("x", "y"))], TEMPLATE)


@pytest.mark.parametrize("strategy", ["auto", "lazy", "copy", "low_rank"])
@pytest.mark.parametrize("noise", [Noise(), Noise("rademacher"), Noise(rank=1), Noise("rademacher", rank=2)], ids=str)
def test_score_population_equals_a_loop_over_dense_candidates(noise, strategy):
    if strategy == "low_rank" and noise.rank is None:
        with pytest.raises(ValueError, match="full rank"):
            score_population(lambda p, x: x.sum(), {"w": jnp.ones(2)}, POPULATION, jnp.ones(2), noise, mesh_of_one(), strategy=strategy)
        return
    params = {"w": jnp.linspace(-1, 1, 12).reshape(3, 4), "b": jnp.zeros(4)}
    batch = jnp.arange(15.0).reshape(5, 3)

    def fn(params, x):
        return jnp.tanh(x @ params["w"] + params["b"][None]).sum(-1)

    scores = score_population(fn, params, POPULATION, batch, noise, mesh_of_one(), chunk=4, in_flight=2, strategy=strategy)
    loop = np.stack([fn(perturb(params, POPULATION[i], noise), batch) for i in range(len(POPULATION))])
    np.testing.assert_allclose(scores, loop, rtol=1e-5, atol=1e-5)
    assert score_population(lambda p, x: fn(p, x).mean(), params, POPULATION, batch, noise).shape == (10,)


def test_rules_that_match_nothing_are_reported(caplog):
    params = {"w": jnp.ones((2, 2))}
    noise = Noise(rules=(Rule("^w$", "rms"), Rule("bias", None)))
    score_population(lambda p, x: p["w"].sum() * x, params, POPULATION[:2], jnp.float32(1), noise, mesh_of_one())
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == ["noise rule 'bias' matches no parameter"]


@pytest.mark.parametrize("noise", [Noise(), Noise("rademacher")], ids=str)
def test_memory_is_one_perturbed_copy_and_does_not_grow_with_the_population(noise):
    params = {"w": jnp.zeros((512, 512))}
    temporaries = set()
    for capacity in (4, 4096):
        program = ChunkProgram(lambda p, _, x: (x @ p["w"]).sum(), params, noise, mesh_of_one(), capacity)
        temporaries.add(program.lower(jnp.zeros((8, 512))).compile().memory_analysis().temp_size_in_bytes)
    # One perturbed copy (1 MiB), its words and the activations; the loop's own buffers are a few bytes a candidate.
    assert max(temporaries) < 1.3 * 2**20 and max(temporaries) - min(temporaries) < 2**17
