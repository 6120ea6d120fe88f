"""A trace of work that is warm, for xprof. The directory is checked early, before anything is compiled."""

import time
from collections.abc import Callable
from pathlib import Path

import jax
from jax.profiler import ProfileOptions

from perturbjax.errors import InputError
from perturbjax.runs.files import write_fault


def check_profile(directory: Path) -> None:
    """Refuse a directory that a trace cannot be written to; makes nothing.

    Raises:
        InputError: it is a file, or neither it nor the nearest directory above it can be written.
    """
    existing = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise InputError(f"`profile` {directory}: {existing} is a file; give a directory")
    if fault := write_fault(existing):
        raise InputError(f"`profile` {directory}: {fault}; give another directory")


def trace(directory: Path, run: Callable[[], object]) -> float:
    """Traces one run, which must be warm, into ``directory``; wall seconds of the run."""
    options = ProfileOptions()
    options.python_tracer_level = 0  # thousands of Python calls would hide the operations
    with jax.profiler.trace(str(directory), profiler_options=options):
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
