import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.paths import SUPPORT
from support.search_victim import SCORED, main

from perturbjax.cluster.peers import PREEMPTED

VICTIM = SUPPORT / "search_victim.py"


def start(directory: Path, chunk: int, delay: float, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-W", "error", str(VICTIM), str(directory), str(chunk), str(delay), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_kill_9_at_random_moments_loses_nothing_that_was_committed_and_scores_nothing_twice(tmp_path):
    main(tmp_path / "undisturbed", 4, 0.0)
    moments = random.Random(time.time_ns())
    committed = kills = 0
    # Without a delay most of a chunk's time is its commit, so most kills fall into one.
    for chunk, delay in ((1, 0.0), (3, 0.02), (2, 0.0)):
        with start(tmp_path / "killed", chunk, delay) as victim:
            assert victim.stdout is not None
            restored = int(victim.stdout.readline().split()[1])
            assert restored >= committed, "a committed chunk is gone"
            wait = moments.uniform(0.0, 0.15)
            time.sleep(wait)
            victim.send_signal(signal.SIGKILL)
            said = victim.stdout.read().split("\n")
        kills += victim.returncode == -signal.SIGKILL
        committed = max([restored, *(int(line.split()[1]) for line in said if line.startswith("committed "))])
        print(f"killed after {wait * 1e3:.0f} ms with {committed} of {SCORED} committed")
    assert kills >= 1
    main(tmp_path / "killed", 5, 0.0)
    assert (tmp_path / "killed" / "candidates.parquet").read_bytes() == (tmp_path / "undisturbed" / "candidates.parquet").read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert [line["chunk"] for line in lines] == list(range(1, len(lines) + 1))
    assert sum(line["candidates"] for line in lines) == SCORED


@pytest.mark.parametrize("delay", [0.02, -1.0], ids=["between chunks", "in compiled code"])
def test_sigterm_finishes_the_commit_and_ends_with_its_own_code(tmp_path, delay):
    with start(tmp_path / "run", 4, delay) as victim:
        assert victim.stdout is not None and victim.stderr is not None
        assert victim.stdout.readline() == "restored 0\n" and victim.stdout.readline() == "committed 4\n"
        started = time.monotonic()
        victim.send_signal(signal.SIGTERM)
        out, err = victim.communicate(timeout=15)
        assert time.monotonic() - started < 10
    assert victim.returncode == PREEMPTED and err == "perturbjax: told to stop (SIGTERM); go on\n", err
    committed = max([4, *(int(line.split()[1]) for line in out.splitlines())])
    with start(tmp_path / "run", 3, 0.0) as again:
        assert again.stdout is not None
        assert int(again.stdout.readline().split()[1]) >= committed
        again.communicate()
    main(tmp_path / "undisturbed", 4, 0.0)
    assert (tmp_path / "run" / "candidates.parquet").read_bytes() == (tmp_path / "undisturbed" / "candidates.parquet").read_bytes()


def test_a_disk_that_fills_up_leaves_the_commits_before(tmp_path):
    with start(tmp_path / "run", 4, 0.2) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "restored 0\n" and first.stdout.readline() == "committed 4\n"
        first.send_signal(signal.SIGKILL)
    with start(tmp_path / "run", 4, 0.0, "64") as second:
        out, err = second.communicate()
    assert second.returncode == 1 and "OSError" in err.splitlines()[-1], err
    assert out == "restored 4\n"
    main(tmp_path / "run", 4, 0.0)
    main(tmp_path / "undisturbed", 4, 0.0)
    assert (tmp_path / "run" / "candidates.parquet").read_bytes() == (tmp_path / "undisturbed" / "candidates.parquet").read_bytes()
