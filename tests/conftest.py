"""Strictness for every test: no accelerator, no implicit rank or type promotion, and (in pyproject) no warning."""

import os
from pathlib import Path

# Programs that a test starts find ``support`` too.
os.environ["PYTHONPATH"] = str(Path(__file__).parent)
# Before jax is imported: the suite is about values, and they are the same everywhere.
os.environ["JAX_PLATFORMS"] = "cpu"
# For every command that a test calls, in this process or another: the suite leaves nothing in the user's home.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

import jax
from hypothesis import settings

# The same examples in every run, on a machine of any speed.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
