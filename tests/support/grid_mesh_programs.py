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
from perturbjax.bench.values import shape
from perturbjax.caulking import Fitting, Method, run_grid
from perturbjax.caulking.cells import FIGURES
from perturbjax.models.adapters import LoRA
from perturbjax.runs.state import RunState
from perturbjax.sharding import make_mesh

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
