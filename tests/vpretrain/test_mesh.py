"""A steered training does not depend on the mesh: learner, designer and value, on 8 devices of another process."""

from support.paths import SUPPORT
from support.run_meshes import run_on_8_devices


def test_a_mesh_gives_the_figures_of_one_device():
    said = run_on_8_devices(SUPPORT / "steered_mesh_programs.py")
    assert [part for part, _ in said] == ["candidates", "candidates", "placed", "designer", "steered", "images"], said
    assert all(found.startswith("ok ") for _, found in said), said
