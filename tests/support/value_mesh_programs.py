"""Run by ``ivl/test_mesh`` with 8 forced devices: combined models and the training of value networks on a mesh, against one device.

Prints one line a case: the part of the file, ``ok`` or ``WRONG``, the case, and how far the numbers are apart.
"""

import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturbjax.bench.collectives import read_collectives
from perturbjax.inference import Engine
from perturbjax.ivl import logits_files
from perturbjax.ivl.combined import combine
from perturbjax.ivl.logits_files import LogitsFiles
from perturbjax.ivl.logits_format import LogitsFormat
from perturbjax.ivl.logits_writing import write_missing
from perturbjax.ivl.loss import value_loss
from perturbjax.ivl.value import make_value
from perturbjax.models.config import DecoderConfig, param_shapes
from perturbjax.noise import Noise, Rule
from perturbjax.runs.files import MetricsLog
from perturbjax.sharding import make_mesh
from perturbjax.train import Training
from perturbjax.train.demonstrations import EncodedDemonstration
from perturbjax.train.loop import fit
from perturbjax.train.optimizer import make_optimizer
from perturbjax.train.placement import put_batch, put_params, state_shardings
from perturbjax.train.problem import Problem
from perturbjax.train.rows import pack_rows
from perturbjax.train.step import TrainState, make_step
from perturbjax.tree import nest
from support.toy import POPULATION, TEMPLATE, Toy, one_batch_size
from support.value_cases import base, live_value, random_map

TOLERANCE = 2e-6
"""Of log-probabilities, relative: one of -80 is added up from several."""


def mesh_of(name):
    data, model = map(int, name.split("x"))
    return make_mesh(jax.devices()[: data * model], model)


def combined(name):
    """``map``: other vocabularies and a gate that is open at some positions; else a connection."""
    model = base()
    if name == "map":
        value, params = live_value(model, size=301, scale=2.0)  # 301 rows divide by no axis
        return combine(model, value, params, alpha=0.8, gate=4.5, vocabulary=random_map(1, 380, 297))
    value, params = live_value(model, name)
    return combine(model, value, params)


NOISE = Noise(rules=(Rule("^(?!value/(embed|head|layers/attention/q)/)", None),))
"""Of a leaf that is looked up and two that are multiplied: 301 rows, 301 columns, and columns that devices divide."""


def outputs_on(mesh, name, task, candidates=0):
    model = combined(name)
    engine = Engine(model, task, NOISE, mesh, chunk=2, strategy="lazy")
    prepared = engine.prepare(task.examples(), TEMPLATE)
    return engine.run(POPULATION[4 : 4 + candidates], prepared) if candidates else engine.run_plain(prepared)


def choices():
    for name, mesh, texts, candidates in (
        ("map", "2x2", ("x", "y"), 2),
        ("map", "1x4", ("river of stone", "x"), 0),
        ("cascade_plus", "1x4", ("x", "y"), 0),
        ("multiplicative", "2x2", ("river of stone", "x"), 0),
    ):
        one, other = (outputs_on(where, name, Toy("choice", texts), candidates) for where in (mesh_of("1x1"), mesh_of(mesh)))
        assert one.log_probs is not None and other.log_probs is not None
        apart = float((np.abs(one.log_probs - other.log_probs) / (1 + np.abs(one.log_probs))).max())
        good = one.answers == other.answers and np.array_equal(one.scores, other.scores) and apart < TOLERANCE
        yield good, f"{name} {mesh} {texts} {candidates}", apart


def generated():
    for name, mesh in (("map", "1x4"), ("cascade_plus", "2x2")):
        one, other = (outputs_on(where, name, Toy("generation")) for where in (mesh_of("1x1"), mesh_of(mesh)))
        yield one.answers == other.answers and not other.nonfinite and len(set(one.answers[0])) > 2, f"{name} {mesh}", 0.0


def trained():
    """Losses and greedy answers of ``fit`` on one device and on eight."""
    model, rng = base(), np.random.default_rng(0)
    some = [
        EncodedDemonstration(str(i), tuple(rng.integers(0, 384, 4).tolist()), tuple(rng.integers(0, 384, 1 + i % 4).tolist()))
        for i in range(40)
    ]
    rows = pack_rows(some, 16)
    value, params = make_value(model.config, model.params, layers=1)
    training = Training(steps=4, batch_rows=8, row_tokens=16, every=1, learning_rate=1e-2, warmup=0.0)
    found = {}
    for name in ("1x1", "8x1", "4x2"):
        mesh = mesh_of(name)
        layout, its = value.partition(mesh.shape["model"]), model.config.partition(mesh.shape["model"])
        frozen = put_params(model.params, mesh, its.dims(model.config) if its else {})
        loss = value_loss(value, model.config, jnp.float32, penalty=0.1)
        problem = Problem(params, [(loss, frozen)], rows, rows, dims=layout.dims(value.decoder) if layout else {})
        with tempfile.TemporaryDirectory() as folder:
            fitted = fit(problem, training, 0, Path(folder) / "state", {"seed": 0}, mesh, MetricsLog(Path(folder) / "metrics.jsonl"))
        losses = [[*look.losses.values(), *look.validation.values(), look.gradient_norm] for look in fitted.looks]
        engine = Engine(combine(model, value, jax.device_get(fitted.params)), Toy("generation"), Noise(), mesh_of("1x1"), chunk=1)
        found[name] = np.asarray(losses), engine.run_plain(engine.prepare(Toy("generation").examples(), TEMPLATE)).answers
    (wanted, answers), first = found["1x1"], {name: leaf for name, leaf in found.items() if name != "1x1"}
    for name, (losses, its) in first.items():
        # A norm of zero at the first step is zero everywhere.
        apart = float((np.abs(losses - wanted) / np.maximum(np.abs(wanted), 1e-6)).max())
        yield apart < 1e-5 and its == answers and wanted[-1, 0] < wanted[0, 0], f"fit {name}", apart


def stored():
    """Logits written on one mesh and on another, and the loss on every mesh of those of one device."""
    model, rng = base(), np.random.default_rng(0)
    some = [
        EncodedDemonstration(str(i), tuple(rng.integers(0, 384, 4).tolist()), tuple(rng.integers(0, 384, 1 + i % 4).tolist()))
        for i in range(24)
    ]
    rows, form = pack_rows(some, 16), LogitsFormat(384, 40)
    value, params = live_value(model)
    loss = jax.jit(value_loss(value, model.config, jnp.float32, 0.1, cached=form))
    logits_files.SHARD_BYTES = 3000
    numbers, found = np.arange(4), {}
    with tempfile.TemporaryDirectory() as folder:
        one = LogitsFiles(Path(folder) / "1x1", form, rows, "tiny", "a", "b")
        for name in ("1x1", "2x1", "1x2"):
            mesh, files = mesh_of(name), LogitsFiles(Path(folder) / name, form, rows, "tiny", "a", "b")
            write_missing(files, model.config, model.params, mesh)
            layout = value.partition(mesh.shape["model"])
            arrays = put_params(params, mesh, layout.dims(value.decoder) if layout else {})
            batch = put_batch(rows.batch(numbers), 1, mesh, functools.partial(one, numbers))
            sums = loss(arrays, (), jax.tree.map(lambda array: array[0], batch))
            whole = files(np.arange(len(rows)), np.ones(len(rows), bool))
            found[name] = np.asarray([*map(float, sums.values())]), whole, files.summary("training")
    losses, arrays, summary = found["1x1"]
    yield one.shards > 3, f"{one.shards} shards", 0.0
    for name in ("2x1", "1x2"):
        its, other, errors = found[name]
        apart = float((np.abs(its - losses) / np.abs(losses)).max())
        yield apart < 1e-5, f"losses {name}", apart
        # Sums of another order are rounded to the next bfloat16 here and there.
        wanted, got = (x["base_log_probs"].astype(np.float32) for x in (arrays, other))
        apart = float((np.abs(got - wanted) / (np.abs(wanted) + 1e-6)).max())
        same = np.mean(arrays["base_tokens"] == other["base_tokens"])
        yield apart <= 2**-7 and same > 0.99, f"log_probs {name}, {same:.4f} of the tokens", apart
        apart = max(abs(errors.mean_kl / summary.mean_kl - 1), abs(errors.label_error / summary.label_error - 1))
        yield apart < 1e-3 and errors.positions == summary.positions, f"errors {name}", apart


def collectives():
    """No step of a training moves anything of the size of a head, of an embedding, or of logits along "model"."""
    config = DecoderConfig("llama", 8192, 32, 64, 2, 4, 2, 8, 1e4, 1e-6, tied_head=True, max_positions=64)
    params = nest({path: np.zeros(shape, np.float32) for path, shape in param_shapes(config).items()})
    mesh, training = mesh_of("4x2"), Training(steps=4, row_tokens=16)
    batch: dict[str, np.ndarray] = {name: np.zeros((8, 16), np.int32) for name in ("tokens", "positions", "segments", "query", "labels")}
    batch["weights"] = np.ones((8, 16), np.float32)
    layout = config.partition(2)
    assert layout is not None
    frozen = put_params(params, mesh, layout.dims(config))
    for connection in ("residual", "cascade_plus"):
        value, start = make_value(config, params, connection, layers=1)
        its = value.partition(2)
        assert its is not None
        optimizer = make_optimizer(training, 4)
        dims = its.dims(value.decoder)
        trained = put_params(start, mesh, dims)
        state = TrainState(trained, jax.eval_shape(optimizer.init, trained))
        where = state_shardings(state, optimizer, mesh, dims)
        state = jax.tree.map(lambda leaf, its: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=its), state, where)
        step = jax.jit(
            make_step(value_loss(value, config, jnp.float32), optimizer),
            donate_argnums=0, out_shardings=(where, None),
        )  # fmt: skip
        text = str(step.lower(state, frozen, put_batch(batch, 1, mesh)).compile().as_text())
        moved = read_collectives(text, 2)
        sharded = [each for each in moved if each.axis != "data"]
        worst = max(sharded, key=lambda each: each.nbytes)
        # The smallest of what must stay: a device's half of the logits of its two rows. Gradients are added up over "data", by halves.
        limit, half = 2 * 16 * 4096 * 4 // 4, 4096 * 32 * 4
        added = max(each.nbytes for each in moved if each.axis == "data")
        yield worst.nbytes < limit, f"{connection}: {worst}", worst.nbytes
        gathers = [each for each in moved if each.kind == "all-gather" and each.nbytes >= limit]
        yield not gathers, f"{connection}: no gather over data: {gathers}", 0.0
        yield half <= added, f"{connection}: gradients are added up over data, {added} bytes", added


if __name__ == "__main__":
    one_batch_size(pytest.MonkeyPatch())
    for part in (choices, generated, trained, stored, collectives):
        for good, what, apart in part():
            print(part.__name__, "ok" if good else "WRONG", what, f"{apart:.1e}", flush=True)
