"""Results do not depend on the mesh: candidates on 8 devices, tensor parallelism and uneven populations, which a process of its own has."""

import pytest
from support.paths import SUPPORT
from support.run_meshes import run_on_8_devices


@pytest.fixture(scope="module")
def said() -> list[tuple[str, str]]:
    return run_on_8_devices(SUPPORT / "mesh_programs.py")


@pytest.mark.parametrize(("part", "cases"), [("choices", 8), ("generated", 3), ("layouts", 1), ("next_tokens", 1)])
def test_every_mesh_gives_the_answers_of_one_device(said, part, cases):
    found = [words for name, words in said if name == part]
    assert len(found) == cases and all(words.startswith("ok ") for words in found), said
