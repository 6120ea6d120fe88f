"""Run by ``tests/cluster/test_processes.py`` on two processes of two devices each: what they tell each other, and a state that both write.

    python cluster_programs.py FOLDER --coordinator ... (as scripts/launch_local.py adds)

Each process prints ``ok`` when all that it saw is right; the state is left in FOLDER.
"""

import argparse
import random
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from perturbjax import cluster
from perturbjax.cluster.distributed import join
from perturbjax.errors import InputError
from perturbjax.runs.state import RunState
from perturbjax.sharding import make_mesh

IDENTITY = {"seed": 0}
SPECS = {"weights": PartitionSpec("data", "model"), "moments": PartitionSpec("model"), "scale": PartitionSpec()}


def broadcasts(main: bool) -> None:
    for size in (0, 10, 4080, 4089, 5000, 100_000):
        text = "".join(random.Random(size).choices("abc\u2192", k=size))
        assert cluster.broadcast_json({"text": text, "rows": (1, None)} if main else "ignored") == {"text": text, "rows": [1, None]}
    wide = np.arange(6, dtype=np.int64).reshape(2, 3) << 40
    np.testing.assert_array_equal(cluster.broadcast(wide if main else np.zeros_like(wide)), wide, strict=True)
    np.testing.assert_array_equal(cluster.gather(np.int32(jax.process_index())), [0, 1])
    calls = []
    assert cluster.on_main(lambda: calls.append(1) or {"found": 3}) == {"found": 3} and len(calls) == main
    for error in (InputError("`out` here: taken"), OSError(28, "No space left on device")):

        def fail(error: Exception = error) -> None:
            raise error

        with pytest.raises(type(error)) as caught:
            cluster.on_main(fail)
        assert str(caught.value) == str(error)


def tree_on(model: int) -> dict[str, Any]:
    mesh, rng = make_mesh(model=model), np.random.default_rng(0)
    whole = {"weights": rng.standard_normal((4, 8)), "moments": rng.standard_normal((4, 3)), "scale": rng.standard_normal(())}
    put = {
        name: jax.make_array_from_callback(leaf.shape, NamedSharding(mesh, SPECS[name]), lambda index, leaf=leaf: leaf[index])
        for name, leaf in ((name, leaf.astype(np.float32)) for name, leaf in whole.items())
    }
    return put | {"host": np.arange(5, dtype=np.int64)}


def equal(found: dict, expected: dict) -> bool:
    def blocks(leaf):
        return [np.asarray(shard.data) for shard in leaf.addressable_shards] if isinstance(leaf, jax.Array) else [leaf]

    return all(np.array_equal(a, b) for name in expected for a, b in zip(blocks(found[name]), blocks(expected[name]), strict=True))


def state(folder: Path, main: bool) -> None:
    """Committed on one mesh, restored on three; damage to what one process reads makes both go back to the commit before."""
    tree = tree_on(2)
    with RunState.open(folder / "state", IDENTITY, tree) as run:
        run.commit(tree, {"position": 1})
        run.commit(jax.tree.map(lambda leaf: leaf + leaf, tree), {"position": 2})
    for model in (1, 2, 4):
        expected = jax.tree.map(lambda leaf: leaf + leaf, tree_on(model))
        with RunState.open(folder / "state", IDENTITY, tree_on(model)) as run:
            assert (run.step, run.record, run.warnings) == (2, {"position": 2}, [])
            assert equal(run.tree, expected), model
    if main:
        (largest,) = sorted((folder / "state" / "2" / "tree").rglob("d/*"), key=lambda path: path.stat().st_size)[-1:]
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 1
        largest.write_bytes(bytes(content))
    cluster.gather(np.int32(0))
    with RunState.open(folder / "state", IDENTITY, tree) as run:
        assert run.step == 1 and "step 2" in run.warnings[0] and equal(run.tree, tree)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--coordinator")
    parser.add_argument("--num-processes", type=int)
    parser.add_argument("--process-id", type=int)
    options = parser.parse_args()
    join(options.coordinator, options.num_processes, options.process_id)
    broadcasts(cluster.is_main())
    state(options.folder, cluster.is_main())
    print("ok", flush=True)
