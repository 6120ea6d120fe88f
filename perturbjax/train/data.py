"""Batches of row numbers in a deterministic order, whose position is part of every commit."""

from collections.abc import Iterator
from typing import Any

import numpy as np


class BatchOrder:
    """Row numbers of one batch after another, every epoch in an order of its own (grain).

    Args:
        rows: how many there are.
        batch: row numbers of a batch; batches run on over the ends of epochs, so each has as many.
        seed: of the orders.
    """

    def __init__(self, rows: int, batch: int, seed: int):
        import grain

        self._batches = grain.MapDataset.range(rows).seed(seed).shuffle().repeat().batch(batch)
        self._iterator: Any = iter(self._batches.to_iter_dataset(grain.ReadOptions(num_threads=0)))

    def at(self, number: int) -> np.ndarray:
        """Row numbers of one batch, from 0, wherever the iteration stands."""
        return np.asarray(self._batches[number])

    def __iter__(self) -> Iterator[np.ndarray]:
        return self._iterator

    @property
    def position(self) -> dict[str, Any]:
        """Where the next batch begins, as JSON."""
        return self._iterator.get_state()

    def go_to(self, position: dict[str, Any]) -> None:
        """Continue where ``position`` was taken."""
        self._iterator.set_state(position)
