"""Questions of given answers as the grid's loss and error: held to the engine, to whole sequences, and to one caulk at a time."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.paths import FIXTURES
from support.toy import TEMPLATE, Toy

from perturbjax import sharding
from perturbjax.caulking.config import Grid
from perturbjax.caulking.language import ChoiceProblem, choice_scores, encode_questions, make_methods, random_params
from perturbjax.caulking.program import Fitting, GridProgram, Shared
from perturbjax.inference import Engine
from perturbjax.models.attention import causal_mask
from perturbjax.models.config import param_shapes, untied
from perturbjax.noise import Noise
from perturbjax.pretrained import load_model
from perturbjax.tasks.base import Prompt
from perturbjax.tree import leaf_paths

pytestmark = pytest.mark.usefixtures("unoptimized")
CHOICES = {"single": ("x", "y"), "several": ("apple", "no no", "green river")}


@pytest.fixture(scope="module")
def model():
    return load_model(str(FIXTURES / "tiny_llama_tied"))


class Glued(Toy):
    """Choices follow the prompt without a space, so that a letter is one token."""

    def prompt(self, example, template):
        prompt = super().prompt(example, template)
        return Prompt(prompt.messages, prompt.text, tuple(choice.strip() for choice in prompt.choices))


def encoded(model, kind):
    task = Glued("choice", CHOICES[kind])
    questions = encode_questions(model, task, task.examples(), TEMPLATE)
    return task, replace(questions, arrays=jax.tree.map(jnp.asarray, questions.arrays))


@pytest.mark.parametrize("kind", CHOICES)
def test_the_error_is_that_of_the_engine(model, kind):
    task, questions = encoded(model, kind)
    assert questions.single == (kind == "single")
    engine = Engine(model, task, Noise(), chunk=1)
    outputs = engine.run_plain(engine.prepare(task.examples(), TEMPLATE))
    error = jax.jit(ChoiceProblem(model.config, questions.single).error)(model.params, questions.arrays)
    assert float(error) == pytest.approx(1 - outputs.scores.mean(), abs=1e-6)
    scores = jax.jit(lambda params, arrays: choice_scores(model.config.build(params), arrays, questions.single))(
        model.params, questions.arrays
    )
    assert outputs.log_probs is not None
    found, want = (np.asarray(each) - np.asarray(each)[:, :1] for each in (scores, outputs.log_probs[0]))
    np.testing.assert_allclose(found, want, atol=2e-4)


@pytest.mark.parametrize("kind", CHOICES)
def test_the_loss_is_that_of_whole_sequences(model, kind):
    task, questions = encoded(model, kind)
    prompts = [task.prompt(example, TEMPLATE) for example in task.examples()]
    starts = model.tokenizer.encode_prompts(prompts)
    rows = [(start, model.tokenizer.encode(choice)) for start, prompt in zip(starts, prompts, strict=True) for choice in prompt.choices]
    tokens = np.zeros((len(rows), max(len(start) + len(ids) for start, ids in rows)), np.int32)
    for number, (start, ids) in enumerate(rows):
        tokens[number, : len(start) + len(ids)] = [*start, *ids]

    @jax.jit
    def log_softmax(params):
        decoder = model.config.build(params)
        hidden, _ = decoder(tokens, jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape), causal_mask(jnp.ones(tokens.shape, bool)))
        return jax.nn.log_softmax(decoder.logits(hidden))

    found = np.asarray(log_softmax(model.params))
    logs = np.array([found[n, len(start) - 1 + np.arange(len(ids)), ids].sum() for n, (start, ids) in enumerate(rows)])
    logs = logs.reshape(len(task.examples()), -1)
    right = [example.choices.index(example.answer) for example in task.examples()]
    want = np.mean(np.logaddexp.reduce(logs, axis=1) - logs[np.arange(len(logs)), right])
    problem = ChoiceProblem(model.config, questions.single, remat=kind == "single")
    assert float(jax.jit(problem.loss)(model.params, questions.arrays)) == pytest.approx(want, rel=1e-4)


def test_caulks_trained_together_share_the_products_of_the_base(model):
    _, questions = encoded(model, "single")
    problem, lora = ChoiceProblem(model.config, True), make_methods(Grid(rank=2), model.config)["lora"]
    together = GridProgram(problem.loss, problem.error, lora, Fitting(steps=2, batch=3), sharding.make_mesh(), 5)
    shared = Shared(model.params, questions.arrays, questions.arrays, np.arange(8, dtype=np.int32)[None])
    text = together.lower(sharding.put_replicated(shared, together.mesh)).as_text()
    dots = [line.rpartition(":")[2].partition("->")[0] for line in text.splitlines() if "dot_general" in line]
    kernels = {shape[1:] for path, shape in param_shapes(model.config).items() if path.startswith("layers/") and path.endswith("kernel")}
    for rows, columns in kernels:
        assert any(f"tensor<{rows}x{columns}xf32>" in dot for dot in dots), (rows, columns)
        # Five caulks: a base that is copied for each would be a stack of five.
        assert not any(f"tensor<5x{rows}x{columns}xf32>" in dot for dot in dots)


def test_gradients_of_several_caulks_are_those_of_each(model):
    _, questions = encoded(model, "several")
    problem, lora = ChoiceProblem(model.config, False), make_methods(Grid(rank=2), model.config)["lora"]
    base = jax.tree.map(jnp.asarray, model.params)
    starts = [jax.tree.map(lambda leaf: leaf + 0.02, lora.init(base, jax.random.key(seed))) for seed in range(3)]
    gradient = jax.grad(lambda trained: problem.loss(lora.apply(base, trained), questions.arrays))
    together = jax.jit(jax.vmap(gradient))(jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts))
    one = jax.jit(gradient)
    for number, start in enumerate(starts):
        alone = leaf_paths(one(start))
        for path, leaf in leaf_paths(together).items():
            np.testing.assert_allclose(leaf[number], alone[path], atol=1e-5, rtol=1e-3)


def test_every_method_begins_at_the_base_and_scratch_does_not(model):
    _, questions = encoded(model, "single")
    config, params = untied(model.config, model.params)
    params = jax.tree.map(jnp.asarray, params)
    problem = ChoiceProblem(config, True)
    loss = jax.jit(problem.loss)
    want = float(loss(params, questions.arrays))
    for name, method in make_methods(Grid(methods=("lora", "adapter", "head", "bitfit", "full")), config).items():
        start = method.init(params, jax.random.key(0))
        assert float(loss(method.apply(params, start), questions.arrays)) == pytest.approx(want, rel=1e-6), name
    random = random_params(config, jnp.float32)(jax.random.key(0))
    assert {path: leaf.shape for path, leaf in leaf_paths(random).items()} == param_shapes(config)
    assert abs(float(loss(random, questions.arrays)) - np.log(2)) < 0.5
