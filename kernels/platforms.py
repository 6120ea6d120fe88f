"""Where a kernel may stand in for a dot, on platforms that have one, and what a Pallas call needs inside of ``shard_map``."""

from collections.abc import Sequence
from typing import Any

import jax

from perturbjax import _compat
from perturbjax.noise.distributions import DISTRIBUTIONS

LOWERINGS = {"tpu": "tpu", "cuda": "gpu"}
"""Platform, as ``jax.lax.platform_dependent`` names it, and the lowering of ``perturbed_matmul`` for it."""


LOW_RANK_GPU_ROWS = 512
"""Low-rank noise: what ``Distribution.gpu_rows`` is of dense noise."""


def pays(lowering: str, distribution: str, rank: int | None, rows: int) -> bool:
    """Whether a kernel is faster than noise and perturbed weight made once in memory, for ``rows`` rows of x a candidate.

    The kernel for GPUs makes a tile's noise anew for every 256 rows of x, and noise of a word a weight costs it as much as it costs XLA.
    """
    return lowering != "gpu" or rows <= (LOW_RANK_GPU_ROWS if rank is not None else DISTRIBUTIONS[distribution].gpu_rows)


def lowerings() -> dict[str, str]:
    """The part of ``LOWERINGS`` that what is being traced may meet; empty where there is no kernel for it.

    A Pallas call is not partitioned by the compiler. So it needs ``shard_map`` over all axes of a mesh, which knows its platform, or a
    program of one device: outside of meshes nothing tells how many devices a program is for, or which, so there must be no more than one,
    and its platform is the guess. Programs for CPU are traced as if there were no kernels.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        found = jax.devices()[0].platform if jax.device_count() == 1 else None
    elif set(mesh.manual_axes) == set(mesh.axis_names) and mesh.abstract_device is not None:
        found = mesh.abstract_device.platform
    else:
        found = None
    # Devices and meshes say "gpu" for every maker's.
    return {platform: lowering for platform, lowering in LOWERINGS.items() if found == platform or (found, platform) == ("gpu", "cuda")}


def varying_alike(operands: Sequence[jax.Array]) -> list[jax.Array]:
    """Operands of one Pallas call, each varying over every manual mesh axis that one of them varies over."""
    first, *rest = operands
    for operand in rest:
        first = _compat.varying_like(first, operand)
    return [first, *(_compat.varying_like(operand, first) for operand in rest)]


def result_like(operand: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """Type of a Pallas call's result that varies over mesh axes as its operands do. With its checks on, ``shard_map`` wants that said."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(operand).mat)
