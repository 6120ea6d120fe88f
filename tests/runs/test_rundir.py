import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.configs import config_of

from perturbjax import consolidate
from perturbjax.errors import InputError
from perturbjax.noise import Rule
from perturbjax.randopt import Config
from perturbjax.randopt.setup import Questions, make_identity
from perturbjax.randopt.table import write_candidates
from perturbjax.records import to_json
from perturbjax.runs import console as module
from perturbjax.runs.config import Run, absolute_if_there
from perturbjax.runs.console import Console
from perturbjax.runs.files import read_json, write_atomically, write_json
from perturbjax.runs.identity import default_path, differences, identity_digest
from perturbjax.runs.rundir import RunDirectory
from perturbjax.tasks.base import Example, Prompt, Template
from perturbjax.tasks.splits import Splits


class TinyTask:
    name = "tiny"
    kind: Literal["choice", "generation"] = "generation"
    templates = (Template("plain", "Answer."), Template("other", "Reply."))
    max_new_tokens = 4
    source = "made here"

    def __init__(self, answer: str = "4"):
        self.rows = [Example(str(i), f"{i}+{i}", answer) for i in range(6)]

    def examples(self):
        return self.rows

    def prompt(self, example, template):
        return Prompt((), f"{template.instruction} {example.question}")

    def extract(self, text, example, strict=True):
        return text

    def score(self, answer, example):
        return float(answer == example.answer)

    def vote_key(self, answer, example):
        return answer


def identity(task=None, fingerprint="sha256:aa", rotate=0, **changes):
    task = task or TinyTask()
    rows = task.rows[rotate:] + task.rows[:rotate]
    questions = Questions(task, task.templates[0], Splits(tuple(rows[:2]), tuple(rows[2:4]), tuple(rows[4:])))
    return make_identity(config_of(**changes), fingerprint, "float32", questions)


def test_the_same_settings_are_the_same_run_whatever_the_paths_and_chunks():
    mine, theirs = identity(), identity(chunk=3, in_flight=2, model="/elsewhere/model.gguf", resume=True)
    assert differences(mine, theirs) == []
    assert identity_digest(mine) == identity_digest(theirs)
    assert json.loads(json.dumps(mine)) == mine


@pytest.mark.parametrize(
    ("changes", "phrase"),
    [
        ({"seed": 1}, "`seed` 1, the run has 0"),
        ({"noise": "rademacher"}, "`noise` rademacher, the run has gaussian"),
        ({"rank": 2}, "`rank` 2, the run has None"),
        ({"population": 96}, "`population` 96, the run has 48"),
        ({"sigmas": (0.01,)}, "`sigmas` 0.01, the run has 0.0005,0.001,0.002"),
        ({"scale": "rms"}, "`scale` rms, the run has absolute"),
        ({"top_k": 5}, "`top_k` 5, the run has 8"),
        ({"rules": (Rule("norm", None),)}, "`rules` norm=exclude, the run has none"),
        ({"antithetic": True}, "`antithetic` True, the run has False"),
        ({"test_examples": 3}, "`test_examples` 3, the run has 256"),
        ({"racing": "off"}, f"`racing` off, the run has {Config().search.racing}"),
    ],
)
def test_a_changed_setting_is_named(changes, phrase):
    assert differences(identity(**changes), identity()) == [phrase]
    assert identity_digest(identity(**changes)) != identity_digest(identity())


def test_changed_weights_rows_and_splits_are_named_where_no_setting_explains_them():
    (phrase,) = differences(identity(model="b.gguf", fingerprint="sha256:bb"), identity())
    assert phrase == "`model` b.gguf, the run has smollm2-135m"
    (phrase,) = differences(identity(fingerprint="sha256:bb"), identity())
    assert phrase.startswith("`model` smollm2-135m (sha256:bb), the run has other content (sha256:aa)")
    (phrase,) = differences(identity(TinyTask(answer="5")), identity())
    assert phrase.startswith("`task` sst2 (sha256:")
    found = differences(identity(rotate=1), identity())
    assert found and all("content" in phrase for phrase in found)


def test_digests_that_follow_from_settings_are_named_where_nothing_else_is():
    mine, theirs = ({"chapter": "other", "seed": seed, "texts": f"sha256:{seed}"} for seed in (1, 0))
    assert differences(mine, theirs) == ["`seed` 1, the run has 0"]
    assert differences(mine | {"seed": 0}, theirs) == ["the settings are the same, what they name is not (digests of: texts)"]


def test_every_field_of_the_config_is_in_the_identity_or_known_not_to_matter():
    # A setting added later must be put on one of the two sides.
    irrelevant = {"chunk", "in_flight", "out", "resume", "require_reliability", "profile"}
    irrelevant |= {"compile_cache", "mesh", "coordinator", "num_processes", "process_id"}
    named = set(identity(searcher="screen", screened=100))
    assert {field.name for part in vars(Config()).values() for field in dataclasses.fields(part)} - irrelevant <= named
    # Named where they are not the default alone, so that the digest of a search without them is what it was.
    assert named - set(identity()) == {"searcher", "screened"}


def test_a_new_directory_is_made_with_its_config_and_found_again(tmp_path):
    directory = RunDirectory(tmp_path / "a" / "run")
    assert directory.check_usable(resume=False) is False
    assert not (tmp_path / "a").exists()
    directory.create(identity(), {"config": {"seed": 0}})
    assert directory.read_config()["config"] == {"seed": 0}
    assert directory.check_usable(resume=True) is True
    directory.check_identity(identity(), {})
    with pytest.raises(InputError, match="already holds a run; continue it with `resume`"):
        directory.check_usable(resume=False)
    with pytest.raises(InputError, match=r"`resume`: `seed` 1, the run has 0 \(in "):
        directory.check_identity(identity(seed=1), {})


def test_a_task_in_a_file_is_found_and_trusted_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "my_task.py").write_text("")
    monkeypatch.chdir(tmp_path)
    task = absolute_if_there("./my_task.py:Task(1, ':')")
    assert task == f"{tmp_path / 'my_task.py'}:Task(1, ':')" and absolute_if_there("no.py:Task") == "no.py:Task"
    run, config = RunDirectory(tmp_path / "run"), config_of(task=task)
    run.create(identity(), {"config": to_json(config)})
    assert run.read_settings(Config, ["./my_task.py:Task(1, ':')"]) == run.read_settings(Config, [task]) == config
    monkeypatch.chdir("here")
    assert run.read_settings(Config, ["../my_task.py:Task(1, ':')"]) == config
    with pytest.raises(InputError, match="the run names Python code"):
        run.read_settings(Config, ["./my_task.py:Task(1, ':')"])


def test_a_run_older_than_a_setting_is_the_run_with_its_default(tmp_path):
    older = {name: value for name, value in identity().items() if name != "antithetic"}
    directory = RunDirectory(tmp_path / "run")
    directory.create(older, {})
    assert directory.check_identity(identity(), identity()) == older
    with pytest.raises(InputError, match="`resume`: `antithetic` True, the run has False"):
        directory.check_identity(identity(antithetic=True), identity())


def test_a_run_that_is_refused_before_its_first_commit_leaves_nothing(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    for kept in ("state/7", "results.json", "mine.txt"):
        directory.create(identity(), {})
        (directory.state / "3.orbax-checkpoint-tmp").mkdir(parents=True)
        directory.metrics.touch()
        (tmp_path / "run" / kept).mkdir()
        directory.withdraw()
        assert directory.config.exists()
        (tmp_path / "run" / kept).rmdir()
        directory.withdraw()
        assert not directory.path.exists()


def test_other_directories_and_files_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(InputError, match=r"not empty and not a run \(notes.txt is there"):
            RunDirectory(tmp_path).check_usable(resume)
        with pytest.raises(InputError, match="not a directory"):
            RunDirectory(tmp_path / "notes.txt").check_usable(resume)
        with pytest.raises(InputError, match="not a directory"):
            RunDirectory(tmp_path / "notes.txt" / "run").check_usable(resume)
    with pytest.raises(InputError, match="no run directory"):
        RunDirectory(tmp_path).read_config()


def test_a_directory_killed_before_its_config_was_in_place_is_as_good_as_empty(tmp_path):
    (tmp_path / ".config.json.tmp").write_text('{"form')
    assert RunDirectory(tmp_path).check_usable(resume=False) is False
    RunDirectory(tmp_path).create(identity(), {})
    assert sorted(os.listdir(tmp_path)) == ["config.json"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "damaged, not JSON"),
        (lambda text: "[]", "a JSON object is required"),
        (lambda text: text.replace('"seed": 0', '"seed": 7'), "does not match its digest"),
        (lambda text: text.replace('"format": 3', '"format": 2'), "format 2, this version reads 3; use the version that wrote it"),
        (lambda text: text.replace('"format": 3', '"format": 4'), "format 4, this version reads 3"),
    ],
)
def test_a_damaged_config_is_refused(tmp_path, damage, message):
    directory = RunDirectory(tmp_path / "run")
    directory.create(identity(), {})
    directory.config.write_text(damage(directory.config.read_text()))
    with pytest.raises(InputError, match=message) as caught:
        directory.check_identity(identity(), {})
    assert "\n" not in str(caught.value)


def test_a_run_that_another_process_writes_is_refused_until_that_process_ends(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.create(identity(), {})
    code = (
        f"import fcntl,sys; f=open({str(directory.config)!r}); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match="another process is writing this run"), directory.locked():
            pass
        holder.kill()
    with directory.locked():
        pass


def test_default_paths_differ_with_the_settings_and_hold_no_separators():
    paths = {default_path("mmlu:law", "org/model.gguf", identity(seed=seed), Config()) for seed in range(5)}
    assert len(paths) == 5
    assert all(path.parts[0] == "runs" and len(path.parts) == 2 and path.name.startswith("mmlu_law-model.gguf-") for path in paths)


def test_from_python_a_path_may_be_a_text():
    assert Run("runs/a").out == Path("runs/a") and Run().out is None  # type: ignore[arg-type]
    merge = consolidate.Config("runs/a", by="merge", out="b")  # type: ignore[arg-type]
    assert (merge.run, merge.out) == (Path("runs/a"), Path("b"))


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})

    def fail(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, fail)
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, {"x": float("nan")})
    assert read_json(path) == {"x": 1} and os.listdir(tmp_path) == ["a.json"]


def test_candidates_parquet_says_what_was_scored_in_the_same_bytes_every_time(tmp_path):
    scores = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1]], np.float32)
    sigmas = np.array([0.001, 0.002, 0.001], np.float32)
    for name in ("a", "b"):
        write_candidates(tmp_path / name, sigmas, scores)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    table = pq.read_table(tmp_path / "a")
    assert table.column_names == ["index", "sigma", "score", "examples_scored"]
    assert table["index"].to_pylist() == [0, 1, 2] and table["examples_scored"].to_pylist() == [3, 3, 3]
    np.testing.assert_array_equal(table["sigma"].to_numpy(), sigmas)
    np.testing.assert_allclose(table["score"].to_numpy(), [2 / 3, 0, 1], rtol=1e-15)


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests move by hand."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(module.time, "monotonic", lambda: Clock.now)
    return Clock


def test_without_a_terminal_progress_is_a_line_now_and_then_and_one_at_the_end(clock, capsys):
    with Console().bar("search", 100, done=20, unit="candidate") as bar:
        for done, moment in ((30, 5.0), (40, 20.0), (41, 21.0), (60, 40.0), (100, 100.0)):
            clock.now = 100.0 + moment
            bar.update(done, best="0.9")
    assert capsys.readouterr().err.splitlines() == [
        "search: 40/100, 1.00 candidates/s, 1 min 00 s left, best 0.9",
        "search: 60/100, 1.00 candidates/s, 40 s left, best 0.9",
        "search: 100/100, in 1 min 40 s, best 0.9",
    ]


def test_on_a_terminal_progress_is_a_bar_with_rate_and_figures(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with Console().bar("search", 4, unit="candidate") as bar:
        bar.update(2, best="0.9")
        bar.update(4, best="0.9")
    err = capsys.readouterr().err
    assert "search: 100%" in err and "4/4" in err and "candidate" in err and "best=0.9" in err


def test_stages_follow_each_other(clock, capsys):
    for stage, steps in (("prompts", 2), ("samples", 1)):
        with Console().bar(stage, 2) as bar:
            for done in range(1, steps + 1):
                clock.now += 4
                bar.update(done)
    assert capsys.readouterr().err.splitlines() == ["prompts: 2/2, in 8 s"]


def test_a_block_that_fails_leaves_no_half_drawn_bar(monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with pytest.raises(KeyboardInterrupt), Console().bar("search", 4) as bar:
        bar.update(2)
        raise KeyboardInterrupt
    assert bar._bar.disable


def test_lines_go_to_stdout_and_notes_to_stderr(capsys):
    Console().line("result")
    Console().note("working")
    assert capsys.readouterr() == ("result\n", "working\n")
