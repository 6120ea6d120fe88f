"""The engine against plain loops: what is packed, chunked, prefixed or vmapped gives the same answers. On meshes: ``cluster/test_mesh``."""

import os
import subprocess
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.paths import FIXTURES, SUPPORT
from support.toy import POPULATION, TEMPLATE, Toy, one_batch_size

from perturbjax.errors import InputError
from perturbjax.inference import Engine
from perturbjax.inference.packing import common_prefix
from perturbjax.models.attention import causal_mask
from perturbjax.models.decoder import decoder_from_params
from perturbjax.noise import Candidate, Noise, Population, Rule, perturb
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


CHUNK = 8
"""Of all engines here whose test is not about chunks."""
FEW = (Rule("^(?!embed|layers/attention/q|norm)", None),)
"""Leaves that move where a test is not about which do: one of each kind, looked up and tied to the head, stacked matrices and vectors, and
a vector. Noise of all leaves is most of a program."""
SINGLE = ("a", "the")
"""Choices of one token each, which have a program of their own."""
QUERIES = (Rule("^(?!layers/attention/q/kernel)", None),)


def mesh_of_one():
    return make_mesh(jax.devices()[:1])


@pytest.fixture(scope="module")
def choosing(model):
    """Where all leaves move."""
    return Engine(model, Toy("choice", SINGLE), Noise(), mesh_of_one(), chunk=CHUNK)


@pytest.fixture(scope="module")
def spelling(model):
    """Choices of several tokens each."""
    return Engine(model, Toy("choice"), Noise("rademacher", rules=FEW), mesh_of_one(), chunk=CHUNK)


@pytest.fixture(scope="module")
def writing(model):
    """With a batch size that rows leave for; a copy, as the cost model chooses for full rank."""
    with pytest.MonkeyPatch.context() as patch:
        one_batch_size(patch, (8, 4))
        engine = Engine(model, Toy("generation"), Noise("rademacher", 1, rules=FEW), mesh_of_one(), chunk=CHUNK, strategy="copy")
        engine.run(Candidate.base(1), engine.prepare(engine.task.examples(), TEMPLATE))
    return engine


@pytest.fixture(params=["choice", "generation"])
def engine(request):
    return request.getfixturevalue({"choice": "choosing", "generation": "writing"}[request.param])


@partial(jax.jit, static_argnums=0)
def _alone(config, params, rows):
    decoder = decoder_from_params(config, params)

    def one(row):
        hidden, _ = decoder(row[None], jnp.arange(len(row))[None], causal_mask(jnp.ones((1, len(row)), bool)))
        return decoder.logits(hidden)[0]

    return jax.lax.map(one, rows)


def logits_of(model, params, sequences):
    """Each sequence alone, one after the other, (N, T, V); padding behind it is invisible to a causal model and saves compiling every
    length."""
    rows = np.zeros((24, 64), np.int32)
    for row, tokens in zip(rows, sequences, strict=False):
        row[: len(tokens)] = tokens
    return np.asarray(_alone(model.config, params, rows))[: len(sequences)]


@pytest.mark.parametrize(
    ("choices", "rules"), [(SINGLE, ()), (("river of stone", "x", "yes or no"), FEW)], ids=["one token each", "several tokens"]
)
def test_choice_log_probabilities_equal_the_unpacked_ones(model, choosing, choices, rules):
    task, noise = Toy("choice", choices), Noise(rules=rules)
    engine = Engine(model, task, noise, mesh_of_one(), chunk=CHUNK) if rules else choosing
    outputs = engine.run(POPULATION[:3], engine.prepare(task.examples(), TEMPLATE))
    assert outputs.log_probs is not None
    encode = model.tokenizer.encode
    prompts, endings = [encode(task.prompt(e, TEMPLATE).text) for e in task.examples()], [encode(f" {c}") for c in choices]
    single = all(len(ids) == 1 for ids in endings)
    assert single == (choices == SINGLE)
    perturbed = jax.jit(perturb, static_argnums=2)
    for n in range(3):
        logits = logits_of(model, perturbed(model.params, POPULATION[n], noise), [p + ids for p in prompts for ids in endings])
        log_probs = iter(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))
        for e, (example, prompt) in enumerate(zip(task.examples(), prompts, strict=True)):
            wanted = np.array([sum(next(log_probs)[len(prompt) - 1 + np.arange(len(ids)), ids]) for ids in endings])
            if single:
                wanted = wanted - np.logaddexp.reduce(wanted)
            np.testing.assert_allclose(outputs.log_probs[n, e], wanted, rtol=1e-4, atol=1e-4)
            assert outputs.answers[n][e] == choices[int(np.argmax(wanted))]
            assert outputs.scores[n, e] == outputs.lenient[n, e] == (outputs.answers[n][e] == example.answer)
    shared = common_prefix(prompts)
    given = 0 if single else sum(len(ids) - 1 for ids in endings) * len(prompts)
    total = shared + sum(len(p) - shared for p in prompts) + given  # one slot holds them all
    assert outputs.tokens.tolist() == [total] * 3


@pytest.mark.parametrize(
    ("kind", "noise"),
    [
        ("choice", Noise()),
        ("choice", Noise(rank=1, rules=FEW)),
        ("generation", Noise("rademacher", 1, rules=FEW)),
        ("generation", Noise("rademacher", rules=FEW)),
    ],
    ids=str,
)
def test_strategies_give_the_same_answers(model, choosing, writing, kind, noise):
    made = {("choice", choosing.noise, "lazy"): choosing, ("generation", writing.noise, "copy"): writing}
    found = {}
    for strategy in ("lazy", "copy", *(["low_rank"] if noise.rank else [])):
        task = choosing.task if noise == choosing.noise else Toy(kind)
        engine = made.get((kind, noise, strategy)) or Engine(model, task, noise, mesh_of_one(), chunk=CHUNK, strategy=strategy)
        prepared = engine.prepare(engine.task.examples(), TEMPLATE)
        assert prepared.strategy == strategy
        found[strategy] = engine.run(POPULATION[:4], prepared)
    for outputs in found.values():
        assert outputs.answers == found["copy"].answers
        if kind == "choice":
            np.testing.assert_allclose(outputs.log_probs, found["copy"].log_probs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["choice", "generation"])
def test_chunking_and_candidates_in_flight_do_not_change_answers(model, spelling, writing, kind):
    task, made = Toy(kind), spelling if kind == "choice" else writing
    engines = [made]
    for chunk, in_flight in ((1, 1), (4, 2)):
        engines.append(Engine(model, task, made.noise, mesh_of_one(), chunk, in_flight, strategy=made.strategy))
    found = [engine.run(POPULATION[:7], engine.prepare(task.examples(), TEMPLATE)) for engine in engines]
    assert made.chunk == 8
    assert all(outputs.answers == found[0].answers and np.array_equal(outputs.scores, found[0].scores) for outputs in found)
    assert len(set(found[0].answers)) > 1, "all candidates answer alike: the comparison would prove nothing"


def test_population_examples_and_lengths_compile_nothing_anew(writing):
    model = load_model(str(FIXTURES / "tiny_llama3"))  # takes 512 tokens, two buckets of row length
    task = Toy("choice")
    engine = Engine(model, task, Noise("rademacher", rules=QUERIES), mesh_of_one(), chunk=2, strategy="lazy")
    examples = task.examples()
    for count, candidates in ((2, 1), (5, 4), (8, 7)):
        engine.run(POPULATION[:candidates], engine.prepare(examples[:count], TEMPLATE))
    assert engine.traces == 1
    long = Example("long", "river " * 180, "x", ("x", "y"))
    engine.run(POPULATION[:1], engine.prepare([*examples, long], TEMPLATE))
    assert engine.traces == 2
    traces = writing.traces
    for count, candidates in ((5, 1), (6, 4), (8, 10)):
        writing.run(POPULATION[:candidates], writing.prepare(examples[:count], TEMPLATE))
    assert writing.traces == traces >= 1


def test_generated_texts_are_those_of_greedy_decoding(model, writing):
    task, encode = Toy("generation"), model.tokenizer.encode
    outputs = writing.run(Candidate.base(1), writing.prepare(task.examples(), TEMPLATE))
    prompts = [encode(task.prompt(example, TEMPLATE).text) for example in task.examples()]
    replies = [[] for _ in prompts]
    for _ in range(task.max_new_tokens):
        logits = logits_of(model, model.params, [prompt + reply for prompt, reply in zip(prompts, replies, strict=True)])
        for prompt, reply, rows in zip(prompts, replies, logits, strict=True):
            if not reply or reply[-1] not in model.tokenizer.stop_ids:
                reply.append(int(rows[len(prompt + reply) - 1].argmax()))
    assert list(outputs.answers[0]) == [model.tokenizer.decode(reply)[:3] for reply in replies]
    shared = common_prefix(prompts)
    assert outputs.tokens[0] == shared + sum(len(prompt) - shared for prompt in prompts) + sum(map(len, replies))


def test_samples_are_seeded_and_follow_the_temperature(engine):
    prepared = engine.prepare(engine.task.examples(), TEMPLATE)
    base = engine.run(Candidate.base(1), prepared)
    one, again, other = (engine.sample(prepared, 6, 1.0, seed) for seed in (1, 1, 2))
    assert one.answers == again.answers != other.answers
    assert engine.sample(prepared, 2, 1e-4, 0).answers == base.answers * 2
    assert one.tokens[0] > 0 and (engine.task.kind == "generation" or one.tokens[1:].sum() == 0)


def test_choice_samples_follow_the_base_distribution(choosing):
    prepared = choosing.prepare(choosing.task.examples(), TEMPLATE)
    log_probs = choosing.run(Candidate.base(1), prepared).log_probs
    assert log_probs is not None
    drawn = np.array([[a == SINGLE[0] for a in row] for row in choosing.sample(prepared, 4000, 0.5, 3).answers]).mean(0)
    scaled = np.exp(log_probs[0] / 0.5)
    np.testing.assert_allclose(drawn, scaled[:, 0] / scaled.sum(-1), atol=5 * 0.5 / np.sqrt(4000))


@pytest.mark.parametrize("name", ["choosing", "spelling", "writing"])
def test_a_broken_candidate_scores_zero_is_counted_and_stops_nothing(name, request):
    engine = request.getfixturevalue(name)
    good = jax.tree.map(np.array, POPULATION[:3])
    broken = good._replace(sigma=np.where(np.arange(3) == 1, np.float32(np.inf), good.sigma))
    prepared = engine.prepare(engine.task.examples(), TEMPLATE)
    outputs, fine = engine.run(broken, prepared), engine.run(good, prepared)
    assert outputs.nonfinite == 1 and fine.nonfinite == 0
    assert outputs.scores[1].max() == 0 and set(outputs.answers[1]) == {None}
    assert outputs.answers[0] == fine.answers[0] and outputs.answers[2] == fine.answers[2]


class Slow(Toy):
    """Grading a chunk takes about as long as running it."""

    def score(self, answer, example):
        time.sleep(0.002)
        return super().score(answer, example)


def test_a_chunk_that_is_graded_while_the_next_runs_is_as_it_is_alone(writing, monkeypatch):
    monkeypatch.setattr(writing, "task", Slow("generation"))
    population, examples = Population(seed=4, size=48, sigmas=(0.3,)), writing.task.examples()
    chunks = [population[start : start + CHUNK] for start in range(0, 48, CHUNK)]
    batch, started = writing.prepare(examples, TEMPLATE), time.perf_counter()
    alone = [writing.run(chunk, batch) for chunk in chunks]
    ended = time.perf_counter()
    prepared = writing.prepare(examples, TEMPLATE)  # has seen no reply yet
    begun = time.perf_counter()
    together = [outputs for _, outputs in graded_chunks(writing, population, np.arange(48), prepared)]
    took = time.perf_counter() - begun
    print(f"6 chunks graded in turn: {ended - started:.2f} s; each while the next runs: {took:.2f} s")
    for one, other in zip(alone, together, strict=True):
        assert (one.answers, one.keys) == (other.answers, other.keys) and np.array_equal(one.scores, other.scores)
    assert 0 < sum(outputs.seconds for outputs in together) <= took  # no second is counted twice


def test_the_base_is_bit_identical_after_a_search(choosing):
    before = fingerprint(choosing.model.params)
    choosing.run(POPULATION[:], choosing.prepare(choosing.task.examples(), TEMPLATE))
    assert fingerprint(choosing.model.params) == before == fingerprint(jax.device_get(choosing.params.arrays))


def test_reference_is_the_rate_of_the_same_tokens(engine, monkeypatch):
    ran, plain = [], engine.run_plain
    batch = engine.prepare(engine.task.examples(), TEMPLATE)
    monkeypatch.setattr(engine, "run_plain", lambda batch: ran.append(plain(batch)) or ran[-1])
    rate = engine.reference(batch, rounds=3)
    tokens = engine.run(Candidate.base(1), batch).tokens.tolist()
    assert len(ran) == 4 and all(outputs.tokens.tolist() == tokens for outputs in ran)
    # The first compiles and does not count.
    assert rate == np.median([tokens[0] / outputs.seconds for outputs in ran[1:]])


def test_examples_beyond_the_context_are_named(model, choosing):
    with pytest.raises(InputError, match=r"example 'huge' needs .* tokens under template 'plain'; the model takes"):
        choosing.prepare([Example("huge", "river " * (model.config.max_positions + 1), "x", ("x", "y"))], TEMPLATE)


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
