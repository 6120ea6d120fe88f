"""Questions of given answers as the grid's loss and error: held to the engine, to whole sequences, and to one caulk at a time."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.paths import FIXTURES
from support.toy import TEMPLATE, Toy

from perturbjax import sharding
from perturbjax.caulking.config import Config, Grid
from perturbjax.caulking.features import HeadFeatures, HeadProblem
from perturbjax.caulking.language import TEST_ROWS, ChoiceProblem, choice_scores, make_methods, random_params
from perturbjax.caulking.program import CellArrays, Fitting, GridProgram, Method, Shared
from perturbjax.caulking.questions import Layout, Questions, encode_questions
from perturbjax.caulking.setup import in_flight
from perturbjax.inference import Engine
from perturbjax.models.adapters import LoRA
from perturbjax.models.attention import causal_mask
from perturbjax.models.config import param_shapes, untied
from perturbjax.noise import Noise
from perturbjax.pretrained import load_model
from perturbjax.tasks.base import Prompt
from perturbjax.tree import leaf_paths

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
    return task, questions


def problem_of(model, questions, group=None, remat=False, config=None):
    """On all questions at once, ``group`` of them a row."""
    layout, test = (Layout.of(questions, count) for count in (len(questions), TEST_ROWS))
    if group is not None:
        most = int(max(questions.arrays["lengths"]))
        layout, test = (Layout(layout.prefix, group, (len(layout.prefix) + most * group,)) for _ in range(2))
    return ChoiceProblem(config or model.config, layout, test, remat)


@pytest.mark.parametrize("kind", CHOICES)
def test_the_error_is_that_of_the_engine(model, kind):
    task, questions = encoded(model, kind)
    assert questions.single == (kind == "single")
    engine = Engine(model, task, Noise(), chunk=1)
    outputs = engine.run_plain(engine.prepare(task.examples(), TEMPLATE))
    problem = problem_of(model, questions)

    @jax.jit
    def found_of(params, arrays):
        scores = choice_scores(model.config.build(params), arrays, problem.layout, problem.layout.widths[-1])
        return problem.error(params, arrays), scores

    error, scores = found_of(model.params, questions.arrays)
    assert float(error) == pytest.approx(1 - outputs.scores.mean(), abs=1e-6)
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
    for group in (1, 2, None):
        problem = problem_of(model, questions, group, remat=group == 2)
        assert float(jax.jit(problem.loss)(model.params, questions.arrays)) == pytest.approx(want, rel=1e-4), group


def test_a_step_takes_the_width_that_its_longest_row_needs_and_the_cells_share_it(model):
    _, questions = encoded(model, "several")
    lengths, first = np.asarray(questions.arrays["lengths"]), len(questions.prefix)
    widest = Layout(questions.prefix, 1, (first + int(lengths.max()),))
    layout = replace(widest, widths=(first + int(np.median(lengths)), *widest.widths))
    problem = ChoiceProblem(model.config, layout, widest)
    sized, taken = problem.loss_by_size, []
    for number in (np.argmin(lengths), np.argmax(lengths)):
        batch = jax.tree.map(lambda array, n=number: array[n][None], questions.arrays)
        taken.append(int(sized.needed(batch)))
        losses = [float(jax.jit(loss)(model.params, batch)) for loss in sized.losses[taken[-1] :]]
        np.testing.assert_allclose(losses, losses[0], rtol=1e-5)
    assert taken == [0, 1]
    method = Method(LoRA(2, rules=("/(q|down)/kernel$",)), learning_rate=0.05, attach=True)
    order = np.array([np.argsort(lengths), np.argsort(-lengths)], np.int32)
    cells = CellArrays(np.array([0, 1], np.uint32), np.array([0, 1], np.int32), np.array([1, 1], np.int32))
    trained = [
        GridProgram(loss, problem.error, method, Fitting(steps=3, batch=1), sharding.make_mesh(), together)
        for loss, together in ((sized, 2), (problem.loss, 1))
    ]
    shared = sharding.put_replicated(Shared(model.params, questions.arrays, questions.arrays, order), trained[0].mesh)
    figures = [program(shared, cells) for program in trained]
    for name in ("loss", "norm", "distance", "error"):
        np.testing.assert_allclose(figures[1][name], figures[0][name], rtol=2e-4, err_msg=name)
    text = trained[0].lower(shared).as_text()
    assert "stablehlo.case" in text or "stablehlo.if" in text


@pytest.mark.parametrize("kind", CHOICES)
def test_a_head_on_features_is_a_head_trained_with_its_decoder(model, kind):
    _, questions = encoded(model, kind)
    config, params = untied(model.config, model.params)
    problem, fitting, mesh = problem_of(model, questions, 2, config=config), Fitting(steps=4, batch=len(questions)), sharding.make_mesh()
    method = Method(make_methods(Grid(methods=("head",)), model.config)["head"].caulk, learning_rate=0.05)
    order = np.stack([np.random.default_rng(seed).permutation(len(questions)).astype(np.int32) for seed in range(2)])
    cells = CellArrays(np.arange(2, dtype=np.uint32), np.arange(2, dtype=np.int32), np.array([3, 5], np.int32))
    whole = GridProgram(problem.loss, problem.error, method, fitting, mesh, 2)
    want = whole(sharding.put_replicated(Shared(params, questions.arrays, questions.arrays, order), mesh), cells)
    features = HeadFeatures(model.config, Layout.of(questions, TEST_ROWS), questions.columns, 5, mesh)
    alone = GridProgram(HeadProblem.loss, HeadProblem.error, method, fitting, mesh, 2, freeze=features)
    shared = features(sharding.put_replicated(Shared(model.params, questions.arrays, questions.arrays, order), mesh))
    found = alone(shared, cells)
    assert len(shared.data["answer"]) == len(set(order[:, :5].ravel())) and found["norm"].min() > 0
    for name in ("loss", "error", "norm", "distance"):
        np.testing.assert_allclose(found[name], want[name], rtol=2e-4, atol=1e-6, err_msg=name)


def test_questions_are_packed_with_their_prefix_and_nothing_is_left_out(model):
    _, questions = encoded(model, "single")
    for batch in (1, 4, 8):
        layout = Layout.of(questions, batch)
        lengths = jnp.full(batch, max(questions.arrays["lengths"]))
        assert int(layout.needed(lengths)) == len(layout.widths) - 1
        assert layout.widths[-1] >= len(layout.prefix) + layout.group * int(lengths[0])
    few = Questions({"lengths": np.full(7, 200, np.int32), "answer": np.zeros(7)}, True, tuple(range(40)))
    assert Layout.of(few, 7) == Layout(tuple(range(40)), 1, (240,))


def test_caulks_trained_together_share_the_products_of_the_base(model):
    _, questions = encoded(model, "single")
    problem, lora = problem_of(model, questions), make_methods(Grid(rank=2), model.config)["lora"]
    problem = replace(problem, layout=Layout.of(questions, 3))
    together = GridProgram(problem.loss_by_size, problem.error, lora, Fitting(steps=2, batch=3), sharding.make_mesh(), 5)
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
    problem, lora = problem_of(model, questions), make_methods(Grid(rank=2), model.config)["lora"]
    base, keys = model.params, jax.random.split(jax.random.key(0), 3)
    starts = jax.device_get(jax.jit(jax.vmap(lambda key: jax.tree.map(lambda leaf: leaf + 0.02, lora.init(base, key))))(keys))
    gradient = jax.grad(lambda trained: problem.loss(lora.apply(base, trained), questions.arrays))
    together, one = jax.jit(jax.vmap(gradient))(starts), jax.jit(gradient)
    for number in range(3):
        alone = leaf_paths(one(jax.tree.map(lambda leaf, n=number: leaf[n], starts)))
        for path, leaf in leaf_paths(together).items():
            np.testing.assert_allclose(leaf[number], alone[path], atol=1e-5, rtol=1e-3)


def test_every_method_begins_at_the_base_and_scratch_does_not(model):
    _, questions = encoded(model, "single")
    config, params = untied(model.config, model.params)
    problem = problem_of(model, questions, config=config)
    loss = jax.jit(problem.loss)
    want = float(loss(params, questions.arrays))
    methods = make_methods(Grid(methods=("lora", "adapter", "head", "bitfit", "full")), model.config)

    @jax.jit
    def starts(params, key):
        begun = {name: method.apply(params, method.init(params, key)) for name, method in methods.items()}
        return begun, random_params(config, jnp.float32)(key)

    begun, random = starts(params, jax.random.key(0))
    for name in methods:
        assert float(loss(begun[name], questions.arrays)) == pytest.approx(want, rel=1e-6), name
    assert {path: leaf.shape for path, leaf in leaf_paths(random).items()} == param_shapes(config)
    assert abs(float(loss(random, questions.arrays)) - np.log(2)) < 0.5


def test_caulks_beside_experts_are_trained_one_by_one():
    """JAX cannot vmap a product of experts whose matrices are shared."""
    experts = load_model(str(FIXTURES / "tiny_qwen3_moe"))
    mesh, config = sharding.make_mesh(), Config()
    alone, dense = (
        [in_flight(config, name, mesh, shape) for name in ("lora", "adapter", "bitfit", "head", "full")]
        for shape in (experts.config, replace(experts.config, num_experts=0, experts_per_token=0))
    )
    assert alone == [1, 1, 1, 4, 1] and dense == [4, 4, 4, 4, 1]
    _, questions = encoded(experts, "single")
    problem = replace(problem_of(experts, questions), layout=Layout.of(questions, 2))
    lora = make_methods(Grid(rank=2), experts.config)["lora"]
    program = GridProgram(problem.loss_by_size, problem.error, lora, Fitting(steps=2, batch=2), mesh, 1)
    order = np.arange(8, dtype=np.int32)[None]
    shared = sharding.put_replicated(Shared(experts.params, questions.arrays, questions.arrays, order), mesh)
    program.lower(shared)
    assert program.traces == 1
