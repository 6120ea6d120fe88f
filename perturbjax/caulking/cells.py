"""The cells of a grid: what is trained, what was measured of it, and the table that a run commits and writes to cells.parquet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from perturbjax.runs.files import read_columns, write_atomically

if TYPE_CHECKING:
    import pyarrow as pa


CELLS = "cells.parquet"


@dataclass(frozen=True)
class Cell:
    """One training.

    Attributes:
        method: name of how the model is adapted.
        quality: of the pretraining, as the grid names it (source samples, steps, sigma); None: from scratch, without pretraining.
        samples: n, rows of the target that are trained on.
        seed: of the rows' order, the caulk's start and the batches.
    """

    method: str
    quality: float | None
    samples: int
    seed: int

    @property
    def name(self) -> str:
        """For files and flags: ``lora-q4096-n64-s0``, ``scratch-n64-s0``."""
        quality = "" if self.quality is None else f"-q{_exactly(self.quality)}"
        return f"{self.method}{quality}-n{self.samples}-s{self.seed}"


def _exactly(number: float) -> str:
    """The shortest of ``%g`` and all digits that tells it from every other number."""
    return short if float(short := f"{number:g}") == number else repr(float(number))


@dataclass(frozen=True)
class Measured(Cell):
    """A cell that was trained.

    Attributes:
        error: on the test rows, as the grid's own function says; NaN where what was trained is not finite.
        loss: mean of the last tenth of the steps.
        norm: size of the caulk, the Frobenius norm of what it adds to the matrices.
        distance: Euclidean, of what was trained from its start.
    """

    error: float
    loss: float
    norm: float
    distance: float


FIGURES = tuple(item.name for item in fields(Measured) if item.name not in {cell.name for cell in fields(Cell)})


def grid_cells(qualities: Iterable[float], samples: Sequence[int], seeds: Sequence[int], methods: Mapping[str, bool]) -> tuple[Cell, ...]:
    """All cells, those of one method and quality together.

    Args:
        qualities: of the bases.
        samples: n.
        seeds: of the cells.
        methods: name -> whether it starts from scratch, so that there is one quality, None.
    """
    known = tuple(qualities)
    return tuple(
        Cell(method, quality, n, seed)
        for method, scratch in methods.items()
        for quality in ((None,) if scratch else known)
        for n in samples
        for seed in seeds
    )


@dataclass
class CellTable:
    """Cells with their figures, NaN where a cell is not trained.

    Attributes:
        cells: C of them.
        figures: (C, F) float32, by ``FIGURES``.
        done: (C,) bool.
        seconds: of trainings, compilation left out where a program was compiled before.
    """

    cells: tuple[Cell, ...]
    figures: np.ndarray = field(init=False)
    done: np.ndarray = field(init=False)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.figures = np.full((len(self.cells), len(FIGURES)), np.nan, np.float32)
        self.done = np.zeros(len(self.cells), bool)

    @property
    def tree(self) -> dict[str, np.ndarray]:
        """What is committed."""
        return {"figures": self.figures, "done": self.done}

    def load(self, tree: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        """As committed."""
        self.figures, self.done = np.array(tree["figures"]), np.array(tree["done"])
        self.seconds = record.get("seconds", 0.0)

    def record(self, numbers: np.ndarray, figures: Mapping[str, np.ndarray]) -> None:
        """Figures of cells that were trained, by their numbers."""
        self.figures[numbers] = np.stack([np.asarray(figures[name], np.float32) for name in FIGURES], axis=1)
        self.done[numbers] = True

    def measured(self) -> tuple[Measured, ...]:
        """The cells that are trained, in order."""
        return tuple(
            Measured(cell.method, cell.quality, cell.samples, cell.seed, *map(float, row))
            for cell, row, done in zip(self.cells, self.figures, self.done, strict=True)
            if done
        )


def write_cells(path: Path, cells: Sequence[Measured]) -> None:
    """Write one row a cell, atomically; equal cells give equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {each.name: pa.array([getattr(cell, each.name) for cell in cells], each.type) for each in _schema()}
    write_atomically(path, lambda file: pq.write_table(pa.table(columns), file, compression="zstd"))


def read_cells(path: Path | str) -> tuple[Measured, ...]:
    """The cells of a run's cells.parquet, for ``sample_complexity``.

    Raises:
        InputError: the file is missing or damaged.
    """
    table = read_columns(Path(path), _schema(), "resume the run to write it again")
    return tuple(Measured(**row) for row in table.to_pylist())


def _schema() -> pa.Schema:
    import pyarrow as pa

    kinds = {"method": pa.string(), "quality": pa.float64(), "samples": pa.int64(), "seed": pa.int64()}
    return pa.schema([pa.field(item.name, kinds.get(item.name, pa.float32()), item.name == "quality") for item in fields(Measured)])
