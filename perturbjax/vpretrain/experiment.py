"""What the arms of a run have in common, and all parameters after one."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from perturbjax.pretrained.params import DTYPES
from perturbjax.sharding import MODEL
from perturbjax.train.optimizer import learning_rates
from perturbjax.train.placement import param_specs, put_params
from perturbjax.vpretrain.arms import Experiment
from perturbjax.vpretrain.setup import Packed, Parts, adapter_of
from perturbjax.vpretrain.steering import Steering
from perturbjax.vpretrain.text import Learner, TextTask
from perturbjax.vpretrain.value import make_subset


def make_experiment(parts: Parts, packed: Packed, mesh: Mesh) -> Experiment:
    """What the arms have in common."""
    config = parts.config
    steer, training, model = config.steer, config.training, parts.model
    dtype = DTYPES[parts.dtype if training.compute == "auto" else training.compute]
    dims = model_dims(parts, mesh)
    learner, adapter = Learner(model.config, dtype, training.remat, mesh), adapter_of(config, model.config)
    trained, frozen = model.params, None
    if adapter is not None:
        learner = dataclasses.replace(learner, whole=lambda trained, frozen: adapter.attach(frozen, trained))
        trained = jax.device_get(adapter.init(model.params, steer.seed))
        frozen, dims = put_params(model.params, mesh, dims), {}
    subset = make_subset(trained, steer.subset_layers, steer.subset_rules)
    task = TextTask(learner, parts.designer, subset, config.data.weights, config.data.domains)
    steering = Steering(
        similarity=steer.similarity,
        every=steer.meta_period,
        burn_in=steer.burn_in,
        learning_rate=steer.designer_learning_rate,
        seed=steer.seed,
        probe=steer.probe,
    )
    measured = {**packed.validation, **({"general": packed.general} if packed.general is not None else {})}
    return Experiment(
        task,
        trained,
        frozen,
        parts.designer_params,
        steering,
        packed.corpus,
        packed.feedback,
        config.data.feedback_rows,
        learning_rates(training, training.total_steps(len(packed.corpus))),
        measured,
        dims,
        parts.designer.dims(mesh.shape[MODEL]),
    )


def model_dims(parts: Parts, mesh: Mesh) -> Mapping[str, Any]:
    """Path -> sharded dim of the model's parameters on the mesh."""
    layout = parts.model.config.partition(mesh.shape[MODEL])
    return layout.dims(parts.model.config) if layout else {}


def merged(parts: Parts, trained: Any) -> Any:
    """All parameters after a training, as numpy arrays in the type of the model's weights.

    Args:
        parts: of the run.
        trained: what was trained, as numpy arrays.
    """
    adapter = adapter_of(parts.config, parts.model.config)
    return in_dtype(parts, trained if adapter is None else jax.device_get(jax.jit(adapter.apply)(parts.model.params, trained)))


def whole_params(parts: Parts, mesh: Mesh) -> Callable[[Any, Any], Any]:
    """(trained, frozen), both on the mesh as in a training -> all parameters there, in the type of the model's weights; compiled once."""
    adapter, dtype = adapter_of(parts.config, parts.model.config), DTYPES[parts.dtype]
    specs = param_specs(parts.model.params, model_dims(parts, mesh))
    places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))

    def whole(trained: Any, frozen: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.astype(dtype), trained if adapter is None else adapter.apply(frozen, trained))

    return jax.jit(whole, out_shardings=places)


def in_dtype(parts: Parts, params: Any = None) -> Any:
    """Parameters, the model's own when left out, as numpy arrays in the type of its weights."""
    params = parts.model.params if params is None else params
    return jax.tree.map(lambda leaf: np.asarray(leaf).astype(DTYPES[parts.dtype]), params)
