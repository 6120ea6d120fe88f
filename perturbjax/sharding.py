"""Every sharding decision: the mesh axes and what lies along them.

"candidate": candidates are split over it and never talk to each other; base params and data are replicated along it.
"model": reserved for tensor parallelism of one candidate; its size is 1.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

CANDIDATE = "candidate"
MODEL = "model"

REPLICATED = PartitionSpec()
OVER_CANDIDATES = PartitionSpec(CANDIDATE)


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A (candidate, model) mesh with all devices (or the given ones) along "candidate"."""
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices).reshape(len(devices), 1), (CANDIDATE, MODEL))


def put_replicated(tree, mesh: Mesh):
    """Puts a pytree on every device of the mesh, once."""
    return jax.device_put(tree, NamedSharding(mesh, REPLICATED))


def put_over_candidates(tree, mesh: Mesh):
    """Splits the leading axis of every leaf over "candidate"."""
    return jax.device_put(tree, NamedSharding(mesh, OVER_CANDIDATES))
