"""What noise changes at the next token, against one dense forward pass a candidate; and the rule, on curves whose answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.paths import FIXTURES
from support.toy import TEMPLATE, Toy, one_batch_size

from perturbjax.errors import InputError
from perturbjax.inference import calibration
from perturbjax.inference.calibration import Point, calibrate, choose
from perturbjax.inference.next_token import Change, NextToken, kl
from perturbjax.models.attention import causal_mask
from perturbjax.models.decoder import decoder_from_params
from perturbjax.noise import Noise, Population, perturb
from perturbjax.pretrained import load_model
from perturbjax.sharding import make_mesh
from perturbjax.tasks.base import Example


@pytest.fixture(scope="module")
def model():
    return load_model(str(FIXTURES / "tiny_qwen2"), "float32")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    one_batch_size(monkeypatch)


EXAMPLES = [Example(str(i), "word " * (1 + i) + "then", "a", ("a", "b")) for i in range(5)]


def test_changes_are_those_of_one_dense_pass_a_candidate(model):
    task, noise, population = Toy("generation"), Noise(), Population(3, 3, (0.02, 0.1))
    measured = NextToken(model, task, EXAMPLES, TEMPLATE, make_mesh(jax.devices()[:1]), chunk=2)
    found = measured.measure(population[:], noise)
    prompts = model.tokenizer.encode_prompts([task.prompt(example, TEMPLATE) for example in EXAMPLES])

    @jax.jit
    def last(params, tokens):
        decoder = decoder_from_params(model.config, params)
        hidden, _ = decoder(tokens, jnp.arange(tokens.shape[1])[None], causal_mask(jnp.ones(tokens.shape, bool)))
        return hidden[0], decoder.logits(hidden)[0]

    def dense(params):
        rows = [last(params, np.pad(prompt, (0, 96 - len(prompt)))[None]) for prompt in prompts]
        ends = [len(prompt) - 1 for prompt in prompts]
        return [np.stack([row[part][end] for row, end in zip(rows, ends, strict=True)]).astype(np.float64) for part in (0, 1)]

    hidden, logits = dense(model.params)
    for i in range(3):
        other_hidden, other = dense(jax.jit(perturb, static_argnums=2)(model.params, population[i], noise))
        p, q = (jax.nn.log_softmax(values, axis=-1) for values in (logits, other))
        np.testing.assert_allclose(found.kl[i], (np.exp(p) * (p - q)).sum(-1), rtol=2e-3, atol=1e-6)
        expected = np.square(other_hidden - hidden).sum(-1) / np.square(hidden).sum(-1).mean()
        np.testing.assert_allclose(found.hidden[i], expected, rtol=1e-3)
        np.testing.assert_array_equal(found.argmax[i], logits.argmax(-1) != other.argmax(-1))


def test_kl_of_close_distributions_keeps_its_figures():
    logits = np.random.default_rng(0).normal(0, 3, (4, 500))
    step = 1e-4 * np.random.default_rng(1).normal(size=(4, 500)) + 5
    p, q = (values - np.log(np.exp(values).sum(-1, keepdims=True)) for values in (logits, logits + step))
    expected = (np.exp(p) * (p - q)).sum(-1)
    assert expected.max() < 1e-8
    # The difference of rounded logits is all that float32 can know.
    found = kl(jnp.asarray(logits, jnp.float32), jnp.asarray(logits + step, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=0.05)
    np.testing.assert_allclose(kl(jnp.asarray(logits), jnp.asarray(logits)), 0, atol=1e-12)


class Quadratic:
    """A model whose KL is 1000 (g sigma)^2 (1 + (g sigma / bend)^2), g the gain of a noise, with NaN above ``limit``."""

    def __init__(self, gain: float, bend: float = np.inf, limit: float = np.inf):
        self.prompts, self.shapes = 8, {"w": jax.ShapeDtypeStruct((10, 10), jnp.float32)}
        self.gain, self.bend, self.limit, self.asked = gain, bend, limit, []

    def measure(self, candidates, noise):
        sigma = np.asarray(candidates.sigma, np.float64)
        self.asked.append((noise, float(sigma[0])))
        step = sigma * (1 if noise == Noise() else self.gain)
        kl = 1000 * step**2 * (1 + (step / self.bend) ** 2) * np.where(step > self.limit, np.nan, 1)
        return Change(np.tile(kl[:, None], (1, 8)), np.tile((2 * step[:, None]) ** 2, (1, 8)), np.zeros((len(sigma), 8), bool))


@pytest.mark.parametrize("gain", [1.0, 1e-4, 37.0, 3000.0])
def test_the_choice_has_the_reference_s_change_whatever_the_unit_of_sigma(gain):
    found = calibrate(Quadratic(gain), Noise("rademacher"), 2, 0)
    assert found.choice == pytest.approx(5e-4 / gain, rel=0.04)  # two figures
    assert found.by_kl == pytest.approx(5e-4 / gain, rel=1e-3) and found.by_hidden == pytest.approx(5e-4 / gain, rel=1e-3)
    np.testing.assert_allclose(found.sigmas, np.multiply((5e-4, 1e-3, 2e-3), 1 / gain), rtol=0.06)
    low, high = found.flat
    assert low <= found.choice / 1.9 and high >= found.choice * 7
    assert found.reference == calibration._point(5e-4, Quadratic(1).measure(Population(0, 2, (5e-4,))[:], Noise()), 0)


def test_isotropic_noise_gets_the_reference_itself_which_is_measured_once():
    model = Quadratic(1)
    found = calibrate(model, Noise(), 2, 0)
    assert found.choice == 5e-4 and found.sigmas == (5e-4, 1e-3, 2e-3)
    assert sorted(sigma for _, sigma in model.asked) == pytest.approx([2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3])
    assert len(model.asked) == calibration.expected_steps(Noise())


@pytest.mark.parametrize(("bend", "sigmas"), [(6e-3, (5e-4, 1e-3)), (2.5e-3, (5e-4,))])
def test_sigmas_end_where_the_model_no_longer_changes_in_proportion(bend, sigmas):
    found = calibrate(Quadratic(1, bend), Noise(), 2, 0)
    assert found.sigmas == sigmas and found.flat[1] == sigmas[-1]


def test_steps_without_finite_logits_are_left_out():
    found = calibrate(Quadratic(1, limit=3e-3), Noise(), 2, 0)
    assert found.flat[1] == 2e-3 and len(found.points) == 4
    with pytest.raises(InputError, match=r"`model`: .* give sigmas by hand"):
        calibrate(Quadratic(1, limit=1e-4), Noise(), 2, 0)
    with pytest.raises(InputError, match=r"`noise`: no sigma near .* give sigmas by hand"):
        calibrate(Quadratic(0.0), Noise("rademacher"), 2, 0)


def test_the_interval_holds_the_mean_and_widens_with_the_spread():
    rng = np.random.default_rng(0)
    kls = rng.gamma(1.0, size=(4, 40)) * rng.gamma(4.0, size=(4, 1))
    point = calibration._point(0.1, Change(kls, kls, kls > 1), 0)
    low, high = point.kl_interval
    assert point.kl == pytest.approx(kls.mean()) and low < point.kl < high
    assert (high - low) > 2 * 1.96 * kls.std() / kls.size**0.5  # candidates are drawn too, not only scores


def test_where_measures_disagree_the_choice_lies_between():
    points = tuple(Point(s, 100 * s**2, (0, 1), s, 0.0) for s in (0.01, 0.02, 0.04))
    found = choose(Point(5e-4, 0.01, (0, 1), 0.04, 0.0), points, 2, 8)
    assert (found.by_kl, found.by_hidden, found.choice) == (pytest.approx(0.01), pytest.approx(0.04), 0.02)
