"""``shard_map`` and sharding constraints inside a lazy function, on 8 devices: a process of its own has them."""

import os
import subprocess
import sys

from support.paths import SUPPORT

PROGRAM = SUPPORT / "lazy_sharded.py"


def test_sharded_programs_equal_the_oracle():
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-W", "error", str(PROGRAM)], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) > 15 and all(line.startswith("ok ") for line in lines), done.stdout
