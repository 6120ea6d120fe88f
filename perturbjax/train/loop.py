"""The training loop: step after step, a look at every ``every`` steps (validation, metrics, commit), resumable at every commit."""

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from perturbjax import sharding
from perturbjax.records import from_json, to_json
from perturbjax.runs.files import MetricsLog
from perturbjax.runs.identity import Identity
from perturbjax.runs.state import RunState
from perturbjax.train.config import Training
from perturbjax.train.data import BatchOrder
from perturbjax.train.optimizer import learning_rates, make_optimizer
from perturbjax.train.placement import check_batch, put_batch, put_params, put_specs, state_shardings
from perturbjax.train.problem import Figures, Fitted, Look, Problem, RowArrays, TrainingRows
from perturbjax.train.step import Sums, TrainState, make_step


@dataclass(frozen=True)
class _Record:
    """The JSON beside the arrays of a commit."""

    step: int
    order: dict[str, int]
    best: int
    looks: tuple[Look, ...]


def fit(
    problem: Problem,
    training: Training,
    seed: int,
    directory: Path,
    identity: Identity,
    mesh: Mesh,
    metrics: MetricsLog,
    on_step: Callable[[int, int, Look | None], None] = lambda step, steps, look: None,
    on_state: Callable[[RunState], None] = lambda state: None,
) -> Fitted:
    """Trains from where the state stands; all processes of a run call it with the same arguments.

    Args:
        problem: what is trained, on what.
        training: settings, validated.
        seed: of the order of the rows.
        directory: of the committed state.
        identity: of the run; the state of another run is refused.
        mesh: (data, model); rows are sharded over "data", params over "model" as ``problem.dims`` say.
        metrics: gets one line a look.
        on_step: called with steps done, steps in all, and the look if there was one.
        on_state: called with the open state, and with its warnings.

    Raises:
        InputError: rows and mesh do not fit, or the state is damaged.
        FloatingPointError: a loss is NaN or infinite; the commits before are intact.
    """
    check_batch(training.batch_rows, training.accumulate, mesh)
    steps = training.total_steps(len(problem.rows))
    run = _Training(problem, training, steps, mesh)
    order = BatchOrder(len(problem.rows), training.batch_rows, seed)
    with RunState.open(directory, identity, run.start()) as state:
        on_state(state)
        metrics.rewind(state.step)
        record = from_json(_Record, state.record, str(directory)) if state.record else _Record(0, order.position, 0, ())
        order.go_to(record.order)
        run.resume(state.tree, record)
        on_step(run.step, steps, None)
        while run.step < steps and not run.stale:
            run.advance(next(iter(order)))
            look = run.look() if run.step % training.every == 0 or run.step == steps else None
            if look is not None:
                metrics.append({"chunk": state.step + 1, **to_json(look)})
                state.commit(run.tree(), to_json(_Record(run.step, order.position, run.best, tuple(run.looks))))
            on_step(run.step, steps, look)
    return Fitted(run.kept(), run.best if training.patience else run.step, tuple(run.looks), run.stale, run.auxiliary)


class _Training:
    """The arrays of a training and its compiled programs."""

    def __init__(self, problem: Problem, training: Training, steps: int, mesh: Mesh):
        self._problem, self._training, self._mesh = problem, training, mesh
        self._optimizer = make_optimizer(training, steps)
        self._rates = learning_rates(training, steps)
        self._start = TrainState(put_params(problem.params, mesh, problem.dims, np.float32), None)
        shapes = TrainState(self._start.params, jax.eval_shape(self._optimizer.init, self._start.params))
        self._shardings = state_shardings(shapes, self._optimizer, mesh, problem.dims)
        self._steps = [
            jax.jit(make_step(loss, self._optimizer), donate_argnums=0, out_shardings=(self._shardings, None)) for loss, _ in problem.losses
        ]
        validate, self._frozen = problem.validate or problem.losses[0]
        self._validate = jax.jit(lambda params, frozen, batch: validate(params, frozen, jax.tree.map(lambda array: array[0], batch)))
        self.auxiliary: Any = None
        if (auxiliary := problem.auxiliary) is not None:
            specs = jax.tree.map(lambda _: sharding.REPLICATED, auxiliary.state) if auxiliary.specs is None else auxiliary.specs
            # Not the problem's own arrays: these are donated.
            self.auxiliary = put_specs(auxiliary.state, mesh, specs)
            everywhere = jax.tree.map(lambda leaf: leaf.sharding, self.auxiliary)
            self._prepare = jax.jit(auxiliary.prepare)
            self._update = jax.jit(auxiliary.update, donate_argnums=0, out_shardings=(everywhere, None))
            self._after = jax.jit(auxiliary.after) if auxiliary.after is not None else None
            follow = auxiliary.follow
            self._follow = jax.jit(follow, donate_argnums=0, out_shardings=(everywhere, None)) if follow is not None else None
        self.step, self.best, self.looks = 0, 0, list[Look]()
        self._pending: list[Sums] = []
        self._updates: list[tuple[int, Figures]] = []
        self._tokens, self._seconds, self._timed = 0, 0.0, (0, 0.0)
        self._compiled: set[Any] = set()

    def start(self) -> Any:
        """The tree of a training that begins."""
        init = jax.jit(self._optimizer.init, out_shardings=self._shardings.optimizer)
        state = TrainState(self._start.params, init(self._start.params))
        return self._tree(state, state.params)

    def _tree(self, state: TrainState, kept: Any) -> Any:
        tree = {"state": state._asdict()} | ({"kept": kept} if self._training.patience else {})
        return tree | ({"auxiliary": self.auxiliary} if self.auxiliary is not None else {})

    def tree(self) -> Any:
        return self._tree(self._state, self._kept)

    def resume(self, tree: Any, record: _Record) -> None:
        self._state = TrainState(**tree["state"])
        # The state is donated, so what is kept beside it is a copy.
        self._kept = jax.tree.map(jnp.copy, tree["kept"]) if self._training.patience else None
        self.auxiliary = tree.get("auxiliary")
        self.step, self.best, self.looks = record.step, record.best, list(record.looks)
        if record.looks:
            self._tokens, self._seconds = record.looks[-1].tokens, record.looks[-1].seconds

    def kept(self) -> Any:
        return self._kept if self._training.patience else self._state.params

    @property
    def stale(self) -> bool:
        """Whether patience has run out."""
        patience = self._training.patience
        return bool(patience) and sum(look.step > self.best for look in self.looks) >= patience

    def advance(self, numbers: np.ndarray) -> None:
        """One optimizer step on the given rows."""
        started = time.perf_counter()
        which, auxiliary = self.step % len(self._steps), self._problem.auxiliary
        due = auxiliary is not None and auxiliary.due(self.step)
        batch = self._problem.rows.batch(numbers)
        beside = self._problem.beside[which] if self._problem.beside else None
        arrays = put_batch(batch, self._training.accumulate, self._mesh, beside and functools.partial(beside, numbers))
        if new := (which, due) not in self._compiled:
            self._compiled.add((which, due))
        frozen = self._problem.losses[which][1]
        if auxiliary is not None:
            arrays = self._prepare(self.auxiliary, frozen, arrays)
        if auxiliary is not None and due:
            own = put_batch(auxiliary.batch(self.step), 1, self._mesh)
            self.auxiliary, figures = self._update(self.auxiliary, self._state, frozen, arrays, own, np.int32(self.step))
            self._updates.append((self.step, figures))
        given = frozen if auxiliary is None else (frozen, self.auxiliary)
        self._state, sums = self._steps[which](self._state, given, arrays)
        if auxiliary is not None and self._follow is not None:
            self.auxiliary, sums = self._follow(self.auxiliary, self._state, sums)
        if due and self._after is not None:
            figures |= self._after(self._state, frozen, own, figures)
        self._pending.append(sums)
        # One step may be under way while the next batch is made; more would only hold memory.
        jax.block_until_ready(self._pending[-1 if new else -2 :][0])
        tokens = int((batch["segments"] >= 0).sum())
        self._tokens += tokens
        if not new:
            took = time.perf_counter() - started
            self._seconds += took
            self._timed = (self._timed[0] + tokens, self._timed[1] + took)
        self.step += 1

    def look(self) -> Look:
        """Means since the look before, and the validation; keeps the weights of the lowest validation loss.

        Raises:
            FloatingPointError: a loss was not finite.
        """
        started = time.perf_counter()
        sums, updates = jax.device_get((self._pending, self._updates))
        self._seconds += time.perf_counter() - started
        self._timed = (self._timed[0], self._timed[1] + time.perf_counter() - started)
        for number, each in enumerate(sums):
            if not math.isfinite(each["loss"]) or not math.isfinite(each["gradient_norm"]):
                at = self.step - len(sums) + number + 1
                raise FloatingPointError(f"the loss or its gradient is not finite at step {at}; try a lower learning rate")
        norm = float(np.mean([each.pop("gradient_norm") for each in sums]))
        rows, validation = self._problem.validation, {}
        if rows is not None:
            validation = self._measure(rows, self._problem.validation_beside)
        validation |= {name: self._measure(rows, None)["loss"] for name, rows in self._problem.measured.items()}
        if not all(map(math.isfinite, validation.values())):
            raise FloatingPointError(f"the validation loss is not finite after step {self.step}; try a lower learning rate")
        asked = self._problem.accuracy
        accuracy = dict(asked(self._state.params)) if asked is not None else {}
        rate = self._timed[0] / self._timed[1] if self._timed[1] > 0 and self._timed[0] else None
        applied = float(np.asarray(self._rates(self.step - 1)))
        found = tuple({"step": float(step), **_finite(figures)} for step, figures in updates)
        look = Look(self.step, _means(sums), norm, applied, validation, self._tokens, round(self._seconds, 3), rate, found, accuracy)
        self._pending, self._updates, self._timed = [], [], (0, 0.0)
        lowest = min((other.validation["loss"] for other in self.looks if "loss" in other.validation), default=math.inf)
        self.looks.append(look)
        if self._training.patience and "loss" in validation and validation["loss"] < lowest:
            self.best, self._kept = self.step, jax.tree.map(jnp.copy, self._state.params)
        return look

    def _measure(self, rows: TrainingRows, beside: RowArrays | None) -> dict[str, float]:
        batch, sums = self._training.batch_rows, []
        for start in range(0, len(rows), batch):
            numbers = np.arange(start, start + batch)
            there, numbers = numbers < len(rows), np.minimum(numbers, len(rows) - 1)
            arrays = rows.batch(numbers)
            arrays["weights"] = arrays["weights"] * there[:, None].astype(np.float32)
            read = beside and functools.partial(beside, numbers)
            sums.append(self._validate(self._state.params, self._frozen, put_batch(arrays, 1, self._mesh, read)))
        return _means(jax.device_get(sums))


def _finite(figures: Figures) -> dict[str, float]:
    return {name: float(value) for name, value in figures.items() if math.isfinite(value)}


def _means(sums: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Weighted means of what was summed, by name."""
    weight = max(sum(float(each["weight"]) for each in sums), 1e-30)
    return {name: sum(float(each[name]) for each in sums) / weight for name in sums[0] if name != "weight"}
