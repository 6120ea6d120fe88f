"""Programs that need 8 devices, each in a process of its own: all parts of a file have one, which loads the models and compiles for one
device once."""

import os
import subprocess
import sys
from pathlib import Path


def run_on_8_devices(program: Path) -> list[tuple[str, str]]:
    """(part, what was found) of every line ``PART ok|WRONG CASE ...`` that a program prints."""
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-W", "error", str(program)], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [(part, found) for part, _, found in (line.partition(" ") for line in done.stdout.splitlines())]
