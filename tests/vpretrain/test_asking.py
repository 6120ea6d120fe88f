"""Questions for models that come and go: one compiled program, the answers of an engine of each model's own, and nothing held between."""

import jax
import numpy as np
import pytest
from support.cli_tiny import MODEL
from support.toy import TEMPLATE, Toy, one_batch_size

from perturbjax.inference import Engine
from perturbjax.noise import Noise
from perturbjax.pretrained import load_model
from perturbjax.sharding import make_mesh
from perturbjax.vpretrain.asking import LOOKS, TEST, Asker, make_askers
from perturbjax.vpretrain.config import Data
from perturbjax.vpretrain.feedback import FeedbackSet


def test_models_come_and_go_under_one_compiled_program(monkeypatch):
    one_batch_size(monkeypatch)
    model, task, mesh = load_model(str(MODEL), "float32"), Toy("choice"), make_mesh(jax.devices()[:1])
    questions = tuple(task.examples())
    asker = Asker(model, task, TEMPLATE, mesh, {TEST: questions, LOOKS: questions[::-1], "none": ()})
    rng = np.random.default_rng(0)
    others = [jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.2, leaf.shape).astype(np.float32), model.params) for _ in range(2)]
    engine, found = Engine(model, task, Noise(), mesh, chunk=1), []
    batch = engine.prepare(questions, TEMPLATE)
    held = len(jax.live_arrays())
    for params in others:
        engine.rebase(params)
        scores = tuple(map(float, engine.run_plain(batch).scores[0]))
        on_device = jax.device_put(params)
        assert asker.ask(on_device, TEST).scores == asker.ask(params, LOOKS).scores[::-1] == scores
        jax.tree.map(lambda leaf: leaf.delete(), on_device)  # as a training does that donates its state
        found.append(scores)
    assert len(set(found)) == 2 and asker.traces == 1 and LOOKS in asker and "none" not in asker
    del on_device
    assert len(jax.live_arrays()) <= held + 4  # not a model's worth


@pytest.mark.parametrize(
    ("setting", "kind", "asked"), [(None, "choice", 6), (None, "generation", 0), (3, "choice", 3), (3, "generation", 3), (0, "choice", 0)]
)
def test_who_is_asked_at_looks(setting, kind, asked, monkeypatch):
    """All of few validation questions of a multiple-choice task; a task that generates only where a number is set."""
    made = []
    monkeypatch.setattr("perturbjax.vpretrain.asking.Asker", lambda *given: made.append(given[-1]) or made[-1])
    task = Toy(kind)
    questions = tuple(task.examples())
    sets = {
        "one": FeedbackSet("one", "made", (), (), (), task, TEMPLATE, questions[:2], questions[2:]),
        "two": FeedbackSet("two", "", (), (), ()),
    }
    data = Data("texts", ("one", "two"), validation_examples=6, accuracy_questions=setting)
    askers = make_askers(None, sets, data, None)  # type: ignore[arg-type]
    assert list(askers) == ["one"] and made == [{TEST: questions[:2], LOOKS: questions[2 : 2 + asked]}]
