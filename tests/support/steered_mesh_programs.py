"""Run by ``vpretrain/test_mesh`` with 8 forced devices: a steered training of text on one device and on a mesh of 4x2; sums on images.

Prints one line a case: the part, ``ok`` or ``WRONG``, and the case.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from perturbjax.bench.collectives import read_collectives
from perturbjax.runs.files import MetricsLog
from perturbjax.sharding import make_mesh, shard_params
from perturbjax.train import Training
from perturbjax.train.loop import fit
from perturbjax.train.optimizer import learning_rates
from perturbjax.train.placement import put_batch, put_params
from perturbjax.train.problem import Auxiliary, Fitted
from perturbjax.vpretrain.arms import Experiment
from perturbjax.vpretrain.candidates import candidates, log_probs_of
from perturbjax.vpretrain.steering import Steering
from perturbjax.vpretrain.vision import learner_loss, with_teacher
from support import vision_cases
from support import vpretrain_cases as cases

LOSSES, VALUES = 1e-5, 1e-4
"""Relative. A value is a sum of products of both signs, so that more of its rounding is left."""
VOCABULARY = 24
"""Which devices along "model" divide, so that logits are sharded."""
STEPS = 4
TRAINING = Training(steps=STEPS, batch_rows=8, row_tokens=20, every=2, learning_rate=3e-3)


def steered(devices: int, model: int) -> Fitted:
    mesh, config = make_mesh(jax.devices()[:devices], model), replace(cases.SMALL.config, vocab_size=VOCABULARY)
    learner = replace(cases.SMALL, config=config, mesh=mesh)
    designer, feedback = replace(cases.DESIGNER, vocab_size=VOCABULARY), {"one": cases.rows(40, seed=1)}
    layout = learner.config.partition(model)
    dims = layout.dims(learner.config) if layout else {}
    task, start = cases.task(designer, learner=learner), (cases.params(config), None, cases.designer_params(designer))
    rate, settings = learning_rates(TRAINING, STEPS), Steering(every=2, learning_rate=0.01)
    experiment = Experiment(task, *start, settings, cases.rows(60), feedback, 8, rate, feedback, dims, designer.dims(model))
    with tempfile.TemporaryDirectory() as name:
        metrics = MetricsLog(Path(name) / "metrics.jsonl")
        return fit(experiment.problem("value"), TRAINING, 0, Path(name) / "state", {"seed": 0}, mesh, metrics)


def figures(fitted: Fitted) -> tuple[np.ndarray, np.ndarray]:
    """Losses of training, validation and feedback; values and what they were predicted to do."""
    updates = [update for look in fitted.looks for update in look.updates]
    losses = [look.losses[name] for look in fitted.looks for name in ("loss", "plain")]
    losses += [loss for look in fitted.looks for loss in look.validation.values()] + [update["feedback_loss"] for update in updates]
    return np.array(losses), np.array([update[name] for update in updates for name in ("value", "direction_norm")])


def held(fitted: Fitted) -> float:
    """The share of the designer and its moments that one device holds."""
    leaves = jax.tree.leaves((fitted.auxiliary["designer"], fitted.auxiliary["optimizer"]))
    return sum(leaf.addressable_shards[0].data.size for leaf in leaves) / sum(leaf.size for leaf in leaves)


def on_images() -> list[dict[str, np.ndarray]]:
    """The sums of a step on one device, and with rows sharded over eight: they are of all views, masks and targets."""
    task, student = vision_cases.task(vision_cases.SMALL), vision_cases.student(vision_cases.SMALL)
    auxiliary = with_teacher(task.learner, Auxiliary({"designer": vision_cases.designer_params()}), student)
    rows = vision_cases.images(8).batch(np.arange(8))

    def loss(batch: Any) -> Any:
        prepared = auxiliary.prepare(auxiliary.state, None, batch)
        return learner_loss(task.learner, task.designer)(student, (None, auxiliary.state), jax.tree.map(lambda a: a[0], prepared))

    sums = jax.jit(loss)
    return [jax.device_get(sums(put_batch(rows, 1, make_mesh(jax.devices()[:devices])))) for devices in (1, 8)]


def sharded_candidates(model: int) -> tuple[bool, int, int]:
    """Whether candidates of sharded logits are those of one device, though many are equal; bytes of the largest collective that finds them
    and the slope of their log-probabilities; bytes of a device's logits."""
    mesh, rng, (rows, queries, width, k) = make_mesh(model=model), np.random.default_rng(0), (8, 4, 4096, 9)
    logits = jnp.asarray(rng.integers(0, 600, (rows, queries, width)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, width, (rows, queries)), jnp.int32)
    where = NamedSharding(mesh, PartitionSpec("data", None, "model")), NamedSharding(mesh, PartitionSpec("data"))

    def found(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        ids = candidates(logits, labels, k, mesh)
        return ids, jax.grad(lambda logits: log_probs_of(logits, ids, model).sum())(logits)

    compiled: Any = jax.jit(found, in_shardings=where, out_shardings=where[::-1]).lower(logits, labels).compile()
    ids = compiled(*jax.device_put((logits, labels), where))[0]
    largest = max(int(one.nbytes) for one in read_collectives(compiled.as_text(), model))
    return bool(np.all(np.asarray(ids) == np.asarray(of_one_device(logits, labels, k)))), largest, logits.nbytes // mesh.size


of_one_device = jax.jit(candidates, static_argnums=2)


def same_placing(model: int) -> bool:
    """Whether an engine's parameters are the same from arrays of a training, which lie on the mesh, as from the host; the last block of the
    vocabulary is padded, and devices share a key head."""
    mesh, params = make_mesh(model=model), cases.params()
    layout = cases.CONFIG.partition(model)
    dims = layout.dims(cases.CONFIG) if layout else {}
    found, expected = (shard_params(tree, mesh, dims).arrays for tree in (put_params(params, mesh, dims), params))
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: a.sharding == b.sharding and np.array_equal(a, b), found, expected)))


def main() -> None:
    for model in (2, 4):
        same, largest, own = sharded_candidates(model)
        print(f"candidates {'ok' if same and largest < own / 16 else 'WRONG'} {8 // model}x{model}: same {same}, {largest} of {own} bytes")
    print(f"placed {'ok' if same_placing(2) else 'WRONG'} 4x2")
    fitted = steered(8, 2)
    print(f"designer {'ok' if held(fitted) < 0.6 else 'WRONG'} 4x2: a device holds {held(fitted):.2f} of it and of its moments")
    one, several = figures(steered(1, 1)), figures(fitted)
    off = [float(np.abs(found / here - 1).max()) for found, here in zip(several, one, strict=True)]
    print(f"steered {'ok' if off[0] < LOSSES and off[1] < VALUES else 'WRONG'} 4x2: losses {off[0]:.1e} apart, values {off[1]:.1e}")
    one, several = on_images()
    off = max(float(np.abs(several[name] - found).max() / np.abs(found).max()) for name, found in one.items())
    print(f"images {'ok' if off < LOSSES else 'WRONG'} 8x1: sums {off:.1e} apart")


if __name__ == "__main__":
    main()
