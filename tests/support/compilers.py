"""Compilers for chips that are not here, where they are installed."""

import importlib.util

import pytest

tpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: the extra perturbjax[tpu] holds the TPU compiler"
)
cuda = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="jax-cuda12-plugin and jax-cuda12-pjrt are not installed: they hold the compiler for NVIDIA GPUs",
)
PLATFORMS = [pytest.param("tpu", marks=tpu), pytest.param("cuda", marks=cuda)]
