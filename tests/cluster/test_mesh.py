"""Results do not depend on the mesh: tensor parallelism and uneven populations on 8 devices, which a process of its own has."""

import os
import subprocess
import sys

import pytest
from support.paths import SUPPORT


@pytest.fixture(scope="module")
def said() -> list[tuple[str, str]]:
    """(part, what was found) of every case; all parts have one process, which loads the models and compiles for one device once."""
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    program = [sys.executable, "-W", "error", str(SUPPORT / "mesh_programs.py")]
    done = subprocess.run(program, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [(part, found) for part, _, found in (line.partition(" ") for line in done.stdout.splitlines())]


@pytest.mark.parametrize(("part", "cases"), [("choices", 4), ("generated", 2), ("layouts", 1)])
def test_every_mesh_gives_the_answers_of_one_device(said, part, cases):
    found = [words for name, words in said if name == part]
    assert len(found) == cases and all(words.startswith("ok ") for words in found), said
