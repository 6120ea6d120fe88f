"""``--compile-cache``: compiled programs kept from one command to the next. Only ``distributed.join`` sets jax's configuration too."""

import hashlib
import os
import platform
import warnings
from pathlib import Path

from perturbjax._version import __version__
from perturbjax.runs.console import Console
from perturbjax.runs.files import write_fault

WORTH_KEEPING_S = 0.2
"""Compile time from which on a program is kept."""


def use_compile_cache(choice: str, console: Console) -> None:
    """Set up jax's persistent compilation cache for this process, before anything is compiled.

    Args:
        choice: "off"; "auto": a directory of the user's, unless jax was told about one (or told not to) by its own environment variables;
            anything else is a directory, or a URL that jax can write to.
        console: gets one line if the directory cannot be written; the command then goes on without a cache.
    """
    import jax

    if choice == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if choice == "auto" and (jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache):  # type: ignore[attr-defined]
        return
    base = str(default_directory()) if choice == "auto" else choice
    directory = f"{base.rstrip('/')}/{machine_key()}"
    if "://" not in directory and (fault := write_fault(Path(os.path.expanduser(directory)))):
        console.note(f"compile cache {base}: {fault}; going on without it")
        jax.config.update("jax_enable_compilation_cache", False)
        return
    # Two processes may use one directory: an entry is written once and checked when it is read. One that another process is still writing,
    # or was killed while writing, is compiled anew; that is no reason to alarm anyone.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache entry")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", WORTH_KEEPING_S)
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser(directory) if "://" not in directory else directory)


def default_directory() -> Path:
    """``$XDG_CACHE_HOME/perturbjax``, or ``~/.cache/perturbjax``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "perturbjax"


def machine_key() -> str:
    """A name for what compiled programs may not be shared across.

    XLA:CPU compiles for the features of the processor at hand, and jax's own key does not hold them: in a home directory on a network, one
    machine would load code that another cannot run. The version is in it because jax's key leaves names out, which profiles show.
    """
    features = {"machine": platform.machine(), "processor": platform.processor()}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").split("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("vendor_id", "cpu family", "model", "model name", "flags", "Features", "CPU implementer", "CPU part"):
                features[name.strip()] = value.strip()
    digest = hashlib.sha256(repr(sorted(features.items())).encode()).hexdigest()
    return f"{__version__}-{digest[:12]}"
