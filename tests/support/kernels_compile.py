"""Compiles the perturbed product for chips that this machine does not have, and prints what came out as JSON.

    python tests/support/kernels_compile.py tpu     # needs libtpu: the [tpu] extra
    python tests/support/kernels_compile.py cuda    # needs jax-cuda12-plugin and jax-cuda12-pjrt; no CUDA library, no GPU

Run in its own process: with libtpu importable, JAX looks for a TPU unless it is told not to, before it is imported.
"""

import json
import os
import sys
from typing import Any

os.environ.update(
    JAX_PLATFORMS="cpu",
    TPU_SKIP_MDS_QUERY="1",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",  # nothing is run, so several processes may compile at a time
    TPU_ACCELERATOR_TYPE="v5litepod-4",
    TPU_WORKER_HOSTNAMES="localhost",
    JAX_SKIP_CUDA_CONSTRAINTS_CHECK="1",
)

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from perturbjax.kernels.matmul import perturbed_matmul
from perturbjax.noise import DISTRIBUTIONS

TPUS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84978434048
  shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 } registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 1 } device_description_str: "NVIDIA H100 80GB HBM3"
"""
KERNEL_CALLS = {"tpu": 'custom_call_target="tpu_custom_call"', "cuda": "__gpu$xla.gpu.triton"}
# name: x, w, dtype, options. The first is compiled for every TPU, the others for v5e and H100 alone.
CASES: dict[str, tuple[tuple[int, ...], tuple[int, int], Any, dict[str, Any]]] = {
    "rademacher": ((4, 128, 1024), (1024, 1024), jnp.bfloat16, dict(distribution="rademacher")),
    **{name: ((2, 64, 512), (512, 512), jnp.bfloat16, dict(distribution=name)) for name in DISTRIBUTIONS if name != "rademacher"},
    "gaussian float32": ((2, 64, 256), (256, 256), jnp.float32, dict(distribution="gaussian", precision="highest")),
    "rademacher ragged, traced offsets, wide leaf": (
        (3, 5, 700), (700, 1111), jnp.bfloat16, dict(distribution="rademacher", shape=(2000, 8192, 16384), offsets=None),
    ),
    "gaussian wide leaf": ((2, 8, 256), (256, 256), jnp.bfloat16, dict(distribution="gaussian", shape=(80, 8192, 28672), offsets=None)),
    "rademacher tied head": ((2, 8, 576), (1000, 576), jnp.bfloat16, dict(distribution="rademacher", transposed=True)),
    "low rank": ((2, 16, 512), (512, 384), jnp.bfloat16, dict(distribution="gaussian", rank=4)),
    "rank 1 tied head": ((2, 16, 512), (384, 512), jnp.float32, dict(distribution="rademacher", rank=1, transposed=True)),
}  # fmt: skip


def compiled(device: Any, case: str) -> dict[str, Any]:
    """Compiles one case, under vmap over candidates: kernel calls in the program, bytes of temporaries and of the weight."""
    x_shape, w_shape, dtype, options = CASES[case]
    options = {"shape": w_shape, "offsets": (0, 0, 0), **options}
    traced = options.pop("offsets") is None

    def product(x: jax.Array, w: jax.Array, keys: jax.Array, steps: jax.Array, offsets: jax.Array) -> jax.Array:
        where = (offsets[0], offsets[1], offsets[2]) if traced else (0, 0, 0)
        return jax.vmap(lambda x, key, step: perturbed_matmul(x, w, key, step, offsets=where, **options))(x, keys, steps)

    candidates = x_shape[0]
    shapes = ((x_shape, dtype), (w_shape, dtype), ((candidates, 2), jnp.uint32), ((candidates,), jnp.float32), ((3,), jnp.uint32))
    # Triton's lowering asks for the chip, which the mesh of shard_map knows where there is no GPU.
    mesh = Mesh(np.array([device]), ("device",))
    arguments = [jax.ShapeDtypeStruct(s, d, sharding=NamedSharding(mesh, P())) for s, d in shapes]
    program: Any = jax.jit(jax.shard_map(product, mesh=mesh, in_specs=P(), out_specs=P())).lower(*arguments).compile()
    return {
        "kernels": program.as_text().count(KERNEL_CALLS[device.platform if device.platform == "tpu" else "cuda"]),
        "temp_bytes": program.memory_analysis().temp_size_in_bytes,
        "weight_bytes": w_shape[0] * w_shape[1] * jnp.dtype(dtype).itemsize,
    }


def targets(platform: str) -> dict[str, Any]:
    """A device of each chip to compile for."""
    if platform == "tpu":
        return {chip: topologies.get_topology_desc(platform="tpu", topology_name=name).devices[0] for chip, name in TPUS.items()}
    return {"h100": topologies.get_topology_desc(topology_name="", platform="cuda", topology="1x1x1", target_config=H100).devices[0]}


def main() -> None:
    results = {}
    for chip, device in targets(sys.argv[1]).items():
        for case in CASES if chip in ("v5e", "h100") else list(CASES)[:1]:
            try:
                results[f"{chip}: {case}"] = compiled(device, case)
            except Exception as error:  # every case is tried; the test shows which failed, and why
                results[f"{chip}: {case}"] = {"error": f"{type(error).__name__}: {error}"[:2000]}
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
