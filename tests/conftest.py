"""Strictness for every test: no accelerator, no implicit rank or type promotion, and (in pyproject) no warning."""

import gc
import os
import time
from pathlib import Path

# Programs that a test starts find ``support`` too.
os.environ["PYTHONPATH"] = str(Path(__file__).parent)
# Before jax is imported: the suite is about values, and they are the same everywhere.
os.environ["JAX_PLATFORMS"] = "cpu"
# Operations that are not under ``jit`` are small programs by the hundred, and the same ones in most files: they are kept too.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# Most tests compare two ways of ours to compute something, once: without most of XLA's optimizations their programs compile in a third to
# a fifth of the time. Bits that are laid down, and whole runs as users start them, are tested with the default: see ``optimized``.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import jax
import pytest
from hypothesis import settings
from jax.experimental.compilation_cache import compilation_cache
from jaxtyping import install_import_hook
from support.paths import COMPILED

# Shapes and types of the public functions of these modules are checked at every call.
CHECKED = ["noise.values", "noise.low_rank", "noise.dense", "randopt.voting"]
install_import_hook([f"perturbjax.{module}" for module in CHECKED], "beartype.beartype")

# The same examples in every run, on a machine of any speed.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")

# Tracing makes many objects and no garbage that is in the way: at Python's default, collections are a twentieth of the suite's time.
gc.freeze()
gc.set_threshold(100_000, 20, 20)

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


# Longest first: what is started last then ends soon. Files that are not named follow in the order of their names.
LONGEST = (
    "interpret/test_oracle.py",
    "cluster/test_mesh.py",
    "cluster/test_faults.py",
    "inference/test_engine.py",
    "bench/test_plan.py",
    "ivl/test_mesh.py",
    "vpretrain/test_run.py",
    "cluster/test_processes.py",
    "models/test_decoder.py",
    "ivl/test_run.py",
    "vpretrain/test_vision.py",
    "randopt/test_run.py",
    "interpret/test_kernels.py",
    "runs/test_state.py",
    "ivl/test_combined.py",
    "kernels/test_compile.py",
    "models/test_model_families.py",
    "vpretrain/test_loop.py",
    "inference/test_decode.py",
    "consolidate/test_run.py",
    "project/test_examples.py",
    "cli/test_commands.py",
    "caulking/test_language.py",
    "bench/test_bench.py",
    "models/test_adapters.py",
    "noise/test_dense.py",
    "vpretrain/test_mesh.py",
    "train/test_fit.py",
    "kernels/test_matmul.py",
    "ivl/test_toy.py",
    "caulking/test_run.py",
    "noise/test_values.py",
    "ivl/test_logits.py",
    "randopt/test_screening.py",
    "runs/test_compile_cache.py",
    "ivl/test_value.py",
    "noise/test_distributions.py",
    "vpretrain/test_toy.py",
    "studies/test_rivals.py",
    "ivl/test_rivals.py",
    "randopt/test_adapters.py",
    "interpret/test_experts.py",
    "caulking/test_heads.py",
    "randopt/test_racing.py",
    "ivl/test_changes.py",
    "scoring/test_same_models.py",
    "scoring/test_scorer.py",
    "caulking/test_grid.py",
    "cli/test_calibrate.py",
    "interpret/test_usage.py",
    "noise/test_bits.py",
    "serve/test_members.py",
)


CACHE = ("jax_enable_compilation_cache", "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture(autouse=True)
def cache_of_the_suite():
    """A command that runs in this process may set jax's compilation cache up for itself, or turn it off: the tests after it have the cache
    of the suite again. jax looks at these settings once, so it is told to look anew."""
    before = {name: getattr(jax.config, name) for name in CACHE}
    yield
    changed = {name: value for name, value in before.items() if getattr(jax.config, name) != value}
    for name, value in changed.items():
        jax.config.update(name, value)
    if changed:
        compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def optimized():
    """Programs of a file, here and in the processes that it starts, are compiled as users compile them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS")
        jax.config.update("jax_disable_most_optimizations", False)
        jax.clear_caches()
        yield
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()


def pytest_configure(config: pytest.Config) -> None:
    from perturbjax.runs.compile_cache import machine_key  # after the hook above, which checks what is imported from then on

    # Many tests compile the same programs of a tiny model, and the next run of the suite compiles most of them again: one cache for all of
    # its processes, with what pytest itself keeps in the tree (``--cache-clear`` empties it).
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(COMPILED / machine_key())
        jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    # jax writes an entry in place: one that another worker is still writing is read as damaged, and its program compiled anew.
    config.addinivalue_line("filterwarnings", "ignore:Error (reading|writing) persistent compilation cache entry")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


def pytest_sessionfinish(session: object) -> None:
    """Programs that no run has read for two weeks are dropped."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    for program in COMPILED.glob("*/*"):
        if time.time() - program.stat().st_atime > 14 * 86400:
            program.unlink(missing_ok=True)
