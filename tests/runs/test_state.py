import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.paths import SUPPORT
from support.search_fakes import FakeEngine, FakePopulation, expected_scores, prepare
from support.search_victim import SCORED, main

from perturbjax.cluster.peers import PREEMPTED
from perturbjax.errors import InputError
from perturbjax.randopt.loop import search
from perturbjax.randopt.racing import Race
from perturbjax.randopt.table import ScoreTable, open_state
from perturbjax.runs.files import MetricsLog
from perturbjax.runs.identity import Identity
from perturbjax.runs.state import RunState

IDENTITY = {"seed": 0, "sigmas": [0.001]}
N, D = 11, 5
RACE = Race("off", N, D, 2)


class Killed(BaseException):
    """Stands for a signal: nothing may catch it."""


class KilledEngine(FakeEngine):
    """Is killed in the chunk after ``chunks``."""

    def __init__(self, chunk: int, chunks: int | None):
        super().__init__(chunk)
        self.chunks = chunks

    def run(self, candidates, prepared):
        if self.chunks is not None and len(self.seen) >= self.chunks * self.chunk:
            raise Killed
        return super().run(candidates, prepared)


def opened(directory: Path, race: Race = RACE, identity: Identity = IDENTITY) -> RunState:
    return open_state(directory / "state", race, identity)


def run(directory: Path, chunk: int = 4, stop_after: int | None = None) -> tuple[ScoreTable, FakeEngine]:
    engine = KilledEngine(chunk, stop_after)
    with opened(directory) as state, contextlib.suppress(Killed):
        search(engine, FakePopulation(N), RACE, prepare, state, MetricsLog(directory / "metrics.jsonl"))
    with opened(directory) as state:
        return ScoreTable.of(state, RACE), engine


def metric_lines(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("second_chunk", [1, 3, 4, 20])
@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_resumed_search_scores_every_candidate_once_and_ends_the_same(tmp_path, stop_after, second_chunk):
    first, before = run(tmp_path, chunk=4, stop_after=stop_after)
    assert first.done.sum() == 4 * stop_after
    resumed, after = run(tmp_path, chunk=second_chunk)
    assert sorted(before.seen + after.seen) == list(range(N))
    np.testing.assert_array_equal(resumed.scores, expected_scores(np.arange(N), range(D)))
    np.testing.assert_array_equal(resumed.tokens[:, 0], (np.arange(N) + 100) * D)
    assert resumed.done.all()
    lines = metric_lines(tmp_path)
    assert sum(line["candidates"] for line in lines) == N
    assert [line["chunk"] for line in lines] == list(range(1, len(lines) + 1))
    assert lines[-1]["best"] == expected_scores(np.arange(N), range(D)).mean(1).max()


def test_a_finished_search_scores_nothing_again(tmp_path):
    run(tmp_path)
    _, engine = run(tmp_path)
    assert engine.seen == []


def test_a_metrics_line_without_its_commit_is_dropped(tmp_path):
    run(tmp_path, stop_after=1)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"chunk": 2, "candidates": 4}\n{"chunk": 3, "cand')  # killed before the commit, and in mid-line
    run(tmp_path)
    assert [line["chunk"] for line in metric_lines(tmp_path)] == [1, 2, 3]


def flip_the_array(state: Path) -> None:
    files = [file for file in (state / "2" / "tree").rglob("*") if file.is_file() and file.parent.name == "d"]
    assert files
    for file in files:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 0x10
        file.write_bytes(bytes(content))


def truncate(state: Path) -> None:
    for file in (state / "2").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def remove_the_array(state: Path) -> None:
    shutil.rmtree(state / "2" / "tree")


def remove_the_record(state: Path) -> None:
    record_of(state, 2).unlink()


def empty_a_step(state: Path) -> None:
    shutil.rmtree(state / "2")
    (state / "2").mkdir()


def record_of(state: Path, step: int) -> Path:
    (record,) = [file for file in (state / str(step) / "record").iterdir() if '"sha256"' in file.read_text()]
    return record


def edit(before: str, after: str):
    def damage(state: Path) -> None:
        text = record_of(state, 2).read_text()
        assert before in text
        record_of(state, 2).write_text(text.replace(before, after))

    return damage


def rename_a_step(state: Path) -> None:
    (state / "2").rename(state / "7")


def put_a_file_for_a_step(state: Path) -> None:
    shutil.rmtree(state / "2")
    (state / "2").write_text("hello")


def put_a_file_for_all(state: Path) -> None:
    shutil.rmtree(state)
    state.write_text("hello")


def add_a_file(state: Path) -> None:
    (state / "notes.txt").write_text("hello")


def bring_the_state_of_another_run(state: Path) -> None:
    shutil.rmtree(state)
    with opened(state.parent, identity={"seed": 1}) as other:
        ScoreTable.empty(RACE).commit(other)


def damage_all(state: Path) -> None:
    truncate(state)
    shutil.rmtree(state / "1")
    shutil.copytree(state / "2", state / "1")


DAMAGES = {
    "array flipped": (flip_the_array, None),
    "files truncated": (truncate, None),
    "array missing": (remove_the_array, None),
    "record missing": (remove_the_record, None),
    "record flipped": (edit('"nonfinite": [0]', '"nonfinite": [1]'), None),
    "record not JSON": (edit('{"', "{"), None),
    "step empty": (empty_a_step, None),
    "step renamed": (rename_a_step, None),
    "other format": (edit('"format": 3', '"format": 4'), "step 2 is of format 4, this version reads 3"),
    "other run": (bring_the_state_of_another_run, "the state of another run"),
    "file for a step": (put_a_file_for_a_step, "2 is not part of a state"),
    "file for the state": (put_a_file_for_all, "it is not a directory"),
    "foreign file": (add_a_file, r"notes\.txt is not part of a state"),
    "all damaged": (damage_all, r"the saved state is damaged .*step 2.*step 1.*delete .* to start anew"),
}
"""What is done to a state of two commits; and the line with which it is refused, or None where the first commit is continued from."""


# Orbax closes its event loop at the first array that cannot be read, while tensorstore still reads another.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_state_is_repaired_from_the_last_good_commit_or_refused(tmp_path, name):
    run(tmp_path, stop_after=2)
    damage, refusal = DAMAGES[name]
    damage(tmp_path / "state")
    if refusal is not None:
        with pytest.raises(InputError, match=refusal) as caught:
            opened(tmp_path)
        assert "\n" not in str(caught.value)
        return
    with opened(tmp_path) as state:
        assert state.step == 1
        (warning,) = state.warnings
        assert "step 7" in warning if name == "step renamed" else "step 2" in warning
        assert "continuing from step 1" in warning and "\n" not in warning
        np.testing.assert_array_equal(ScoreTable.of(state, RACE).scores[:4], expected_scores(np.arange(4), range(D)))
        assert not ScoreTable.of(state, RACE).done[4:].any()
    resumed, after = run(tmp_path)
    assert after.seen == list(range(4, N))
    np.testing.assert_array_equal(resumed.scores, expected_scores(np.arange(N), range(D)))
    assert [line["chunk"] for line in metric_lines(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("identity", [{"seed": 1}, {}])
def test_the_state_of_another_run_is_refused(tmp_path, identity):
    run(tmp_path, stop_after=1)
    with pytest.raises(InputError, match="the state of another run"):
        opened(tmp_path, identity=identity)


@pytest.mark.parametrize(("race", "shape"), [(Race("off", N + 1, D, 2), "12, 5"), (Race("off", N, D - 1, 2), "11, 4")])
def test_a_state_of_another_shape_is_refused(tmp_path, race, shape):
    run(tmp_path, stop_after=1)
    with pytest.raises(InputError, match=rf"scores has shape float32\[11, 5\], float32\[{shape}\] is required"):
        opened(tmp_path, race)


def test_an_interrupted_commit_leaves_the_one_before(tmp_path):
    run(tmp_path, stop_after=1)
    half = tmp_path / "state" / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "state" / "1", half)
    with opened(tmp_path) as state:
        assert (state.step, state.warnings) == (1, [])


def test_a_task_whose_score_is_not_a_number_is_refused_before_anything_is_committed(tmp_path):
    class BrokenScores(FakeEngine):
        def run(self, candidates, prepared):
            outputs = super().run(candidates, prepared)
            outputs.scores[2, 3] = np.nan
            return outputs

    with opened(tmp_path) as state:
        with pytest.raises(InputError, match="example 3 for candidate 2"):
            search(BrokenScores(), FakePopulation(N), RACE, prepare, state, MetricsLog(tmp_path / "metrics.jsonl"))
        assert state.step == 0


def test_commits_are_cheap_and_do_not_pile_up(tmp_path):
    race = Race("off", 5000, 200, 2)
    table, times = ScoreTable.empty(race), []
    with opened(tmp_path, race) as state:
        for i in range(6):
            table.scores[i] = 1.0
            started = time.perf_counter()
            table.commit(state)
            times.append(time.perf_counter() - started)
    print(f"median commit of a 5000 x 200 matrix: {np.median(times) * 1e3:.1f} ms")
    assert np.median(times) < 0.5  # about 0.01 s on an idle machine; a chunk takes seconds
    assert sorted(entry.name for entry in (tmp_path / "state").iterdir()) == ["5", "6"]


class Moments(NamedTuple):
    mean: jax.Array
    count: np.ndarray


def test_any_pytree_is_restored_as_it_was_committed(tmp_path):
    """Of nested containers, numpy and jax arrays of several types, and of no dimension; changes after the commit are not in it."""
    count = np.arange(3, dtype=np.int64) << 40
    tree = {"moments": Moments(jnp.arange(6.0).reshape(2, 3), count.copy()), "layers": [(jnp.bfloat16(1.5),)]}
    record = {"position": 17, "losses": [0.1, 1e-300]}
    with RunState.open(tmp_path / "state", IDENTITY, tree) as state:
        assert (state.step, state.record, state.tree) == (0, {}, tree)
        state.commit(tree, record)
        tree["moments"].count[:] = 0
    with RunState.open(tmp_path / "state", IDENTITY, tree) as state:
        assert (state.step, state.record, state.warnings) == (1, record, [])
        assert jax.tree.structure(state.tree) == jax.tree.structure(tree)
        moments, ((scale,),) = state.tree["moments"], state.tree["layers"]
        np.testing.assert_array_equal(moments.count, count, strict=True)
        np.testing.assert_array_equal(moments.mean, tree["moments"].mean, strict=True)
        assert scale.dtype == jnp.bfloat16 and float(scale) == 1.5


VICTIM = SUPPORT / "search_victim.py"


def start(directory: Path, chunk: int, delay: float, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-W", "error", str(VICTIM), str(directory), str(chunk), str(delay), *more]
    # Killed while it writes an entry, it would leave a damaged one to the rest of the suite.
    env = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


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
