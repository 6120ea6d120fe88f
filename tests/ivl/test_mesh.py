"""Value networks do not depend on the mesh: combined under tensor parallelism or trained, on 8 devices of another process."""

import pytest
from support.paths import SUPPORT
from support.run_meshes import run_on_8_devices


@pytest.fixture(scope="module")
def said() -> list[tuple[str, str]]:
    return run_on_8_devices(SUPPORT / "value_mesh_programs.py")


@pytest.mark.parametrize(("part", "cases"), [("choices", 4), ("generated", 2), ("trained", 2), ("stored", 7), ("collectives", 6)])
def test_every_mesh_gives_the_results_of_one_device(said, part, cases):
    found = [words for name, words in said if name == part]
    assert len(found) == cases and all(words.startswith("ok ") for words in found), said
