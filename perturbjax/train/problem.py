"""What a training works on, and what it gives: the contract between a chapter and the loop."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from perturbjax.sharding import ShardedDim
from perturbjax.train.step import Loss


class TrainingRows(Protocol):
    """What the loop needs of the rows; ``rows.Rows`` is the plain one. ``tokens``: of all rows, padding not counted."""

    def __len__(self) -> int: ...

    @property
    def tokens(self) -> int: ...

    def batch(self, numbers: np.ndarray) -> dict[str, np.ndarray]: ...


RowArrays = Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]
"""(numbers of rows (B,), bool (B,) whether this process holds each) -> further arrays of these rows, leading B, e.g. read from files. What
it gives for rows that are not held is not looked at."""


@dataclass(frozen=True)
class Problem:
    """What is trained, on what.

    Attributes:
        params: where training begins; kept in float32. Frozen leaves do not belong here.
        losses: (loss, frozen pytree on the mesh); step t takes number t modulo their count.
        rows: to train on.
        validation: rows that are only measured; None: no validation.
        validate: the loss that is measured on them; the first of ``losses`` when left out.
        dims: path -> sharded dim of the params.
        beside: what each of ``losses`` reads of a row beside the arrays of ``rows``; empty where none reads more.
        validation_beside: the same of ``validate``, of the rows of ``validation``.
    """

    params: Any
    losses: Sequence[tuple[Loss, Any]]
    rows: TrainingRows
    validation: TrainingRows | None = None
    validate: tuple[Loss, Any] | None = None
    dims: Mapping[str, ShardedDim] = field(default_factory=dict)
    beside: Sequence[RowArrays] = ()
    validation_beside: RowArrays | None = None


@dataclass(frozen=True)
class Look:
    """One look at a training, after ``step`` steps.

    Attributes:
        losses: name -> mean since the look before; ``loss`` is what is minimized.
        gradient_norm: mean global norm since the look before, unclipped.
        learning_rate: of the last step.
        validation: name -> mean on the validation rows; empty without.
        tokens: put through the trained model so far.
        seconds: of steps so far, compilation and looks left out.
        tokens_per_s: since the look before; None in a process's first look, which compiles.
    """

    step: int
    losses: dict[str, float]
    gradient_norm: float
    learning_rate: float
    validation: dict[str, float]
    tokens: int
    seconds: float
    tokens_per_s: float | None


@dataclass(frozen=True)
class Fitted:
    """A finished training.

    Attributes:
        params: float32 on the mesh: of the lowest validation loss with ``patience``, else the last.
        step: after how many steps they are taken.
        looks: all of them, in order.
        stopped_early: patience ran out.
    """

    params: Any
    step: int
    looks: tuple[Look, ...]
    stopped_early: bool
