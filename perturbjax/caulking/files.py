"""``caulks/`` of a run: what each cell trained, one safetensors file a cell."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from perturbjax.caulking.cells import Cell, Measured
from perturbjax.errors import InputError
from perturbjax.runs.files import read_arrays, write_atomically
from perturbjax.tree import leaf_paths

CAULKS = "caulks"
"""Their folder in a run."""


def caulk_path(folder: Path, cell: Cell) -> Path:
    """The file of a cell's caulk."""
    return folder / f"{cell.name}.safetensors"


def write_caulk(folder: Path, cell: Cell, trained: Any) -> None:
    """Writes what a cell trained, atomically."""
    from safetensors.numpy import save

    folder.mkdir(exist_ok=True)
    arrays = {path: np.ascontiguousarray(leaf, np.float32) for path, leaf in leaf_paths(trained).items()}
    write_atomically(caulk_path(folder, cell), lambda file: file.write(save(arrays)))


def read_caulk(folder: Path, cell: Cell, like: Any) -> Any:
    """What a cell trained, nested dicts of float32 numpy arrays, of the shapes of ``like``.

    Raises:
        InputError: the file is missing or damaged, or the training diverged.
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in leaf_paths(like).items()}
    return read_arrays(caulk_path(folder, cell), shapes, "resume the run, which makes it again")


def is_lost(folder: Path, cell: Measured, like: Any) -> bool:
    """Whether the file of a cell's caulk is missing or cannot be read; where the training diverged none can."""
    try:
        read_caulk(folder, cell, like)
    except InputError:
        return math.isfinite(cell.error) or not caulk_path(folder, cell).exists()
    return False
