"""What a training works on, and what it gives: the contract between a chapter and the loop."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import numpy as np

from perturbjax.sharding import ShardedDim
from perturbjax.train.step import Loss, Sums, TrainState


class TrainingRows(Protocol):
    """What the loop needs of the rows; ``rows.Rows`` is the plain one. ``tokens``: of all rows, padding not counted."""

    def __len__(self) -> int: ...

    @property
    def tokens(self) -> int: ...

    def batch(self, numbers: np.ndarray) -> dict[str, np.ndarray]: ...


Figures = dict[str, jax.Array]
"""Name -> () float32."""


@dataclass(frozen=True)
class Auxiliary:
    """What is updated before some of the steps or after each, and what the loss reads besides: a designer of tasks, say.

    The loss then gets (frozen, state) in place of ``frozen``. The state is committed with the training.

    Attributes:
        state: the pytree that it begins with.
        due: step, from 0 -> whether there is an update before it; never when left out.
        batch: step -> arrays with leading B that the update reads besides the batch of the step; the same for every call with one step.
        prepare: (state, frozen, batch of the step (A, B, ...)) -> what update and loss read in its place, of leading (A, B): what both
            of them would compute of it. The batch itself when left out. Traced.
        update: (state, training state, frozen, batch of the step (A, B, ...), own batch (1, B, ...), step) -> new state, figures. Traced.
        after: (training state after the step, frozen, own batch, figures of the update) -> more figures; None: nothing is measured. Traced.
        follow: (state, training state after the step, sums of the step) -> new state, sums that are reported: an average of the parameters,
            say. After every step; the sums that only it reads may be of any shape. None: nothing follows. Traced.
        specs: the tree of partition specs of the state; None: all of it is replicated over the mesh.
    """

    state: Any
    due: Callable[[int], bool] = lambda step: False
    batch: Callable[[int], Any] = lambda step: {}
    prepare: Callable[[Any, Any, Any], Any] = lambda state, frozen, batch: batch
    update: Callable[[Any, TrainState, Any, Any, Any, jax.Array], tuple[Any, Figures]] = lambda state, *_: (state, {})
    after: Callable[[TrainState, Any, Any, Figures], Figures] | None = None
    follow: Callable[[Any, TrainState, Sums], tuple[Any, Sums]] | None = None
    specs: Any = None


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
        auxiliary: what is updated before some of the steps; the loss that is validated does not read it.
        measured: name -> further rows whose loss is measured at each look; ``validation`` of the look has it by this name.
        beside: what each of ``losses`` reads of a row beside the arrays of ``rows``; empty where none reads more.
        validation_beside: the same of ``validate``, of the rows of ``validation``.
        accuracy: (params on the mesh) -> name -> a share from 0 to 1 that is measured at each look besides; every process calls it. None:
            nothing is.
    """

    params: Any
    losses: Sequence[tuple[Loss, Any]]
    rows: TrainingRows
    validation: TrainingRows | None = None
    validate: tuple[Loss, Any] | None = None
    dims: Mapping[str, ShardedDim] = field(default_factory=dict)
    auxiliary: Auxiliary | None = None
    measured: Mapping[str, TrainingRows] = field(default_factory=dict)
    beside: Sequence[RowArrays] = ()
    validation_beside: RowArrays | None = None
    accuracy: Callable[[Any], Mapping[str, float]] | None = None


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
        updates: figures of each update of an ``Auxiliary`` since the look before, with its ``step``; one that is not finite is left out.
        accuracy: name -> what ``Problem.accuracy`` found; empty without.
    """

    step: int
    losses: dict[str, float]
    gradient_norm: float
    learning_rate: float
    validation: dict[str, float]
    tokens: int
    seconds: float
    tokens_per_s: float | None
    updates: tuple[dict[str, float], ...] = ()
    accuracy: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Fitted:
    """A finished training.

    Attributes:
        params: float32 on the mesh: of the lowest validation loss with ``patience``, else the last.
        step: after how many steps they are taken.
        looks: all of them, in order.
        stopped_early: patience ran out.
        auxiliary: the state of the ``Auxiliary``; None without.
    """

    params: Any
    step: int
    looks: tuple[Look, ...]
    stopped_early: bool
    auxiliary: Any = None
