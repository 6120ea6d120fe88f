"""The grid: vmapped cells equal a loop over them, whatever the chunk, the mesh and a stop; n is no shape; bad input is one line."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.chapter import failing_commits

from perturbjax import InputError, sharding
from perturbjax.caulking import Cell, Fitting, Method, run_grid
from perturbjax.caulking.grid import row_order
from perturbjax.caulking.pretraining import pretrain
from perturbjax.caulking.program import CellArrays, GridProgram, Shared
from perturbjax.models.adapters import Bottleneck, LoRA, Partial, head
from perturbjax.runs.console import SILENT, Progress
from perturbjax.tree import fingerprint

FITTING = Fitting(steps=7, batch=4, weight_decay=0.1)
SAMPLES = (4, 8, 20)
METHODS = {
    "lora": Method(LoRA(2, 2.0, ("first/kernel",)), head(), 0.05),
    "partial": Method(Partial(("first",)), head(), 0.02),
    "scratch": Method(None, learning_rate=0.05),
}


def init(key):
    first, second = jax.random.split(key)
    kernel = jax.random.normal(first, (5, 6)), jax.random.normal(second, (6, 2))
    return {"first": {"kernel": kernel[0], "bias": jnp.zeros(6)}, "head": {"kernel": kernel[1]}}


def loss(params, batch):
    x, y = batch
    return jnp.square(jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"][None]) @ params["head"]["kernel"] - y).mean()


@pytest.fixture(scope="module")
def toy():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 5)).astype(np.float32), rng.normal(size=(30, 2)).astype(np.float32)
    bases = {float(m): jax.tree.map(np.asarray, init(jax.random.key(m))) for m in (10, 100)}
    return bases, (x[:20], y[:20]), (x[20:], y[20:])


def grid(toy, methods=METHODS, **changes):
    bases, data, test = toy
    return run_grid(loss, loss, bases, methods, data, test, SAMPLES, 3, FITTING, **{"init": init, "in_flight": 4} | changes)


@pytest.fixture(scope="module")
def cells(toy):
    return grid(toy)


def trained_alone(toy, cell, method):
    """A plain loop of ``value_and_grad`` and optax, one cell."""
    bases, data, test = toy
    rows = row_order(20, cell.seed)[: cell.samples]
    start_key, batch_key = jax.random.split(jax.random.key(cell.seed, impl="threefry2x32"))
    batches = np.asarray(jax.random.randint(batch_key, (FITTING.steps, 4), 0, cell.samples))
    base = init(start_key) if method.scratch else bases[cell.quality]
    trained = method.init(base, start_key)
    rates = optax.cosine_decay_schedule(method.learning_rate, FITTING.steps)

    def decays(tree):
        return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf.ndim > 1 and "bias" not in str(path[-1]), tree)

    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rates, weight_decay=0.1, mask=decays))
    gradient = jax.jit(jax.grad(lambda t, x, y: loss(method.apply(base, t), (x, y))))
    with jax.numpy_dtype_promotion("standard"):
        moments, update = optimizer.init(trained), jax.jit(optimizer.update)
        for step in range(FITTING.steps):
            drawn = rows[batches[step]]
            gradients = gradient(trained, data[0][drawn], data[1][drawn])
            updates, moments = update(gradients, moments, trained)
            trained = optax.apply_updates(trained, updates)
    return float(loss(method.apply(base, trained), test))


def test_cells_are_those_of_a_plain_loop(toy, cells):
    assert len(cells) == 2 * 2 * 9 + 9 and [cell.seed for cell in cells[:3]] == [0, 1, 2]
    for cell in (cells[13], cells[22], cells[-4]):
        np.testing.assert_allclose(cell.error, trained_alone(toy, cell, METHODS[cell.method]), rtol=2e-5)


def test_the_chunk_changes_nothing_but_rounding(toy, cells):
    one_by_one = grid(toy, {"lora": METHODS["lora"]}, in_flight=1)
    for name in ("error", "loss", "norm", "distance"):
        got, want = ([getattr(cell, name) for cell in some] for some in (one_by_one, cells[:18]))
        np.testing.assert_allclose(got, want, rtol=2e-5)


def test_one_program_serves_all_samples_and_bases(toy):
    bases, data, test = toy
    program = GridProgram(loss, loss, METHODS["lora"], FITTING, sharding.make_mesh(), 2)
    order = np.stack([row_order(20, 0)])
    for base in bases.values():
        shared = sharding.put_replicated(Shared(base, data, test, order), program.mesh)
        for n in (3, 20):
            program(shared, CellArrays(np.array([0, 1], np.uint32), np.zeros(2, np.int32), np.array([n, n], np.int32)))
    assert program.traces == 1


def test_the_base_is_shared_by_the_cells(toy):
    # The product with the frozen kernel has no cell axis: no dot of the program takes a batch of (5, 6) kernels.
    bases, data, test = toy
    lora = Method(LoRA(2, 2.0, ("first/kernel",)), learning_rate=0.05)

    def beside(params, batch):
        x, y = batch
        layer = params["first"]
        h = jnp.tanh(x @ layer["kernel"] + (x @ layer["lora_a"]) @ layer["lora_b"])
        return jnp.square(h @ params["head"]["kernel"] - y).mean()

    method = Method(lora.caulk, learning_rate=0.05, attach=True)
    program = GridProgram(beside, beside, method, FITTING, sharding.make_mesh(), 4)
    shared = Shared(bases[10.0], data, test, np.stack([row_order(20, 0)]))
    text = program.lower(sharding.put_replicated(shared, program.mesh)).as_text()
    dots = [line for line in text.splitlines() if "dot_general" in line]
    assert any("tensor<5x6xf32>" in line for line in dots) and not any("tensor<4x5x6xf32>" in line for line in dots)


def test_the_base_is_not_written_and_a_caulk_begins_at_it(toy):
    bases, data, test = toy
    before, kept = fingerprint(bases[10.0]), {}
    still = Fitting(steps=1, batch=4, warmup=1.0)
    methods = {"lora": Method(METHODS["lora"].caulk, learning_rate=1e-30), "adapter": METHODS["partial"]}
    cells = run_grid(loss, loss, {10.0: bases[10.0]}, methods, data, test, (20,), 1, still, keep=lambda cell, t: kept.update({cell: t}))
    assert fingerprint(bases[10.0]) == before
    assert cells[0].norm == 0 and cells[0].error == pytest.approx(float(loss(bases[10.0], test)), rel=1e-6)
    assert set(kept) == {Cell("lora", 10.0, 20, 0), Cell("adapter", 10.0, 20, 0)}
    assert set(kept[Cell("adapter", 10.0, 20, 0)]) == {"caulk", "head"}


def test_a_grid_that_was_stopped_goes_on_and_trains_no_cell_twice(toy, cells, tmp_path, monkeypatch):
    with failing_commits(4), pytest.raises(KeyboardInterrupt):
        grid(toy, out=tmp_path)
    call, trained = GridProgram.__call__, []

    def counted(self, shared, arrays):
        trained.append(len(arrays.seed))
        return call(self, shared, arrays)

    monkeypatch.setattr(GridProgram, "__call__", counted)
    assert grid(toy, out=tmp_path) == cells
    assert set(trained) == {3}  # the nine cells of a method and a base, at most four together
    assert sum(trained) == len(cells) - 4 * 3
    assert grid(toy, out=tmp_path) == cells and sum(trained) == len(cells) - 4 * 3
    with pytest.raises(InputError, match="another run"):
        grid(toy, out=tmp_path, in_flight=2)


def test_targets_of_each_seed(toy, cells):
    # Three copies of one target: per_seed gives what the shared target gives.
    bases, data, test = jax.tree.map(lambda leaf: np.stack([leaf] * 3), toy)
    many = grid((bases, data, test), {"lora": METHODS["lora"]}, per_seed=True)
    np.testing.assert_allclose([cell.error for cell in many], [cell.error for cell in cells if cell.method == "lora"], rtol=1e-5)


def test_rows_of_all_classes_take_turns_and_are_nested():
    classes = np.array([0] * 40 + [1] * 8 + [2] * 2)
    order = row_order(50, 3, classes)
    assert sorted(order) == list(range(50)) and set(classes[order[:3]]) == {0, 1, 2}
    assert np.bincount(classes[order[:6]]).tolist() == [2, 2, 2] and np.bincount(classes[order[:12]]).tolist() == [5, 5, 2]
    assert not np.array_equal(order, row_order(50, 4, classes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"samples": (4, 40)}, "`samples` 40: the target has 20 rows"),
        ({"samples": (8, 4)}, "`samples` 8,4: growing numbers"),
        ({"seeds": (1, 1)}, "`seeds`"),
        ({"init": None}, "`init` None: method scratch starts from scratch"),
        ({"methods": {"lora": Method(LoRA(9, rules=("first/kernel",)))}}, "`rank` 9: at most 5"),
        ({"methods": {"lora": Method(LoRA(1, rules=("third",)))}}, "`rules` 'third': matches no"),
        ({"fitting": Fitting(steps=0)}, "`steps` 0"),
        ({"seeds": (-1, 0)}, "`seeds` -1: an integer of at least 0"),
        ({"methods": {}}, "`methods`, `bases`: a method from scratch, or a method and a base, is required"),
        ({"bases": {"good": {}}}, "`bases` 'good': a number is required"),
        ({"data": (np.zeros((20, 5)), np.zeros(19))}, "`data` (20, 5), (19,): arrays of shape (N, ...) with one N are required"),
        ({"data": ()}, "`data` nothing: arrays of shape (N, ...)"),
        ({"per_seed": True}, "`data` (20, 5), (20, 2): arrays of shape (2, N, ...), one set of rows a seed, with one N are required"),
        ({"classes": np.zeros(5)}, "`classes` (5,): a label for each of the 20 rows"),
        ({"out": __file__}, "is no directory"),
    ],
)
def test_bad_input_is_one_line(toy, changes, said):
    bases, data, test = toy
    given = {"samples": SAMPLES, "seeds": 2, "methods": METHODS, "init": init, "fitting": FITTING, "bases": bases, "data": data} | changes
    with pytest.raises(InputError) as error:
        run_grid(loss, loss, test=test, **given)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_cell_whose_weights_are_not_finite_has_no_error_whatever_the_function_says(toy):
    # An argmax over NaN is a number: a share of wrong answers would look like chance.
    bases, data, test = toy
    methods = {"lora": METHODS["lora"]}

    def wrong(params, test):
        return (jnp.argmax(test[0] @ params["first"]["kernel"], axis=1) != 0).mean()

    def broken(params, batch):
        return loss(params, batch) * jnp.nan

    (cell,) = run_grid(broken, wrong, {10: bases[10.0]}, methods, data, test, np.array([4]), 1, FITTING)
    assert np.isnan([cell.error, cell.norm, cell.distance]).all() and cell.samples == 4
    with pytest.raises(ValueError, match=r"error: returns shape \(2,\) where a scalar is required"):
        run_grid(loss, lambda params, test: jnp.ones(2), {10: bases[10.0]}, methods, data, test, (4,), 1, FITTING)


def test_a_pretraining_that_diverges_at_all_lengths_is_said(toy):
    _, data, test = toy
    with pytest.raises(InputError, match=r"`learning_rate` 0.1: training on 4 rows diverged at all `lengths` \(seed 0\); lower it"):
        pretrain(lambda params, batch: loss(params, batch) * jnp.nan, loss, init, data, test, (4,), (0,), (2,), 4, 0.1)


def test_progress_counts_cells(toy):
    told = []

    class Told(Progress):
        def bar(self, label, total, done=0, unit="step"):
            told.append((label, total, done, unit))
            return SILENT.bar(label, total, done, unit)

    grid(toy, {"lora": METHODS["lora"]}, progress=Told())
    assert told == [("training", 18, 0, "cell")]


def test_an_adapter_is_a_method_too(toy):
    from perturbjax.models.adapter_layers import bottleneck

    def through(params, batch):
        x, y = batch
        h = bottleneck(params["first"], x @ params["first"]["kernel"])
        return jnp.square(jnp.tanh(h) @ params["head"]["kernel"] - y).mean()

    bases, data, test = toy
    cells = run_grid(through, through, bases, {"adapter": Method(Bottleneck(2, ("first/kernel",)))}, data, test, (20,), 1, FITTING)
    assert all(cell.norm > 0 for cell in cells)


@pytest.mark.parametrize(
    ("reason", "fits", "kind", "message"),
    [
        ("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.", 1, None, ""),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.", 0, MemoryError, "one cell does not fit on a device .*fewer rows a step"),
        ("INTERNAL: something else", 0, jax.errors.JaxRuntimeError, "something else"),
    ],
)
def test_cells_in_flight_are_halved_until_memory_suffices(toy, cells, monkeypatch, caplog, reason, fits, kind, message):
    tried, run = [], GridProgram._run

    def short(program, shared, part):
        tried.append(program.chunk)
        if program.chunk > fits:
            raise jax.errors.JaxRuntimeError(reason)
        return run(program, shared, part)

    monkeypatch.setattr(GridProgram, "_run", short)
    methods = {"lora": METHODS["lora"]}
    if kind is None:
        found, expected = ({cell.name: cell.error for cell in some if cell.method == "lora"} for some in (grid(toy, methods), cells))
        assert found.keys() == expected.keys() and len(found) == 18
        np.testing.assert_allclose([found[name] for name in expected], list(expected.values()), rtol=2e-6)
        assert tried[:3] == [3, 1, 1] and set(tried[3:]) == {1}
    else:
        with pytest.raises(kind, match=message):
            grid(toy, methods)
        assert tried == ([3, 1] if kind is MemoryError else [3])
    assert len(caplog.records) == (kind is not jax.errors.JaxRuntimeError)
