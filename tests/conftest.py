"""Strictness for every test: no accelerator, no implicit rank or type promotion, and (in pyproject) no warning."""

import os

# Before jax is imported: the suite is about values, and they are the same everywhere.
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def strict_dtypes():
    """Implicit promotion between array types raises; for tests of code that is ours from end to end."""
    with jax.numpy_dtype_promotion("strict"):
        yield
