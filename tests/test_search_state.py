import contextlib
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from search_fakes import FakeEngine, FakePopulation, expected_scores, slices

from perturbjax.errors import InputError
from perturbjax.search.loop import search
from perturbjax.search.metrics import MetricsLog
from perturbjax.search.racing import Race
from perturbjax.search.state import RunState

IDENTITY = {"seed": 0, "sigmas": [0.001]}
N, D = 11, 5
RACE = Race("off", N, D, 2)


class Killed(BaseException):
    """Stands for a signal: nothing may catch it."""


def run(directory: Path, chunk: int = 4, stop_after: int | None = None) -> tuple[RunState, FakeEngine]:
    engine = FakeEngine(chunk)
    chunks = 0

    def on_chunk(report):
        nonlocal chunks
        chunks += 1
        if chunks == stop_after:
            raise Killed

    with RunState.open(directory / "state", N, D, IDENTITY) as state, contextlib.suppress(Killed):
        search(engine, FakePopulation(N), RACE, slices(RACE), state, MetricsLog(directory / "metrics.jsonl"), on_chunk=on_chunk)
    return state, engine


def metric_lines(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("second_chunk", [1, 3, 4, 20])
@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_resumed_search_scores_every_candidate_once_and_ends_the_same(tmp_path, stop_after, second_chunk):
    first, before = run(tmp_path, chunk=4, stop_after=stop_after)
    assert first.table.done.sum() == 4 * stop_after
    resumed, after = run(tmp_path, chunk=second_chunk)
    assert sorted(before.seen + after.seen) == list(range(N))
    np.testing.assert_array_equal(resumed.table.scores, expected_scores(np.arange(N), range(D)))
    np.testing.assert_array_equal(resumed.table.tokens[:, 0], (np.arange(N) + 100) * D)
    assert resumed.table.done.all()
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


def damage_by_flipping(step: Path) -> None:
    files = [file for file in (step / "scores").rglob("*") if file.is_file() and file.parent.name == "d"]
    assert files
    for file in files:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 0x10
        file.write_bytes(bytes(content))


def damage_by_truncation(step: Path) -> None:
    for file in step.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def damage_by_removal(step: Path) -> None:
    shutil.rmtree(step / "scores")


def damage_the_record(step: Path) -> None:
    (record,) = [file for file in (step / "record").iterdir() if '"sha256"' in file.read_text()]
    record.write_text(record.read_text().replace('"nonfinite": [0]', '"nonfinite": [1]'))


DAMAGES = [damage_by_flipping, damage_by_truncation, damage_by_removal, damage_the_record]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_last_commit_falls_back_to_the_one_before_and_says_so(tmp_path, damage):
    run(tmp_path, stop_after=2)
    damage(tmp_path / "state" / "2")
    with RunState.open(tmp_path / "state", N, D, IDENTITY) as state:
        assert state.step == 1
        (warning,) = state.warnings
        assert "step 2" in warning and "continuing from step 1" in warning and "\n" not in warning
        np.testing.assert_array_equal(state.table.scores[:4], expected_scores(np.arange(4), range(D)))
        assert not state.table.done[4:].any()
    resumed, after = run(tmp_path)
    assert after.seen == list(range(4, N))
    np.testing.assert_array_equal(resumed.table.scores, expected_scores(np.arange(N), range(D)))
    assert [line["chunk"] for line in metric_lines(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_state_without_a_whole_commit_is_refused(tmp_path, damage):
    run(tmp_path, stop_after=2)
    damage(tmp_path / "state" / "1")
    damage(tmp_path / "state" / "2")
    with pytest.raises(InputError, match=r"the saved state is damaged .*step 2.*delete .* to start anew") as caught:
        RunState.open(tmp_path / "state", N, D, IDENTITY)
    assert "\n" not in str(caught.value)


def test_a_state_that_is_not_one_is_refused(tmp_path):
    (tmp_path / "state").write_text("hello")
    with pytest.raises(InputError, match="damaged"):
        RunState.open(tmp_path / "state", N, D, IDENTITY)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match=r"notes\.txt is not part of a state"):
        RunState.open(tmp_path / "other", N, D, IDENTITY)


@pytest.mark.parametrize(("candidates", "examples", "identity"), [(N, D, {"seed": 1}), (N, D, {})])
def test_the_state_of_another_run_is_refused(tmp_path, candidates, examples, identity):
    run(tmp_path, stop_after=1)
    with pytest.raises(InputError, match="the state of another run"):
        RunState.open(tmp_path / "state", candidates, examples, identity)


def test_a_state_of_another_shape_is_refused(tmp_path):
    run(tmp_path, stop_after=1)
    with pytest.raises(InputError, match=r"shape \[11, 5\]"):
        RunState.open(tmp_path / "state", N + 1, D, IDENTITY)


def test_an_interrupted_commit_leaves_the_one_before(tmp_path):
    run(tmp_path, stop_after=1)
    half = tmp_path / "state" / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "state" / "1", half)
    with RunState.open(tmp_path / "state", N, D, IDENTITY) as state:
        assert (state.step, state.warnings) == (1, [])


def test_a_task_whose_score_is_not_a_number_is_refused_before_anything_is_committed(tmp_path):
    class BrokenScores(FakeEngine):
        def run(self, candidates, prepared):
            outputs = super().run(candidates, prepared)
            outputs.scores[2, 3] = np.nan
            return outputs

    with RunState.open(tmp_path / "state", N, D, IDENTITY) as state:
        with pytest.raises(InputError, match="example 3 for candidate 2"):
            search(BrokenScores(), FakePopulation(N), RACE, slices(RACE), state, MetricsLog(tmp_path / "metrics.jsonl"))
        assert state.step == 0


def test_commits_are_cheap_and_do_not_pile_up(tmp_path):
    with RunState.open(tmp_path / "state", 5000, 200, IDENTITY) as state:
        times = []
        for i in range(6):
            state.table.scores[i] = 1.0
            started = time.perf_counter()
            state.commit()
            times.append(time.perf_counter() - started)
    print(f"median commit of a 5000 x 200 matrix: {np.median(times) * 1e3:.1f} ms")
    assert np.median(times) < 0.5  # about 0.01 s on an idle machine; a chunk takes seconds
    assert sorted(entry.name for entry in (tmp_path / "state").iterdir()) == ["5", "6"]
