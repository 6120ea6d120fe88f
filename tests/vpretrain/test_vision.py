"""Designed masks: values against double backward, what views, masks and the teacher are, and what feedback can and cannot reach."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import vision_cases as cases

from perturbjax import sharding
from perturbjax.errors import InputError
from perturbjax.runs.files import MetricsLog
from perturbjax.train.loop import fit
from perturbjax.train.optimizer import make_optimizer
from perturbjax.train.problem import Auxiliary
from perturbjax.train.step import TrainState, make_step
from perturbjax.tree import fingerprint, leaf_paths
from perturbjax.vpretrain.images import Images
from perturbjax.vpretrain.masks import with_mean
from perturbjax.vpretrain.probes import dense_losses
from perturbjax.vpretrain.steering import Steering, designer_auxiliary
from perturbjax.vpretrain.value import dot
from perturbjax.vpretrain.views import Views, row_keys
from perturbjax.vpretrain.vision import learner_loss, with_teacher

TASK, STUDENT, PHI = cases.task(), cases.student(), cases.designer_params()
BATCH = cases.batch(cases.images(4), 2)
FEEDBACK = {name: cases.batch(cases.images(4, seed, labelled=True), 2) for name, seed in (("train", 1), ("meta", 2))}


def experiment(**changes):
    return dataclasses.replace(cases.experiment(), **changes)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for _, leaf in sorted(leaf_paths(tree).items())])


def close(found, expected):
    """To 1e-5 of its size."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


def test_value_and_designer_gradient_are_those_of_double_backward():
    """Double backward goes through all layers."""
    rng = np.random.default_rng(3)
    part, prepared = TASK.subset.take(STUDENT), jax.jit(TASK.learner.prepare)(TASK.learner.start(cases.student(seed=1)), BATCH)
    direction = {path: jnp.asarray(rng.normal(0, 0.1, leaf.shape), jnp.float32) for path, leaf in part.items()}
    every = dataclasses.replace(TASK, subset=dataclasses.replace(TASK.subset, layers=None))

    def by_jvp(phi):
        sums = TASK.value(phi, STUDENT, None, TASK.prepare(STUDENT, None, direction, prepared))
        return sums["value"] / sums["weight"]

    def double(phi):
        def loss(part):
            sums = every.designed_loss(TASK.subset.put(STUDENT, part), None, phi, prepared)
            return sums["loss"] / sums["weight"]

        return dot(direction, jax.grad(loss)(part))

    (value, gradient), (expected, by_double) = (jax.jit(jax.value_and_grad(fn))(PHI) for fn in (by_jvp, double))
    close(value, expected)
    close(flat(gradient), flat(by_double))
    assert np.linalg.norm(flat(gradient)) > 1e-6


def test_a_view_is_a_crop_that_its_key_alone_decides():
    ramp = jnp.broadcast_to(jnp.arange(16.0)[None, :, None], (16, 16, 3))
    images = jnp.stack([ramp, ramp, ramp.swapaxes(0, 1)])
    of_a_quarter = Views(local=8, locals=2, global_area=(0.25, 0.25), local_area=(0.25, 0.25), jitter=0.0)
    make = jax.jit(lambda step, rows: of_a_quarter.make(images, row_keys(5, step, rows)))
    large, small = map(np.asarray, make(jnp.int32(3), jnp.array([0, 7, 7])))
    assert large.shape == (3, 2, 16, 16, 3) and small.shape == (3, 2, 8, 8, 3)
    # Half of each side is shown, by as many pixels as the whole has, or by half of them.
    for views, slope in ((large, 0.5), (small, 1.0)):
        found = np.diff(views[:2], axis=3)[:, :, :, 1:-1]
        assert np.median(found) == pytest.approx(slope, abs=1e-4) and float(np.min(views)) >= 0 and float(np.max(views)) <= 15
    again, _ = map(np.asarray, make(jnp.int32(3), jnp.array([7, 0, 0])))
    np.testing.assert_array_equal(again[:2], large[[1, 0]])
    other, _ = make(jnp.int32(4), jnp.array([0, 7, 7]))
    assert len({float(view.mean()) for views in (large[:2], other[:2]) for view in views.reshape(4, -1)}) == 8


def test_the_mean_of_a_mask_is_the_ratio_and_so_is_its_derivative():
    x = jnp.asarray(np.random.default_rng(0).normal(0, 4, (5, 16)), jnp.float32)
    step, ratios = jnp.zeros((1, 16)).at[0, 3].set(0.01), jnp.array([0.0, 0.1, 0.5, 0.9])

    def all_of(x):
        slopes = jax.jacobian(with_mean)(x[:1], 0.3)[0, :, 0]
        return slopes, with_mean(x[:1] + step, 0.3), with_mean(x[:1] - step, 0.3), jax.vmap(lambda ratio: with_mean(x, ratio))(ratios)

    slopes, *masks = jax.jit(all_of)(x)
    np.testing.assert_allclose(masks[2].mean(axis=-1), jnp.broadcast_to(ratios[:, None], (4, 5)), atol=1e-6)
    assert not np.any(masks[2][0])
    ordered = np.take_along_axis(np.asarray(masks[2]), np.argsort(x, axis=-1)[None], -1)
    assert float(np.diff(ordered, axis=-1).min()) >= 0
    np.testing.assert_allclose(slopes.sum(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(slopes[:, 3], (masks[0] - masks[1])[0] / 0.02, atol=1e-3)


def train(problem, folder, on_step=lambda *_: None):
    folder.mkdir(exist_ok=True)
    metrics = MetricsLog(folder / "metrics.jsonl")
    return fit(problem, cases.TRAINING, 0, folder / "state", {"seed": 0}, sharding.make_mesh(), metrics, on_step)


@pytest.fixture(scope="module")
def steered(tmp_path_factory):
    return train(cases.experiment().problem("value"), tmp_path_factory.mktemp("steered"))


SMALL, START = cases.task(cases.SMALL), cases.student(cases.SMALL)


def steps(designer, steering):
    """A learner's step with masks of a designer, its state, the auxiliary, and what it prepares of one batch."""
    optimizer, auxiliary = make_optimizer(cases.TRAINING, 9), with_teacher(cases.SMALL, steering, START)
    state = TrainState(START, jax.jit(optimizer.init)(START))
    prepared = jax.jit(auxiliary.prepare)(auxiliary.state, None, ONE)
    return make_step(learner_loss(cases.SMALL, designer), optimizer), state, auxiliary, prepared


ONE = jax.tree.map(lambda array: array[None], BATCH)


def test_g_down_is_that_of_a_head_which_is_fitted_on_the_train_batch_alone():
    train, meta = FEEDBACK["train"], FEEDBACK["meta"]
    vit, part = SMALL.learner.vit, SMALL.subset.take(START)

    def mean(outputs, labels):
        losses = dense_losses(outputs, labels)
        return (0.75 * losses["segmentation"] + 0.25 * losses["depth"]).mean()  # of weights 3 and 1

    head = jax.jit(lambda: SMALL.head.fit(vit.build(START["vit"])(train["image"])[1], cases.CLASSES + 1, lambda out: mean(out, train)))()

    def fixed(part, depth):
        outputs = SMALL.head.apply(head, vit.build(SMALL.subset.put(START, part)["vit"])(meta["image"])[1])
        return mean(outputs, meta | {"depth": depth})

    def fitted(part, depth):
        return SMALL.feedback_loss(SMALL.subset.put(START, part), None, {"train": train, "meta": meta | {"depth": depth}})

    expected, found = (jax.jit(jax.value_and_grad(fn, argnums=(0, 1)))(part, meta["depth"]) for fn in (fixed, fitted))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-6), found, expected)
    assert float(np.abs(head["kernel"]).max()) > 0.1


def test_feedback_reaches_the_learner_through_the_designer_alone(steered):
    """The derivative of a learner's step with respect to feedback, at fixed designer, is exactly 0; the designer itself does change."""
    settings = Steering(every=1, learning_rate=0.1, probe=False)
    step, state, auxiliary, prepared = steps(SMALL.designer, designer_auxiliary(SMALL, settings, PHI, lambda step: {}, lambda step: 1e-3))
    feedback = jax.tree.map(lambda array: array[None], FEEDBACK)

    def size(depth):
        given = {name: rows | {"depth": depth} for name, rows in feedback.items()}
        new, _ = auxiliary.update(auxiliary.state, state, None, prepared, given, jnp.int32(0))
        return sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(step(state, (None, new), prepared)[0].params))

    assert not np.any(jax.jit(jax.grad(size))(feedback["meta"]["depth"]))  # masks are constants to the learner, whatever made them
    assert np.any(flat(steered.auxiliary["steering"]["designer"]) != flat(PHI))


def test_masks_of_ratio_0_are_plain_self_distillation_bit_for_bit():
    found = []
    for designer in (None, dataclasses.replace(SMALL.designer, ratio=0.0)):
        step, state, auxiliary, prepared = steps(designer, Auxiliary({}))
        found.append(jax.jit(step)(state, (None, auxiliary.state), prepared))
    plain, silent = (fingerprint((state.params, sums["outputs"])) for state, sums in found)
    assert plain == silent


def test_a_steered_training_that_was_stopped_goes_on_to_the_same_bytes(tmp_path, steered):
    class Stop(Exception):
        pass

    def on_step(step, steps, look):
        if step == 3:
            raise Stop

    with pytest.raises(Stop):
        train(cases.experiment().problem("value"), tmp_path / "run", on_step)
    again = train(cases.experiment().problem("value"), tmp_path / "run")
    assert fingerprint(again.params) == fingerprint(steered.params)
    assert fingerprint(again.auxiliary) == fingerprint(steered.auxiliary)
    assert [look.updates for look in again.looks] == [look.updates for look in steered.looks]
    updates = [update for look in steered.looks for update in look.updates]
    assert [each["step"] for each in updates] == [0, 2, 4] and "outputs" not in steered.looks[0].losses
    for each in updates:
        assert {"value", "realized", "feedback_loss", "logit"} <= each.keys() and each["skipped"] == 0


def test_looks_measure_labelled_images_and_change_nothing(tmp_path, steered):
    """Three rows in batches of two: one of the second batch is padding."""
    train_rows, validation = cases.experiment().feedback["train"], cases.images(3, 7, labelled=True)
    measured = experiment(feedback={**cases.experiment().feedback, "validation": validation})
    fitted = train(measured.problem("value"), tmp_path)
    assert fingerprint(fitted.params) == fingerprint(steered.params)

    def loss(outputs, labels):
        losses = dense_losses(outputs, labels)
        return (0.75 * losses["segmentation"] + 0.25 * losses["depth"]).mean()

    @jax.jit
    def under_a_head(params):
        features = [SMALL.learner.vit.build(params["vit"])(jnp.asarray(rows.arrays["image"]))[1] for rows in (train_rows, validation)]
        head = SMALL.head.fit(features[0], cases.CLASSES + 1, lambda outputs: loss(outputs, train_rows.arrays))
        return dense_losses(SMALL.head.apply(head, features[1]), validation.arrays)

    expected = under_a_head(fitted.params)
    found = fitted.looks[-1].validation
    for name, each in expected.items():
        np.testing.assert_allclose(found[name], each.mean(), rtol=1e-5)
    np.testing.assert_allclose(found["loss"], 0.75 * found["segmentation"] + 0.25 * found["depth"], rtol=1e-6)


def test_the_teacher_is_the_average_of_the_students(steered):
    learner, momentum = TASK.learner, TASK.learner.momentum
    students = [cases.student(seed=seed) for seed in range(3)]
    outputs = np.random.default_rng(0).normal(size=(2, learner.prototypes)).astype(np.float32)
    teacher = learner.start(students[0])
    for number in range(2):
        teacher = learner.follow(teacher, students[number + 1], {"outputs": jnp.asarray(outputs[number]), "weight": jnp.float32(4)})
    weights = [momentum**2, momentum * (1 - momentum), 1 - momentum]
    expected = sum(weight * flat(student) for weight, student in zip(weights, students, strict=True))
    np.testing.assert_allclose(flat(teacher["params"]), expected, rtol=1e-5, atol=1e-6)
    c = learner.center_momentum
    np.testing.assert_allclose(teacher["center"], (1 - c) * (c * outputs[0] + outputs[1]) / 4, rtol=1e-5)
    assert int(teacher["step"]) == 2 and int(steered.auxiliary["teacher"]["step"]) == cases.TRAINING.steps


LABELLED = cases.images(6, 1, labelled=True)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (lambda: dataclasses.replace(cases.VIT, patch=5), "`patch` 5: a divisor of `image` 16 is required"),
        (lambda: dataclasses.replace(cases.VIT, heads=3), "`heads` 3: a divisor of `hidden` 8 is required"),
        (lambda: dataclasses.replace(cases.VIT, layers=0), "`layers` 0: an integer of at least 1 is required"),
        (lambda: Views(local=8, local_area=(0.5, 0.2)), "`local_area` 0.5, 0.2: two shares"),
        (lambda: Views(local=8, jitter=float("nan")), "`jitter` nan: 0 or a number above it is required"),
        (lambda: dataclasses.replace(cases.LEARNER, views=Views(local=6)), "`local` 6: a multiple of `patch` 4, at most"),
        (lambda: dataclasses.replace(cases.LEARNER, teacher_temperature=0.0), "`teacher_temperature` 0.0: a number above 0 is required"),
        (lambda: dataclasses.replace(cases.LEARNER, momentum=1.5), "`momentum` 1.5: a number from 0 to 1 is required"),
        (lambda: dataclasses.replace(cases.DESIGNER, ratio=1.0), "`ratio` 1.0: a share of the patches"),
        (lambda: dataclasses.replace(TASK, designer=cases.MaskDesigner(8)), "`patch` 8, `channels` 3: the student's 4 and 3 are required"),
        (lambda: dataclasses.replace(TASK, classes=1), "`classes` 1: at least 2"),
        (lambda: dataclasses.replace(TASK, weights={"depht": 1.0}), "`weights` {'depht': 1.0}: a weight above 0 for some"),
        (lambda: experiment(rows=Images({"image": np.zeros((4, 20, 16, 3))})), "`rows` image (4, 20, 16, 3): an array of shape (4, 16,"),
        (lambda: experiment(feedback={"train": LABELLED}), "`feedback` train: train and meta are required"),
        (lambda: experiment(feedback=dict.fromkeys(("train", "meta", "test"), LABELLED)), "`feedback` train, meta, test: train and meta"),
        (lambda: experiment(feedback={"train": LABELLED, "meta": cases.images(6)}), "`feedback meta` classes not there: an array"),
        (lambda: experiment(feedback_rows=7), "`feedback_rows` 7: 1 to 6, the rows of train, are required"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_used(changed, said):
    with pytest.raises(InputError) as caught:
        changed()
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_class_that_there_is_not_is_refused():
    wrong = Images(LABELLED.arrays | {"classes": np.full_like(LABELLED.arrays["classes"], cases.CLASSES)})
    with pytest.raises(InputError, match="`feedback train` classes 3 to 3: 0 to 2 are required"):
        experiment(feedback={"train": wrong, "meta": LABELLED})
