"""Models added up logit by logit, against whole sequences that are run one part after the other and added up in numpy."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.toy import POPULATION, TEMPLATE, Toy, one_batch_size
from support.value_cases import (
    base,
    decoder_logits,
    entropy,
    joined,
    live_value,
    log_softmax,
    mapped,
    random_map,
    softmax,
    value_logits,
)

from perturbjax.inference import Engine, decode
from perturbjax.inference.decode import NO_TOKEN, generate
from perturbjax.ivl.combined import CombinedConfig, combine
from perturbjax.ivl.value import ValueConfig
from perturbjax.models.attention import causal_mask
from perturbjax.models.language_model import run_prefix
from perturbjax.noise import Noise, Rule, perturb
from perturbjax.sharding import make_mesh
from perturbjax.tree import fingerprint, leaf_paths

SIZE = 300
"""Rows of the embedding of a value network with a vocabulary of its own, of which its tokenizer has 297; the base's has 380 of 384."""
MAP = random_map(1, 380, 297)
TOKENS = np.random.default_rng(5).integers(0, 384, (3, 20)).astype(np.int32)
VALUE_ALONE = Noise("rademacher", rules=(Rule("^base/", None),))


@dataclass(frozen=True)
class Case:
    """One way to add models up; ``formula`` gives all logits (B, T, V) of (params, tokens)."""

    config: CombinedConfig
    params: dict[str, Any]
    formula: Callable[[Any, Any], np.ndarray]

    def gated(self, gate: float) -> "Case":
        def formula(params, tokens):
            z = decoder_logits(self.config.base, params["base"], tokens)
            return np.where(entropy(z)[..., None] > gate, self.formula(params, tokens), z)

        return Case(dataclasses.replace(self.config, gate=gate), self.params, formula)

    @property
    def model(self):
        config = self.config
        value = config.others[0]
        assert isinstance(value, ValueConfig)
        return combine(base(), value, self.params["value"], config.alpha, config.gate, config.vocabulary)


def of_base(params, tokens):
    return decoder_logits(base().config, params["base"], tokens)


def value_case(connection="residual", alpha=1.0, vocabulary=None):
    value, params = live_value(base(), connection, size=None if vocabulary is None else SIZE, scale=0.3 if vocabulary is None else 2.0)

    def formula(params, tokens):
        z = of_base(params, tokens)
        return joined(value, z, mapped(vocabulary, value_logits(value, params["value"], tokens, z, vocabulary), 384), alpha)

    config = CombinedConfig("value", base().config, (value,), alpha, vocabulary=vocabulary, reads=vocabulary)
    return Case(config, {"base": base().params, "value": params}, formula)


@cache
def other_model(name):
    """A model of its own shape and weights, with logits that matter."""
    model, rng = base(name), np.random.default_rng(7)
    leaves = {path: np.asarray(leaf, np.float32) for path, leaf in leaf_paths(model.params).items()}
    moved = iter([leaf + rng.normal(0, 0.1, leaf.shape).astype(np.float32) for leaf in leaves.values()])
    return model.config, jax.tree.map(lambda _: next(moved), model.params)


def proxy_case(alpha):
    (tuned, its), (untuned, others) = other_model("tiny_qwen2"), other_model("tiny_llama3")
    config = CombinedConfig("proxy", base().config, (tuned, untuned), alpha)

    def formula(params, tokens):
        change = decoder_logits(tuned, params["tuned"], tokens) - decoder_logits(untuned, params["untuned"], tokens)
        return of_base(params, tokens) + alpha * change

    return Case(config, {"base": base().params, "tuned": its, "untuned": others}, formula)


def contrastive_case(alpha, cutoff):
    amateur, its = other_model("tiny_qwen2")

    def formula(params, tokens):
        z = of_base(params, tokens)
        probs = softmax(z)
        wanted = log_softmax(z) - alpha * log_softmax(decoder_logits(amateur, params["amateur"], tokens))
        return np.where(probs >= cutoff * probs.max(axis=-1, keepdims=True), wanted, -np.inf)

    config = CombinedConfig("contrastive", base().config, (amateur,), alpha, cutoff=cutoff)
    return Case(config, {"base": base().params, "amateur": its}, formula)


MAKERS = {
    "value": value_case,
    "value, alpha": lambda: value_case(alpha=-0.6),
    "multiplicative": lambda: value_case("multiplicative", alpha=0.5),
    "cascade": lambda: value_case("cascade", alpha=1.5),
    "cascade_plus": lambda: value_case("cascade_plus"),
    "linear": lambda: value_case("linear", alpha=0.5),
    "mlp": lambda: value_case("mlp"),
    "map": lambda: value_case(alpha=0.8, vocabulary=MAP),
    "proxy": lambda: proxy_case(0.7),
    "contrastive": lambda: contrastive_case(0.6, 0.3),
    "contrastive, all": lambda: contrastive_case(1.0, 1e-30),
}
GATED = ("value", "map", "proxy", "contrastive")
SAME_PARTS = {"value, alpha": "value", "contrastive, all": "contrastive"}
"""Cases that add up the hidden states of another case."""


@cache
def case(name):
    return MAKERS[name]()


@cache
def middle():
    """The median entropy of the base."""
    return float(np.median(entropy(of_base(case("value").params, TOKENS))))


@cache
def found():
    """(name, kind) -> the logits of all cases, by one program: without a gate, with one, with one that is always open, always shut."""

    gates = {"": None, "gated": middle(), "open": -1.0, "shut": 100.0}

    @jax.jit
    def run(params, tokens):
        b, t = tokens.shape
        positions, mask = jnp.broadcast_to(jnp.arange(t)[None], (b, t)), causal_mask(jnp.ones((b, t), bool))
        results, hidden_of = {}, {}
        for name in MAKERS:
            parts = SAME_PARTS.get(name, name)
            if parts == name:
                hidden_of[name], _ = case(name).config.build(params[name])(tokens, positions, mask)
            hidden = hidden_of[parts]
            for kind, gate in gates.items():
                if gate is None or name in GATED:
                    results[name, kind] = dataclasses.replace(case(name).config, gate=gate).build(params[name]).logits(hidden)
        model = base().config.build(base().params)
        return results | {("base", ""): model.logits(model(tokens, positions, mask)[0])}

    return {key: np.asarray(z) for key, z in run({name: case(name).params for name in MAKERS}, TOKENS).items()}


@pytest.mark.parametrize("name", MAKERS)
def test_joined_logits_are_the_formula(name):
    got, wanted = found()[name, ""], case(name).formula(case(name).params, TOKENS)
    assert fingerprint(case(name).params) == fingerprint(case(SAME_PARTS.get(name, name)).params)
    if name.startswith("contrastive"):
        np.testing.assert_array_equal(got < -1e29, np.isneginf(wanted))
        assert np.isneginf(wanted).any() == (name == "contrastive")
        got, wanted = (np.maximum(log_softmax(z), -1e3) for z in (np.where(got < -1e29, -np.inf, got), wanted))
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=3e-4)
    changed = (got.argmax(axis=-1) != found()["base", ""].argmax(axis=-1)).mean()
    assert changed > 0.1, f"{changed:.0%} of the likeliest tokens change: the comparison would prove little"


@pytest.mark.parametrize("name", GATED)
def test_a_gate_adds_where_the_base_is_unsure_and_leaves_the_rest_to_the_bit(name):
    plain, whole = found()["base", ""], found()[name, ""]
    open_ = entropy(plain) > middle()
    assert 0.4 < open_.mean() < 0.6
    np.testing.assert_array_equal(found()[name, "gated"][~open_], plain[~open_])
    np.testing.assert_allclose(found()[name, "gated"][open_], whole[open_], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found()[name, "open"], whole, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found()[name, "shut"], plain)


def test_a_value_network_reads_the_tokens_of_its_own_vocabulary():
    """An exact token is read as its partner, to the bit: with a map that only renames, the model is the one without."""
    config, params = case("value").config, case("value").params
    order = np.random.default_rng(0).permutation(384).astype(np.int32)
    renaming = dataclasses.replace(MAP, indices=order[:, None], weights=np.ones((384, 1), np.float32), exact=np.ones(384, bool),
                                   valid=np.ones(384, bool))  # fmt: skip
    place = np.argsort(order)
    value = params["value"]
    renamed = value | {
        "embed": {"embedding": value["embed"]["embedding"][place]},
        "head": {"kernel": value["head"]["kernel"][:, place]},
    }

    @partial(jax.jit, static_argnums=0)
    def run(config, params):
        model = config.build(params)
        positions, mask = jnp.broadcast_to(jnp.arange(20)[None], (3, 20)), causal_mask(jnp.ones((3, 20), bool))
        hidden, _ = model(TOKENS, positions, mask)
        return hidden[1], model.logits(hidden)

    hidden, logits = run(config, params)
    other_hidden, other_logits = run(dataclasses.replace(config, vocabulary=renaming, reads=renaming), params | {"value": renamed})
    np.testing.assert_array_equal(hidden, other_hidden)
    np.testing.assert_allclose(log_softmax(logits), log_softmax(other_logits), atol=1e-4)


RNG = np.random.default_rng(1)
PREFIX = RNG.integers(5, 380, 7).tolist()
PROMPTS = [RNG.integers(5, 380, n).tolist() for n in (4, 11, 1, 7, 16, 2, 9, 9, 3, 12, 5)]
WIDTH = 10
MARGIN = 1e-4


def naive_replies(formula, params, prompts, width):
    """Greedy tokens of each prompt: no cache, no stop, all of the sequence anew for every token."""
    tokens = np.zeros((len(prompts), 40), np.int32)
    lengths, rows = [len(prompt) for prompt in prompts], np.arange(len(prompts))
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    for step in range(width):
        last = formula(params, tokens)[rows, np.add(lengths, step - 1)]
        second, first = np.sort(last, axis=-1)[:, -2:].T
        assert (first - second > MARGIN).all(), "a near tie, which rounding may turn: take other weights"
        for row, length, token in zip(tokens, lengths, last.argmax(axis=-1), strict=True):
            row[length + step] = token
    return [row[length : length + width].tolist() for row, length in zip(tokens, lengths, strict=True)]


def until_stop(reply, stops):
    end = next((i + 1 for i, token in enumerate(reply) if token in stops), len(reply))
    return reply[:end] + [NO_TOKEN] * (len(reply) - end)


def stopping(free, seed=2):
    """Stop tokens that end the replies at several places, and the replies."""
    places = np.random.default_rng(seed).integers(1, WIDTH, (500, 11))
    for stops in (tuple(sorted({free[i][where[i]] for i in range(0, 11, 3)})) for where in places):
        replies = [until_stop(reply, stops) for reply in free]
        if len({reply.count(NO_TOKEN) for reply in replies}) >= 4 and sum(reply[-1] != NO_TOKEN for reply in replies) <= 4:
            return stops, replies
    raise AssertionError("no stop tokens give replies of four lengths")


@pytest.mark.parametrize(("name", "sizes"), [("map, gated", (4,)), ("cascade_plus", ()), ("mlp", ()), ("proxy", (4,))])
def test_replies_from_shrinking_batches_are_those_of_whole_sequences(name, sizes, monkeypatch):
    monkeypatch.setattr(decode, "ROW_SIZES", sizes)
    monkeypatch.setattr(decode, "PREFILL_TOKENS", 20)  # the prompts run row by row
    chosen = case("map").gated(middle()) if name == "map, gated" else case(name)
    free = naive_replies(chosen.formula, chosen.params, [PREFIX + prompt for prompt in PROMPTS], WIDTH)
    stops, expected = stopping(free) if sizes else ((), free)
    tokens = np.zeros((11, 16), np.int32)
    for row, prompt in zip(tokens, PROMPTS, strict=True):
        row[: len(prompt)] = prompt

    @jax.jit
    def run(params):
        model = chosen.config.build(params)
        prefix = run_prefix(model, jnp.asarray([PREFIX + [0] * 5]), jnp.int32(len(PREFIX)))
        lengths = jnp.asarray([len(prompt) for prompt in PROMPTS])
        return generate(model, jnp.asarray(tokens), lengths, jnp.ones(11, bool), WIDTH, stops, prefix, len(PREFIX))

    replies = run(chosen.params)
    assert replies.tokens.tolist() == expected and replies.finite.all()
    ran, whole = replies.row_steps.tolist()
    assert (ran < whole) == bool(sizes), "no row leaves early: the comparison would prove nothing"
    alone = naive_replies(of_base, chosen.params, [PREFIX + prompt for prompt in PROMPTS], WIDTH)
    assert sum(one != other for one, other in zip(alone, free, strict=True)) > 5


@pytest.fixture
def quick(monkeypatch):
    one_batch_size(monkeypatch)


def engine_of(chosen, task, noise=None, **settings):
    engine = Engine(chosen.model, task, noise or Noise(), make_mesh(jax.devices()[:1]), **settings)
    return engine, engine.prepare(task.examples(), TEMPLATE)


def naive_log_probs(chosen, params, task):
    """(E, C) log-probabilities of the choices, each after its prompt in a sequence of its own."""
    encode = base().tokenizer.encode
    pairs = [(base().tokenizer.encode_prompts([task.prompt(e, TEMPLATE)])[0], encode(f" {c}")) for e in task.examples() for c in e.choices]
    tokens = np.zeros((len(pairs), 40), np.int32)
    for row, (prompt, choice) in zip(tokens, pairs, strict=True):
        row[: len(prompt) + len(choice)] = prompt + choice
    log_probs = log_softmax(chosen.formula(params, tokens))
    wanted = [
        sum(row[len(prompt) - 1 + j, token] for j, token in enumerate(choice))
        for row, (prompt, choice) in zip(log_probs, pairs, strict=True)
    ]
    wanted = np.reshape(wanted, (-1, len(task.choices)))
    if all(len(choice) == 1 for _, choice in pairs):
        wanted = wanted - np.logaddexp.reduce(wanted, axis=1, keepdims=True)
    return wanted


@pytest.mark.parametrize(("name", "choices"), [("map", ("x", "y")), ("cascade_plus", ("river of stone", "x"))])
def test_choices_are_scored_as_in_sequences_of_their_own(name, choices, quick):
    chosen = case(name).gated(middle()) if name == "map" else case(name)
    task = Toy("choice", choices)
    engine, prepared = engine_of(chosen, task, chunk=1)
    outputs = engine.run_plain(prepared)
    assert outputs.log_probs is not None
    np.testing.assert_allclose(outputs.log_probs[0], naive_log_probs(chosen, chosen.params, task), rtol=1e-4, atol=1e-4)
    assert np.abs(outputs.log_probs[0] - naive_log_probs(Case(chosen.config, {}, of_base), chosen.params, task)).max() > 0.05


def perturbed(chosen, numbers, noise):
    """The parameters of some candidates."""
    trees = jax.jit(jax.vmap(lambda candidate: perturb(chosen.params, candidate, noise)))(POPULATION[numbers.start : numbers.stop])
    trees = jax.device_get(trees)
    return [jax.tree.map(lambda leaf, n=n: leaf[n], trees) for n in range(len(numbers))]


def naive_texts(chosen, params, task):
    tokenizer = base().tokenizer
    prompts = tokenizer.encode_prompts([task.prompt(e, TEMPLATE) for e in task.examples()])
    replies = naive_replies(chosen.formula, params, prompts, task.max_new_tokens)
    texts = [tokenizer.decode([t for t in until_stop(reply, tokenizer.stop_ids) if t != NO_TOKEN]) for reply in replies]
    return tuple(task.extract(text, None) for text in texts)


def test_a_search_that_moves_the_value_network_alone(quick):
    """Strategies agree with the formula on perturbed parameters, and so with each other."""
    chosen, noise = case("map").gated(middle()), VALUE_ALONE
    candidates = POPULATION[4:7]
    moved = perturbed(chosen, range(4, 7), noise)
    for tree in moved:
        changed = {path for path, leaf in leaf_paths(tree).items() if not np.array_equal(leaf, leaf_paths(chosen.params)[path])}
        assert changed == {path for path in leaf_paths(chosen.params) if path.startswith("value/")}
    task = Toy("choice", ("river of stone", "x"))
    wanted = np.stack([naive_log_probs(chosen, tree, task) for tree in moved])
    assert np.ptp(wanted, axis=0).max() > 0.05
    for strategy, in_flight in (("lazy", 1), ("copy", 3)):
        engine, prepared = engine_of(chosen, task, noise, chunk=3, strategy=strategy, in_flight=in_flight)
        log_probs = engine.run(candidates, prepared).log_probs
        assert log_probs is not None
        np.testing.assert_allclose(log_probs, wanted, rtol=1e-4, atol=1e-4)


def test_replies_of_a_search_are_those_of_perturbed_parameters(quick):
    chosen, task = case("map").gated(middle()), Toy("generation")
    noise = Noise("rademacher", rules=(Rule("^base/|/layers/", None),))  # a few leaves, which are looked up and multiplied
    engine, prepared = engine_of(chosen, task, noise, chunk=2, strategy="lazy")
    texts = [naive_texts(chosen, tree, task) for tree in perturbed(chosen, range(4, 6), noise)]
    assert len(set(texts)) == 2
    assert list(engine.run(POPULATION[4:6], prepared).answers) == texts


def test_samples_of_an_engine(quick):
    chosen, task = case("value"), Toy("generation")
    engine, prepared = engine_of(chosen, task, chunk=2)
    cold, warm = (engine.sample(prepared, 2, temperature, 3).answers for temperature in (1e-6, 1.0))
    plain = naive_texts(chosen, chosen.params, task)
    assert cold == (plain, plain)
    assert len({*warm, plain}) == 3
