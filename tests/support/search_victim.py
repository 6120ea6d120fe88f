"""A search, with a race of three rounds, that takes its time, to be killed: `python search_victim.py DIRECTORY CHUNK DELAY_S [LIMIT]`.

Prints "committed N" after every commit, counting a candidate once a round. With a negative delay it hangs in compiled code after the first.

LIMIT bytes are the most that any file may hold: writing more fails, as on a full disk.
"""

import hashlib
import resource
import sys
from pathlib import Path

import numpy as np

from perturbjax.cluster.preemption import cluster_run
from perturbjax.randopt.loop import search
from perturbjax.randopt.racing import Race
from perturbjax.randopt.table import ScoreTable, open_state, write_candidates
from perturbjax.runs.console import Console
from perturbjax.runs.files import MetricsLog
from support.search_fakes import FakeEngine, FakePopulation, Told, prepare

RACE = Race("halving", candidates=40, examples=8, top_k=3, rounds=3, smallest=2)
SCORED = 40 + 16 + 6
"""Candidates of the three rounds."""


def main(directory: Path, chunk: int, delay: float) -> None:
    directory.mkdir(exist_ok=True)
    with open_state(directory / "state", RACE, {"seed": 0}) as state:
        committed = np.count_nonzero(ScoreTable.of(state, RACE).tokens)

        def on_chunk(candidates: int) -> None:
            nonlocal committed
            committed += candidates
            print("committed", committed, flush=True)
            if delay < 0:
                hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

        print("restored", committed, flush=True)
        with cluster_run(Console().note) as peers:
            peers.advice, peers.freeze = "go on", state.freeze
            engine, metrics = FakeEngine(chunk, max(delay, 0)), MetricsLog(directory / "metrics.jsonl")
            table = search(engine, FakePopulation(RACE.candidates), RACE, prepare, state, metrics, Told(on_chunk))
        write_candidates(directory / "candidates.parquet", np.full(RACE.candidates, 0.001, np.float32), table.scores)


if __name__ == "__main__":
    if len(sys.argv) > 4:
        # Python ignores the signal that comes with it and sees the error.
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), int(sys.argv[4])))
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
