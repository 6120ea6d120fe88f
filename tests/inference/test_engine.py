"""The engine against plain loops: what is packed, chunked, prefixed, vmapped or sharded gives the same answers."""

import json
import os
import subprocess
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.paths import FIXTURES, SUPPORT, TESTS
from support.toy import POPULATION, TEMPLATE, Toy, one_batch_size

from perturbjax.errors import InputError
from perturbjax.inference import Engine
from perturbjax.inference.decode import ROW_SIZES
from perturbjax.inference.packing import common_prefix
from perturbjax.models.attention import causal_mask
from perturbjax.models.decoder import decoder_from_params
from perturbjax.noise import Candidate, Noise, Population, perturb
from perturbjax.pretrained import load_model
from perturbjax.randopt.flow import graded_chunks
from perturbjax.sharding import make_mesh
from perturbjax.tasks.base import Example
from perturbjax.tree import fingerprint


@pytest.fixture(scope="module")
def model():
    return load_model(str(FIXTURES / "tiny_qwen2"))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    one_batch_size(monkeypatch)


CHUNK = 4
"""Of all engines here whose test is not about chunks: programs that are the same are compiled once."""


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
    engine = Engine(model, task, noise, mesh_of_one(), chunk=CHUNK)
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
        engine = Engine(model, task, noise, mesh_of_one(), chunk=CHUNK, strategy=strategy)
        found[strategy] = engine.run(POPULATION[:4], engine.prepare(examples, TEMPLATE))
    for outputs in found.values():
        assert outputs.answers == found["copy"].answers
        if kind == "choice":
            np.testing.assert_allclose(outputs.log_probs, found["copy"].log_probs, rtol=1e-4, atol=1e-4)


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
import jax, pytest
from support.paths import FIXTURES
from support.toy import POPULATION, TEMPLATE, Toy, one_batch_size
from perturbjax.inference import Engine
from perturbjax.noise import Noise
from perturbjax.pretrained import load_model
from perturbjax.sharding import make_mesh
model = load_model(str(FIXTURES / "tiny_qwen2"))
one_batch_size(pytest.MonkeyPatch())
out = {}
for kind in ("choice", "generation"):
    task = Toy(kind)
    for devices in (1, 8):
        engine = Engine(model, task, Noise("rademacher"), make_mesh(jax.devices()[:devices]), chunk=8)
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


def test_generated_texts_are_those_of_greedy_decoding(model, monkeypatch):
    one_batch_size(monkeypatch, ROW_SIZES)  # with rows that leave the batch
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
        engine = Engine(model, task, Noise(), mesh_of_one(), chunk=CHUNK)
        prepared = engine.prepare(task.examples(), TEMPLATE)
        base = engine.run(Candidate.base(1), prepared)
        one, again, other = (engine.sample(prepared, 6, 1.0, seed) for seed in (1, 1, 2))
        assert one.answers == again.answers != other.answers
        assert engine.sample(prepared, 2, 1e-4, 0).answers == base.answers * 2
        assert one.tokens[0] > 0 and (kind == "generation" or one.tokens[1:].sum() == 0)


def test_choice_samples_follow_the_base_distribution(model):
    task = Toy("choice")
    engine = Engine(model, task, Noise(), mesh_of_one(), chunk=CHUNK)
    prepared = engine.prepare(task.examples(), TEMPLATE)
    log_probs = engine.run(Candidate.base(1), prepared).log_probs
    assert log_probs is not None
    drawn = np.array([[a == "x" for a in row] for row in engine.sample(prepared, 4000, 0.5, 3).answers]).mean(0)
    scaled = np.exp(log_probs[0] / 0.5)
    np.testing.assert_allclose(drawn, scaled[:, 0] / scaled.sum(-1), atol=5 * 0.5 / np.sqrt(4000))


def test_a_broken_candidate_scores_zero_is_counted_and_stops_nothing(model):
    for kind in ("choice", "generation"):
        task = Toy(kind)
        engine = Engine(model, task, Noise(), mesh_of_one(), chunk=CHUNK)
        good = POPULATION[:3]
        broken = good._replace(sigma=good.sigma.at[1].set(jnp.inf))
        prepared = engine.prepare(task.examples(), TEMPLATE)
        outputs, fine = engine.run(broken, prepared), engine.run(good, prepared)
        assert outputs.nonfinite == 1 and fine.nonfinite == 0
        assert outputs.scores[1].max() == 0 and set(outputs.answers[1]) == {None}
        assert outputs.answers[0] == fine.answers[0] and outputs.answers[2] == fine.answers[2]


class Slow(Toy):
    """Grading a chunk takes about as long as running it."""

    max_new_tokens = 40

    def score(self, answer, example):
        time.sleep(0.01)
        return super().score(answer, example)


def test_a_chunk_that_is_graded_while_the_next_runs_is_as_it_is_alone(model):
    task, population = Slow("generation"), Population(seed=4, size=24, sigmas=(0.3,))
    engine = Engine(model, task, Noise(), mesh_of_one(), chunk=CHUNK)
    examples, chunks = task.examples()[:2], [population[start : start + CHUNK] for start in range(0, 24, CHUNK)]
    engine.run(chunks[0], engine.prepare(examples, TEMPLATE))  # compiles
    batch, started = engine.prepare(examples, TEMPLATE), time.perf_counter()
    alone = [engine.run(chunk, batch) for chunk in chunks]
    ended = time.perf_counter()
    prepared = engine.prepare(examples, TEMPLATE)  # has seen no reply yet
    begun = time.perf_counter()
    together = [outputs for _, outputs in graded_chunks(engine, population, np.arange(24), prepared)]
    took = time.perf_counter() - begun
    print(f"6 chunks graded in turn: {ended - started:.2f} s; each while the next runs: {took:.2f} s")
    for one, other in zip(alone, together, strict=True):
        assert (one.answers, one.keys) == (other.answers, other.keys) and np.array_equal(one.scores, other.scores)
    assert 0 < sum(outputs.seconds for outputs in together) <= took  # no second is counted twice


def test_the_base_is_bit_identical_after_a_search(model):
    task = Toy("choice")
    engine = Engine(model, task, Noise(), mesh_of_one(), chunk=CHUNK)
    before = fingerprint(model.params)
    engine.run(POPULATION[:], engine.prepare(task.examples(), TEMPLATE))
    assert fingerprint(model.params) == before == fingerprint(jax.device_get(engine.params.arrays))


@pytest.mark.parametrize("kind", ["choice", "generation"])
def test_reference_is_the_rate_of_the_same_tokens(model, kind, monkeypatch):
    task, ran = Toy(kind), []
    engine = Engine(model, task, Noise(), mesh_of_one(), chunk=CHUNK)
    batch, plain = engine.prepare(task.examples()[:4], TEMPLATE), engine.run_plain
    monkeypatch.setattr(engine, "run_plain", lambda batch: ran.append(plain(batch)) or ran[-1])
    rate = engine.reference(batch, rounds=3)
    tokens = engine.run(Candidate.base(1), batch).tokens.tolist()
    assert len(ran) == 4 and all(outputs.tokens.tolist() == tokens for outputs in ran)
    # The first compiles and does not count.
    assert rate == np.median([tokens[0] / outputs.seconds for outputs in ran[1:]])


def test_examples_beyond_the_context_are_named(model):
    task = Toy("choice")
    engine = Engine(model, task, Noise(), mesh_of_one())
    with pytest.raises(InputError, match=r"example 'huge' needs .* tokens under template 'plain'; the model takes"):
        engine.prepare([Example("huge", "river " * (model.config.max_positions + 1), "x", ("x", "y"))], TEMPLATE)


def test_a_chunk_that_does_not_fit_is_scored_with_fewer_candidates_in_flight():
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, str(SUPPORT / "short_of_memory.py")], env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    asked, fitted, verdict = done.stdout.split()
    assert 1 <= int(fitted) <= int(asked) // 2 and verdict == "equal", done.stdout
    said = [line for line in done.stderr.splitlines() if "out of memory with" in line]
    assert said[0].startswith(f"out of memory with {asked} candidates in flight, going on with {int(asked) // 2} (RESOURCE_EXHAUSTED"), (
        done.stderr
    )
    assert f"going on with {fitted} " in said[-1]


@pytest.mark.parametrize(
    ("reason", "kind", "message"),
    [
        ("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.", MemoryError, "one candidate at a time does not fit.*shard the model"),
        ("INTERNAL: something else", jax.errors.JaxRuntimeError, "something else"),
    ],
)
def test_what_halving_cannot_mend_is_raised(model, monkeypatch, caplog, reason, kind, message):
    engine = Engine(model, Toy("choice"), Noise(), mesh_of_one(), 4, in_flight=4)
    batch, tried = engine.prepare(Toy("choice").examples(), TEMPLATE), []

    def fail(*order):
        tried.append(engine.in_flight)
        raise jax.errors.JaxRuntimeError(reason)

    monkeypatch.setattr(engine._programs, "_function", fail)
    with pytest.raises(kind, match=message):
        engine.run(Candidate.base(4), batch)
    assert tried == ([4, 2, 1] if kind is MemoryError else [4])
    assert len(caplog.records) == len(tried) - 1
