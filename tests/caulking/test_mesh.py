"""A grid does not depend on the mesh: the same figures but for rounding on 1, 2 and 8 devices, and when it
is resumed on others."""

from support.paths import SUPPORT
from support.run_meshes import run_on_8_devices


def test_every_mesh_gives_the_cells_of_one_device():
    said = run_on_8_devices(SUPPORT / "grid_mesh_programs.py")
    assert [part for part, _ in said] == ["mesh", "mesh", "features", "resume", "bench"], said
    assert all(words.startswith("ok ") for _, words in said), said
