"""Values by one forward-mode derivative against double backward, and which parameters they look at."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import vpretrain_cases as cases

from perturbjax.errors import InputError
from perturbjax.noise import Rule
from perturbjax.tree import leaf_paths
from perturbjax.vpretrain.text import candidate_log_probs
from perturbjax.vpretrain.value import (
    Subset,
    cosine_direction,
    designed_value,
    dot,
    make_subset,
    norm,
    preconditioned,
)

PARAMS = cases.params()
ROWS, FEEDBACK = cases.rows(), cases.rows(seed=1)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for _, leaf in sorted(leaf_paths(tree).items())])


def close(found, expected):
    """To 1e-5 of its size."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


def mean_loss(task, designer, batch):
    """The designed loss of the learner as a function of the subset, differentiable in the designer too."""

    def loss(part, designer=designer):
        task_loss = dataclasses.replace(task, subset=Subset(task.subset.leaves, None))  # derivatives through all layers
        whole, learner = task.subset.put(PARAMS, part), task_loss.learner
        fn = candidate_log_probs(learner, cases.K, None, task_loss.subset)
        log_probs, ids = fn(whole, batch)
        alpha, log_r = task.designer.targets(designer, task.designer.states(designer, batch), ids, jax.lax.stop_gradient(log_probs))
        q = alpha[..., None] * jnp.exp(log_r) + jnp.zeros(ids.shape).at[..., 0].set(1.0) * (1 - alpha)[..., None]
        return -jnp.sum(batch["weights"] * jnp.sum(q * log_probs, axis=-1)) / jnp.sum(batch["weights"])

    return loss


def test_value_and_designer_gradient_are_those_of_double_backward():
    task, phi = cases.task(), cases.designer_params()
    batch, feedback = cases.batch(ROWS), {"one": cases.batch(FEEDBACK)}

    def by_jvp(phi):
        direction = jax.grad(lambda part: task.feedback_loss(task.subset.put(PARAMS, part), None, feedback))(task.subset.take(PARAMS))
        sums = task.value(phi, PARAMS, None, task.prepare(PARAMS, None, direction, batch))
        return sums["value"] / sums["weight"]

    def double(phi):
        whole = dataclasses.replace(task, subset=Subset(task.subset.leaves, None))
        g_down = jax.grad(lambda part: whole.feedback_loss(task.subset.put(PARAMS, part), None, feedback))(task.subset.take(PARAMS))
        return dot(jax.lax.stop_gradient(g_down), jax.grad(mean_loss(task, phi, batch))(task.subset.take(PARAMS), phi))

    (value, gradient), (expected, by_double) = (jax.jit(jax.value_and_grad(fn))(phi) for fn in (by_jvp, double))
    assert abs(value - expected) <= 1e-5 * abs(expected)
    close(flat(gradient), flat(by_double))
    assert np.linalg.norm(flat(gradient)) > 1e-6


def small_task():
    """A task whose input, and not its target, is designed: parameters, designer, input, loss."""
    rng = np.random.default_rng(0)
    params = {"first": jnp.asarray(rng.normal(size=(6, 8)), jnp.float32), "second": jnp.asarray(rng.normal(size=(8, 3)), jnp.float32)}
    x, phi = jnp.asarray(rng.normal(size=(10, 6)), jnp.float32), jnp.asarray(rng.normal(size=6), jnp.float32)

    def loss(params, phi, x):
        masked = x * jax.nn.sigmoid(phi)[None]
        return jnp.mean(jnp.square(jnp.tanh(masked @ params["first"]) @ params["second"] - x[:, :3]))

    return params, phi, x, loss


def test_the_value_of_any_designed_task_is_that_of_double_backward():
    params, phi, x, loss = small_task()
    subset = make_subset(params, rules=("first",))
    direction = {"first": jnp.asarray(np.random.default_rng(1).normal(size=(6, 8)), jnp.float32)}

    def double(phi):
        return dot(direction, subset.take(jax.grad(loss)(params, phi, x)))

    found = jax.jit(jax.value_and_grad(lambda phi: designed_value(loss, params, subset, direction, phi, x)))(phi)
    expected = jax.jit(jax.value_and_grad(double))(phi)
    close(found[0], expected[0])
    close(found[1], expected[1])


def test_the_cosine_has_its_own_gradient_without_a_second_order_pass():
    params, phi, x, loss = small_task()
    subset = make_subset(params, rules=("first",))
    part, g_down = subset.take(params), {"first": jnp.asarray(np.random.default_rng(2).normal(size=(6, 8)), jnp.float32)}

    def g_pre(phi):
        return jax.grad(lambda part: loss(subset.put(params, part), phi, x))(part)

    def exact(phi):
        return dot(g_down, g_pre(phi)) / (norm(g_down) * norm(g_pre(phi)))

    def by_jvp(phi):
        direction, cosine = jax.lax.stop_gradient(cosine_direction(g_down, g_pre(phi)))
        return designed_value(loss, params, subset, direction, phi, x), cosine

    expected, gradient = jax.jit(jax.value_and_grad(exact))(phi)
    (value, cosine), found = jax.jit(jax.value_and_grad(by_jvp, has_aux=True))(phi)
    close(cosine, expected)
    close(found, gradient)
    assert abs(value) < 1e-6


def test_a_direction_exists_for_the_subset_alone():
    subset = make_subset(PARAMS, 1, ("mlp/",))
    assert dict(subset.leaves) == {f"layers/mlp/{name}/kernel": 1 for name in ("gate", "up", "down")}
    assert {path: leaf.shape for path, leaf in subset.take(PARAMS).items()} == {
        "layers/mlp/gate/kernel": (1, 16, 24),
        "layers/mlp/up/kernel": (1, 16, 24),
        "layers/mlp/down/kernel": (1, 24, 16),
    }
    back = subset.put(PARAMS, {path: leaf * 0 for path, leaf in subset.take(PARAMS).items()})
    np.testing.assert_array_equal(back["layers"]["mlp"]["up"]["kernel"][:1], PARAMS["layers"]["mlp"]["up"]["kernel"][:1])
    assert not np.any(back["layers"]["mlp"]["up"]["kernel"][1])
    assert back["embed"]["embedding"] is PARAMS["embed"]["embedding"]
    assert make_subset(PARAMS, rules=("norm",)).layers is None


def test_of_the_rules_of_a_subset_the_first_that_matches_decides():
    def chosen(*rules: Rule | str) -> list[str]:
        return [path for path, _ in make_subset(PARAMS, rules=rules).leaves]

    mlp = [f"layers/mlp/{name}/kernel" for name in ("down", "gate", "up")]
    for rules in (("mlp/",), (Rule("mlp/", "absolute"),), (Rule("mlp/", "absolute"), Rule(".", None))):
        assert sorted(chosen(*rules)) == mlp
    assert sorted(chosen(Rule("gate", None), "mlp/")) == [mlp[0], mlp[2]]
    everything = sorted(leaf_paths(PARAMS))
    assert sorted(chosen(Rule("mlp/", None))) == [path for path in everything if path not in mlp]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rules": ("mlp", "atention")}, "`subset_rules` atention: matches no parameter; the paths are like"),
        ({"rules": ("(",)}, "`subset_rules` (: not a regular expression"),
        ({"layers": 3}, "`subset_layers` 3: 1 to 2, the number of layers, is required"),
        ({"layers": 1, "rules": ("embed",)}, "`subset_rules` embed: leave nothing of the layers; set `subset_layers` 0"),
        ({"layers": 1, "rules": (Rule("layers", None),)}, "`subset_rules` layers=exclude: leave nothing of the layers"),
        ({"rules": ("mlp", Rule("mlp/up", None))}, "`subset_rules` mlp/up=exclude: matches no parameter that an earlier rule has left"),
        ({"rules": (Rule(".", None),)}, "`subset_rules` .=exclude: exclude every parameter; leave some"),
        ({"rules": (Rule("mlp", "rms"),)}, "`subset_rules` mlp=rms: a subset has no scales; mlp or mlp=exclude is required"),
        ({}, "`subset_layers`: a number of layers, or `subset_rules`, is required"),
    ],
)
def test_a_subset_of_nothing_is_refused(settings, message):
    with pytest.raises(InputError) as error:
        make_subset(PARAMS, **settings)
    assert str(error.value).startswith(message)


def test_preconditioning_is_the_step_of_adamw():
    """The fall of a linear loss by the first step of Adam, per learning rate."""
    import optax

    rng = np.random.default_rng(4)
    g_down, g_pre = ({"w": jnp.asarray(rng.normal(size=9), jnp.float32)} for _ in range(2))
    adam = optax.adam(1.0, b1=0.0)
    with jax.numpy_dtype_promotion("standard"):
        updates, state = adam.update(g_pre, adam.init({"w": jnp.zeros(9)}))
    moments = optax.tree.get(state, "nu")
    close(dot(preconditioned(g_down, moments, jnp.int32(1)), g_pre), -jnp.sum(g_down["w"] * jax.tree.leaves(updates)[0]))
