"""``--profile DIR``: a trace of work that is warm, for xprof. The directory is checked early, before anything is compiled."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perturbjax.runs.console import Console
from perturbjax.errors import InputError
from perturbjax.noise import Population

if TYPE_CHECKING:
    from perturbjax.inference import Engine


def check_profile(directory: Path) -> None:
    """Refuse a directory that a trace cannot be written to; makes nothing.

    Raises:
        InputError: it is a file, or neither it nor the nearest directory above it can be written.
    """
    existing = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise InputError(f"--profile {directory}: {existing} is a file; give a directory")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InputError(f"--profile {directory}: cannot be written ({error.strerror or error}); give another directory") from None


def trace_candidates(engine: "Engine", population: Population, prepared: Any, directory: Path, console: Console) -> None:
    """Trace the scoring of as many candidates as are in flight at once; their scores are thrown away."""
    from perturbjax.bench.scopes import trace

    few = population[: engine.mesh.size * engine.in_flight]
    engine.run(few, prepared)  # compiles, if a finished run has left that to us
    seconds = trace(directory, lambda: engine.run(few, prepared))
    console.note(f"traced {len(few.index)} candidates in {seconds:.1f} s; open the trace with: xprof --logdir {directory}")
