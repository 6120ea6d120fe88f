"""A search that takes its time, to be killed: `python search_victim.py DIRECTORY CHUNK DELAY_S [LIMIT]`.

Prints "committed N" after every commit.

LIMIT bytes are the most that any file may hold: writing more fails, as on a full disk.
"""

import resource
import sys
from pathlib import Path

import numpy as np
from search_fakes import FakeEngine, FakePopulation

from perturbjax.search.artifacts import write_candidates
from perturbjax.search.loop import search
from perturbjax.search.metrics import MetricsLog
from perturbjax.search.state import RunState

CANDIDATES, EXAMPLES = 40, 7


def main(directory: Path, chunk: int, delay: float) -> None:
    directory.mkdir(exist_ok=True)
    with RunState.open(directory / "state", CANDIDATES, EXAMPLES, {"seed": 0}) as state:
        print(f"restored {int(state.table.done.sum())}", flush=True)
        search(
            FakeEngine(chunk, delay),
            FakePopulation(CANDIDATES),
            EXAMPLES,
            state,
            MetricsLog(directory / "metrics.jsonl"),
            lambda report: print(f"committed {report.done}", flush=True),
        )
        write_candidates(directory / "candidates.parquet", np.full(CANDIDATES, 0.001, np.float32), state.table.scores)


if __name__ == "__main__":
    if len(sys.argv) > 4:
        # Python ignores the signal that comes with it and sees the error.
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), int(sys.argv[4])))
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
