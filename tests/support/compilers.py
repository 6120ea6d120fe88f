"""Compilers for chips that are not here, where they are installed."""

import importlib.util
import os

import pytest

tpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: the extra perturbjax[tpu] holds the TPU compiler"
)
cuda = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="jax-cuda12-plugin and jax-cuda12-pjrt are not installed: they hold the compiler for NVIDIA GPUs",
)
PLATFORMS = [pytest.param("tpu", marks=tpu), pytest.param("cuda", marks=cuda)]


def environment() -> dict[str, str]:
    """Of a process that compiles for them as users do: with the optimizations that the suite leaves out elsewhere."""
    return {name: value for name, value in os.environ.items() if name != "JAX_DISABLE_MOST_OPTIMIZATIONS"}
