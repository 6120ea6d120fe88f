"""The signals study: its toy against loops, its rule, and a whole small run through the command."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.chapter import call

import perturbjax as pj
from perturbjax.studies import forecasting as toy
from perturbjax.studies import signals

SMALL = ["--seeds", "2", "--population", "8", "--top-k", "2", "--steps", "20", "--signals", "2", "--test-signals", "3"]


@pytest.fixture(scope="module")
def net() -> toy.Net:
    return toy.random_net(jax.random.key(3))


def looped(net: toy.Net, signal: np.ndarray) -> np.ndarray:
    """The forecast of one signal in float64, value by value."""
    w = {name: np.asarray(leaf, np.float64) for name, leaf in net.items()}
    values = signal[: toy.CONTEXT].astype(np.float64).tolist()
    for _ in range(toy.FUTURE):
        hidden = np.array(values[-toy.CONTEXT :])
        for layer in "01":
            hidden = np.maximum(hidden @ w[f"w{layer}"] + w[f"b{layer}"], 0)
        values.append(float(np.clip(hidden @ w["w2"] + w["b2"], -toy.LIMIT, toy.LIMIT)[0]))
    return np.array(values[toy.CONTEXT :])


def test_every_family_is_of_its_kind_and_size():
    drawn = {family: toy.draw(family, 50, np.random.default_rng(0)) for family in toy.FAMILIES}
    assert all(signals.shape == (50, toy.LENGTH) and np.abs(signals).max() <= 1 for signals in drawn.values())
    np.testing.assert_allclose(np.diff(drawn["line"], n=2), 0, atol=1e-6)
    assert all(len(np.unique(np.abs(signal).round(5))) == 1 for signal in drawn["square"])
    assert np.array_equal(drawn["sine"], toy.draw("sine", 50, np.random.default_rng(0)))


def test_candidates_score_as_their_dense_weights_forecast(net):
    population = pj.Population(1, 8, (0.05,))
    # In the shapes of the command's run below, so that one program serves both.
    batch = np.concatenate([toy.draw(family, 4, np.random.default_rng(1)) for family in toy.FAMILIES])
    found = np.asarray(signals.candidate_scores(net, population[:], jnp.asarray(batch)))
    for number in range(3):
        theta = pj.perturb(net, population[number], pj.Noise())
        expected = [-np.square(looped(theta, signal) - signal[toy.CONTEXT :]).mean() for signal in batch]
        np.testing.assert_allclose(found[number], expected, rtol=2e-3, atol=1e-4)


def test_training_learns_lines(net):
    lines = toy.draw("line", 256, np.random.default_rng(2))
    trained = toy.train(net, jnp.asarray(lines), jax.random.key(0), 300)
    errors = [-float(toy.score(params, jnp.asarray(lines[:32])).mean()) / toy.trivial_error(lines[:32]) for params in (net, trained)]
    assert errors[0] > 0.5 and errors[1] < 0.2


def test_the_forecast_without_a_model():
    signal = np.zeros((1, toy.LENGTH), np.float32)
    signal[:, : toy.CONTEXT - 1] = 1  # the last value seen is 0, the mean of the context .9
    assert toy.trivial_error(signal) == 0
    assert toy.trivial_error(signal + np.float32(0.9) * (np.arange(toy.LENGTH) >= toy.CONTEXT)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("density", "base_error", "regime"),
    [(0.1, 5.0, "thicket"), (0.0999, 0.5, "plateau"), (0.0, 0.51, "needle"), (1.0, 0.0, "thicket")],
)
def test_the_rule_of_regimes(density, base_error, regime):
    assert signals.regime_of(density, base_error) == regime


def test_the_command_shows_and_writes_what_python_finds(tmp_path, capsys):
    code, out, err = call(["study", "signals", *SMALL, "--out", str(tmp_path / "made")], capsys)
    assert code == 0, err
    found = signals.run(signals.Config(seeds=2, population=8, top_k=2, steps=20, signals=2, test_signals=3))
    written = json.loads((tmp_path / "made" / "signals.json").read_text())
    assert written["results"]["cells"] == json.loads(json.dumps([vars(cell) for cell in found.cells], default=vars))
    assert [*signals.table(found), "", found.sentence] == out.splitlines()[: len(found.cells) + 4]
    assert out.splitlines()[-1] == f"command  perturbjax study signals {' '.join(SMALL)}" == f"command  {written['command']}"
    assert (tmp_path / "made" / "signals.png").read_bytes().startswith(b"\x89PNG")
    assert len(found.cells) == 12 and {cell.base for cell in found.cells} == set(signals.BASES)
    for example in found.examples:
        assert len(example.signal) == toy.LENGTH and len(example.of_base) == len(example.of_top) == toy.FUTURE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "1"], "--seeds 1: at least 2 are required, or there is no interval"),
        (["--top-k", "9", "--population", "8"], "--top-k 9: at most --population 8 can be kept"),
        (["--sigma", "0"], "--sigma 0.0: a number above 0 and below 1000 is required"),
        (["--untrained-sigma", "nan"], "--untrained-sigma nan: a number above 0"),
        (["--steps", "0"], "--steps 0: an integer of at least 1 is required"),
        (["--seed", "-1"], "--seed -1: an integer from 0 to"),
        (["--sedes", "2"], "did you mean --seeds"),
        (["--out", "/proc/nowhere"], "--out /proc/nowhere: /proc: cannot be written"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    code, out, err = call(["study", "signals", *arguments], capsys)
    assert (code, out) == (2, ""), err
    (line,) = err.splitlines()
    assert line.startswith("perturbjax: error: ") and message in line
