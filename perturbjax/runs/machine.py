"""What a run finds on the machines it runs on: the mesh that was asked for, versions, devices, optional packages."""

import importlib.metadata
import importlib.util
import platform
from typing import Any

import jax
from jax.sharding import Mesh

from perturbjax import sharding
from perturbjax.errors import InputError
from perturbjax.runs.config import Machine


def make_mesh(machine: Machine) -> Mesh:
    """The mesh that the settings ask for, of all devices of all processes.

    Raises:
        InputError: there are more or fewer devices.
    """
    devices = jax.device_count()
    data, model = machine.axes or (devices, 1)
    if data * model != devices:
        raise InputError(f"`mesh` {machine.mesh}: {data * model} devices, there are {devices}; use e.g. {devices}x1")
    return sharding.make_mesh(model=model)


def shares_a_model(machine: Machine) -> bool:
    """Whether several devices or processes hold one model between them, so that each is to read its part of the files alone."""
    return jax.process_count() > 1 or (machine.axes or (1, 1))[1] > 1


def resolve_dtype(dtype: str) -> str:
    """``auto`` -> the type that this backend is fast in; XLA:CPU multiplies float32 faster than bfloat16 at every size tried."""
    if dtype != "auto":
        return dtype
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def versions() -> dict[str, str]:
    """Versions of everything that a figure may depend on."""
    packages = ("perturbjax", "jax", "jaxlib", "flax", "numpy", "orbax-checkpoint")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def devices() -> dict[str, Any]:
    """Kinds and numbers of what the run has, for config.json."""
    return {
        "backend": jax.default_backend(),
        "kinds": sorted({device.device_kind for device in jax.devices()}),
        "count": jax.device_count(),
        "processes": jax.process_count(),
    }


def require(*modules: str) -> None:
    """Check that optional packages are installed, before hours are spent on what they would show.

    Raises:
        InputError: one is missing; what to install.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"{', '.join(missing)} not installed; pip install 'perturbjax[demo]'")
