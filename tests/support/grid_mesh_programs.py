"""Run by ``caulking/test_mesh`` with 8 forced devices: a grid on one device, on eight, and resumed on four; the benchmark's row of it.

Prints one line a case: the part, ``ok`` or ``WRONG``, and the case.
"""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturbjax.bench import caulks
from perturbjax.bench.values import made_up_weights, shape
from perturbjax.caulking import Fitting, Method, run_grid
from perturbjax.caulking.cells import FIGURES
from perturbjax.caulking.features import HeadFeatures
from perturbjax.caulking.language import TEST_ROWS
from perturbjax.caulking.program import Shared
from perturbjax.caulking.questions import Layout, Questions
from perturbjax.inference.packing import PROMPT
from perturbjax.models.adapters import LoRA
from perturbjax.runs.state import RunState
from perturbjax.sharding import make_mesh, put_replicated

TOLERANCE = 2e-6
"""Relative. On one device and on several the sums of a vmapped product are rounded otherwise in a cell or two."""
BENCH = caulks.Sizes(4, 8, 8, 2, 2, 1, shape(64, 16, 1, 16, 1, 1, True), 2, 1, 8, 1)


def loss(params, batch):
    x, y = batch
    return jnp.square(jnp.tanh(x @ params["first"]["kernel"]) @ params["last"] - y).mean()


def grid(devices: int, out: Path | None = None):
    rng = np.random.default_rng(0)
    params = {"first": {"kernel": rng.normal(size=(5, 6)).astype(np.float32)}, "last": rng.normal(size=(6, 2)).astype(np.float32)}
    x, y = rng.normal(size=(30, 5)).astype(np.float32), rng.normal(size=(30, 2)).astype(np.float32)
    methods, mesh = {"lora": Method(LoRA(2, rules=("kernel",)))}, make_mesh(jax.devices()[:devices])
    rows, test = (x[:20], y[:20]), (x[20:], y[20:])
    return run_grid(loss, loss, {1.0: params}, methods, rows, test, (4, 9, 20), 7, Fitting(6, 4), mesh=mesh, in_flight=2, out=out)


def features(devices: int) -> dict[str, np.ndarray]:
    """Hidden states of 21 questions of random tokens, of which a seed draws from 12."""
    rng, config, lengths = np.random.default_rng(1), shape(64, 16, 1, 16, 1, 1, True), np.arange(5, 26, dtype=np.int32) % 9 + 2
    rows = {"tokens": rng.integers(0, 64, (21, 10)).astype(np.int32), "positions": np.tile(np.arange(10, dtype=np.int32), (21, 1))}
    rows |= {"branch": np.full((21, 10), PROMPT, np.int32), "lengths": lengths, "query": lengths[:, None] - 1}
    rows |= {"labels": np.tile(np.array([3, 9], np.int32), (21, 1, 1)), "answer": np.zeros(21, np.int32)}
    layout, mesh = Layout.of(Questions(rows, True, (5, 6)), TEST_ROWS), make_mesh(jax.devices()[:devices])
    data, test = ({name: array[part] for name, array in rows.items()} for part in (slice(16), slice(16, None)))
    shared = put_replicated(Shared(made_up_weights(config, 0), data, test, rng.permutation(16).astype(np.int32)[None]), mesh)
    made = HeadFeatures(config, layout, np.array([3, 9]), 12, mesh)(shared)
    return {"data": np.asarray(made.data["hidden"]), "test": np.asarray(made.test["hidden"])}


def stop_after(commits: int, patch: pytest.MonkeyPatch) -> None:
    commit = RunState.commit

    def stop(self, tree, record):
        if self.step == commits:
            raise KeyboardInterrupt
        commit(self, tree, record)

    patch.setattr(RunState, "commit", stop)


def compared(part: str, found, expected, case: str) -> None:
    """Cell by cell: the same cells in the same order, and their figures but for rounding."""
    figures = [np.array([[getattr(cell, name) for name in FIGURES] for cell in cells]) for cells in (found, expected)]
    same = [cell.name for cell in found] == [cell.name for cell in expected]
    off = float(np.abs(figures[0] / figures[1] - 1).max())
    print(f"{part} {'ok' if same and off < TOLERANCE else 'WRONG'} {case}: {off:.1e} apart")


def main() -> None:
    one = grid(1)
    for devices in (2, 8):
        compared("mesh", grid(devices), one, f"{devices} devices")
    alone, many = features(1), features(2)
    off = max(float(np.abs(many[name] - alone[name]).max()) for name in alone)
    print(f"features {'ok' if off < TOLERANCE and alone['data'].shape == (12, 1, 16) else 'WRONG'} on 2 devices: {off:.1e} apart")
    with tempfile.TemporaryDirectory() as folder:
        with pytest.MonkeyPatch.context() as patch:
            stop_after(2, patch)
            with pytest.raises(KeyboardInterrupt):
                grid(2, Path(folder))
        compared("resume", grid(4, Path(folder)), one, "begun on 2 devices, ended on 4")
    row = list(caulks.grid_rows(BENCH, 1))[-1]
    right = row.label == "grid on 8 devices" and row.rounds == [row.seconds["one"][0] / row.seconds["all"][0]]
    print(f"bench {'ok' if right else 'WRONG'} {row.line}")


if __name__ == "__main__":
    main()
