"""Value networks and their loss against dense formulas on whole sequences, one demonstration at a time."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.value_cases import base, decoder_logits, joined, live_value, log_softmax, value_logits

from perturbjax.ivl import value as value_module
from perturbjax.ivl.combined import CombinedConfig
from perturbjax.ivl.logits_format import LogitsFormat
from perturbjax.ivl.loss import value_loss
from perturbjax.ivl.value import CASCADES, CONNECTIONS, PROBES, ValueConfig, make_value
from perturbjax.models.attention import causal_mask
from perturbjax.models.config import param_shapes
from perturbjax.train import Training, language
from perturbjax.train.demonstrations import EncodedDemonstration
from perturbjax.train.optimizer import make_optimizer
from perturbjax.train.rows import at_queries, pack_rows, segment_mask
from perturbjax.train.step import TrainState, make_step
from perturbjax.tree import fingerprint, leaf_paths

LENGTH = 16
"""Tokens of every sequence that is run whole; causal models do not see the padding at their ends."""


@partial(jax.jit, static_argnums=0)
def logits_at_all(config, params, tokens):
    model = config.build(params)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
    hidden, _ = model(tokens, positions, causal_mask(jnp.ones(tokens.shape, bool)))
    return model.logits(hidden)


def random_tokens(seed=0, rows=3):
    return np.random.default_rng(seed).integers(0, 384, (rows, LENGTH)).astype(np.int32)


@pytest.mark.parametrize(("connection", "name"), [*((each, "tiny_llama_tied") for each in CONNECTIONS), ("cascade_plus", "tiny_llama3")])
def test_a_zero_head_is_the_base_to_the_bit(connection, name):
    model, tokens = base(name), random_tokens()
    plain = logits_at_all(model.config, model.params, tokens)
    for from_base in (True, False):
        value, params = make_value(model.config, model.params, connection, layers=1, from_base=from_base)
        both = logits_at_all(CombinedConfig("value", model.config, (value,)), {"base": model.params, "value": params}, tokens)
        np.testing.assert_array_equal(both, plain)


@pytest.mark.parametrize("name", ["tiny_llama_tied", "tiny_llama3"])
def test_the_whole_base_with_its_head_doubles_the_logits(name):
    model, tokens = base(name), random_tokens()
    value, params = make_value(model.config, model.params, zero_head=False)
    assert value.decoder == model.config
    both = logits_at_all(CombinedConfig("value", model.config, (value,)), {"base": model.params, "value": params}, tokens)
    np.testing.assert_allclose(both, 2 * logits_at_all(model.config, model.params, tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["tiny_llama_tied", "tiny_llama3", "tiny_qwen2"])
@pytest.mark.parametrize("from_base", [True, False])
@pytest.mark.parametrize("zero_head", [True, False])
def test_a_value_network_begins_with_the_layers_it_is_asked_for(name, from_base, zero_head):
    model = base(name)
    value, params = make_value(model.config, model.params, layers=1, from_base=from_base, zero_head=zero_head, seed=3)
    leaves, of_base = leaf_paths(params), leaf_paths(model.params)
    assert {path: leaf.shape for path, leaf in leaves.items()} == param_shapes(value.decoder)
    assert all(leaf.dtype == np.float32 for leaf in leaves.values())
    assert value.decoder.num_layers == 1 and value.decoder.tied_head == (model.config.tied_head and not zero_head)
    for path, leaf in leaves.items():
        if path == "head/kernel" and zero_head:
            assert not leaf.any()
        elif from_base:
            theirs = np.asarray(of_base[path], np.float32)
            np.testing.assert_array_equal(leaf, theirs[:1] if path.startswith("layers/") else theirs)
        elif path.endswith("/kernel") or path.endswith("/embedding"):
            assert 0.015 < leaf.std() < 0.025
    again = make_value(model.config, model.params, layers=1, from_base=from_base, zero_head=zero_head, seed=3)[1]
    assert fingerprint(again) == fingerprint(params)
    other = make_value(model.config, model.params, layers=1, from_base=from_base, zero_head=zero_head, seed=4)[1]
    assert (fingerprint(other) == fingerprint(params)) == from_base


def test_more_layers_than_the_base_has_are_refused():
    model = base()
    for layers in (0, 3):
        with pytest.raises(ValueError, match=f"layers {layers}: 1 to 2, the number that the base has, is required"):
            make_value(model.config, model.params, layers=layers)


DEMONSTRATIONS = [
    EncodedDemonstration(
        str(i),
        tuple(int(t) for t in np.random.default_rng(i).integers(0, 384, 2 + i % 4)),
        tuple(int(t) for t in np.random.default_rng(99 + i).integers(0, 384, 1 + i % 5)),
    )
    for i in range(11)
]
ROWS = pack_rows(DEMONSTRATIONS, 24)


def batch_of(rows=ROWS):
    return {name: jnp.asarray(array) for name, array in rows.batch(np.arange(len(rows))).items()}


def naive_sums(model, value, params, penalty, power):
    """The sums of the loss: no packing, no batch mask, float64."""
    tokens = np.zeros((len(DEMONSTRATIONS), LENGTH), np.int32)
    for row, each in zip(tokens, DEMONSTRATIONS, strict=True):
        row[: len(each.prompt) + len(each.response)] = (*each.prompt, *each.response)
    z_base = decoder_logits(model.config, model.params, tokens)
    z_value = value_logits(value, params, tokens, z_base)
    sums = dict.fromkeys(("loss", "cross_entropy", "base_cross_entropy", "norm", "weight"), 0.0)
    for row, each in enumerate(DEMONSTRATIONS):
        for place, token in enumerate(each.response):
            at = len(each.prompt) - 1 + place
            of_base, of_value = z_base[row, at].astype(np.float64), z_value[row, at].astype(np.float64)
            crossed, norm = -log_softmax(joined(value, of_base, of_value))[token], np.mean(np.abs(of_value) ** power)
            found = (crossed + penalty * norm, crossed, -log_softmax(of_base)[token], norm, 1)
            sums = {name: total + new for (name, total), new in zip(sums.items(), found, strict=True)}
    return sums


@pytest.mark.parametrize(("connection", "power"), [*((name, 1) for name in CONNECTIONS), ("residual", 2), ("cascade_plus", 2)])
def test_the_loss_is_that_of_the_demonstrations_one_by_one(connection, power):
    model = base()
    value, params = live_value(model, connection)
    loss = value_loss(value, model.config, jnp.float32, penalty=0.7, power=power)
    sums = jax.jit(loss)(params, model.params, batch_of())
    expected = naive_sums(model, value, params, 0.7, power)
    assert sums.keys() == expected.keys()
    np.testing.assert_allclose([sums[name] for name in expected], list(expected.values()), rtol=2e-5)
    # A value network that hardly moves the logits would prove nothing.
    assert abs(expected["cross_entropy"] - expected["base_cross_entropy"]) > 0.02 * expected["base_cross_entropy"]
    assert expected["norm"] > 0.01 * expected["weight"]


def gradients(loss, params, frozen, batch):
    """(gradient of the loss with respect to the value network and to the base, the sums)."""

    def total(params, frozen):
        sums = loss(params, frozen, batch)
        return sums["loss"], sums

    return jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(params, frozen)


def assert_same_gradients(one, other):
    for path, leaf in leaf_paths(one).items():
        np.testing.assert_allclose(leaf_paths(other)[path], leaf, rtol=1e-4, atol=1e-5 * np.abs(leaf).max(), err_msg=path)


@pytest.fixture(scope="module")
def cascade():
    """The value network that uses everything, its loss, gradients and sums."""
    model = base()
    value, params = live_value(model, "cascade_plus", layers=2)
    return value, params, gradients(value_loss(value, model.config, jnp.float32), params, model.params, batch_of())


def test_the_base_gets_no_gradient_and_every_leaf_of_the_value_network_does(cascade):
    _, _, ((trained, frozen), _) = cascade
    assert all(not leaf.any() for leaf in jax.tree.leaves(frozen))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(trained))


def test_positions_in_pieces_and_layers_made_again_change_nothing(cascade, monkeypatch):
    model = base()
    value, params, ((whole, _), sums) = cascade
    assert whole_logits(value_loss(value, model.config, jnp.float32), params)
    monkeypatch.setattr(language, "LOGIT_ROWS", 4 * len(ROWS))
    monkeypatch.setattr(value_module, "CASCADE_LOGITS", 6 * len(ROWS))
    loss = value_loss(value, model.config, jnp.float32, remat=True)
    assert not whole_logits(loss, params)
    (trained, frozen), again = gradients(loss, params, model.params, batch_of())
    assert all(not leaf.any() for leaf in jax.tree.leaves(frozen))
    np.testing.assert_allclose([again[name] for name in sums], list(sums.values()), rtol=1e-5)
    assert_same_gradients(whole, trained)


def whole_logits(loss, params):
    """Whether the logits of all positions, or of all that are learned, are in memory at a time."""
    program = str(jax.make_jaxpr(loss)(params, base().params, batch_of()))
    queries = ROWS.arrays["query"].shape[1]
    return any(f"f32[{len(ROWS)},{positions},384]" in program for positions in (24, queries))


class Exact(LogitsFormat):
    """Logits as they are."""

    @property
    def arrays(self):
        return {"z_base": ((self.vocab_size,), np.dtype(np.float32))}

    def decode(self, stored):
        return stored["z_base"]


def test_logits_that_are_given_stand_for_the_base():
    model, batch = base(), batch_of()

    def stored(batch):
        decoder = model.config.build(model.params)
        hidden, _ = decoder(batch["tokens"], batch["positions"], segment_mask(batch["segments"]))
        return decoder.logits(at_queries(hidden, batch["query"]))

    z_base = jax.jit(stored)(batch)
    for connection in ("residual", "mlp"):
        value, params = live_value(model, connection, layers=1)
        (ran, _), sums = gradients(value_loss(value, model.config, jnp.float32), params, model.params, batch)
        given = value_loss(value, model.config, jnp.float32, cached=Exact(384))
        (trained, _), again = gradients(given, params, (), batch | {"z_base": z_base})
        np.testing.assert_allclose([again[name] for name in sums], list(sums.values()), rtol=1e-6)
        assert_same_gradients(ran, trained)


@pytest.mark.parametrize("connection", CASCADES)
def test_a_cascade_takes_no_logits_of_some_positions(connection):
    value, _ = live_value(base(), connection)
    with pytest.raises(ValueError, match=f"cached: a {connection} reads the base's logits at all positions, not at the learned ones alone"):
        value_loss(value, base().config, jnp.float32, cached=LogitsFormat(384))


@pytest.mark.parametrize("connection", PROBES)
def test_a_probe_on_a_model_axis_is_refused(connection):
    with pytest.raises(ValueError, match=f"connection {connection}: a probe is not sharded over a model axis"):
        ValueConfig(base().config, connection).partition(2)
    assert ValueConfig(base().config, connection).partition(1) is None


def test_steps_leave_the_base_as_it_was_and_lower_the_loss():
    model = base()
    value, params = make_value(model.config, model.params, layers=1)
    frozen = jax.tree.map(jnp.asarray, model.params)
    training = Training(steps=8, learning_rate=1e-2, warmup=0.0)
    optimizer = make_optimizer(training, training.total_steps(0))
    step = jax.jit(make_step(value_loss(value, model.config, jnp.float32, penalty=0.1), optimizer))
    state = TrainState(params, jax.jit(optimizer.init)(params))
    looks = []
    for _ in range(8):
        state, sums = step(state, frozen, {name: array[None] for name, array in batch_of().items()})
        looks.append({name: float(each) for name, each in sums.items()})
    assert fingerprint(frozen) == fingerprint(model.params)
    # A head of zeros gives its layers no gradient; after one step it does.
    assert looks[0]["norm"] == 0 and looks[0]["cross_entropy"] == pytest.approx(looks[0]["base_cross_entropy"], rel=1e-6)
    assert looks[-1]["base_cross_entropy"] == looks[0]["base_cross_entropy"] and looks[-1]["norm"] > 0
    assert looks[-1]["cross_entropy"] < 0.8 * looks[-1]["base_cross_entropy"]
    changed = {path for path, leaf in leaf_paths(state.params).items() if not np.array_equal(leaf, leaf_paths(params)[path])}
    assert changed == leaf_paths(params).keys()
