"""``caulks/`` of a run: what each cell trained, one safetensors file a cell."""

from pathlib import Path
from typing import Any

import numpy as np

from perturbjax.caulking.cells import Cell
from perturbjax.errors import InputError
from perturbjax.records import open_regular
from perturbjax.runs.files import write_atomically
from perturbjax.tree import leaf_paths, nest


def caulk_path(folder: Path, cell: Cell) -> Path:
    """The file of a cell's caulk."""
    return folder / f"{cell.name}.safetensors"


def write_caulk(folder: Path, cell: Cell, trained: Any) -> None:
    """Writes what a cell trained, atomically."""
    from safetensors.numpy import save

    folder.mkdir(exist_ok=True)
    arrays = {path: np.ascontiguousarray(leaf, np.float32) for path, leaf in leaf_paths(trained).items()}
    write_atomically(caulk_path(folder, cell), lambda file: file.write(save(arrays)))


def read_caulk(folder: Path, cell: Cell) -> Any:
    """What a cell trained, nested dicts of float32 numpy arrays.

    Raises:
        InputError: the file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    path = caulk_path(folder, cell)
    try:
        with open_regular(path) as file:
            return nest(load(file.read()))
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); restore the file, or train anew in another `out`") from error
