"""Value networks do not depend on the mesh: combined under tensor parallelism or trained, on 8 devices of another process."""

import os
import subprocess
import sys

import pytest
from support.paths import SUPPORT

PROGRAMS = SUPPORT / "value_mesh_programs.py"


@pytest.mark.parametrize("part", ["choices", "generated", "trained", "stored", "collectives"])
def test_every_mesh_gives_the_results_of_one_device(part):
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-W", "error", str(PROGRAMS), part], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines and all(line.startswith("ok ") for line in lines), done.stdout
