"""What is done with a population after its search: scores in a file, and members chosen again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.chapter import call
from support.searched import save_ensemble, searched_parts, searched_run

from perturbjax import randopt
from perturbjax.errors import InputError
from perturbjax.randopt import reselection
from perturbjax.randopt.ensemble import Ensemble
from perturbjax.randopt.setup import reopen_ensemble
from perturbjax.randopt.table import open_state

SCORES = np.array([[1, 0, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0], [1, 1, 0, 0]], np.float32)
STOPPED = SCORES.copy()
STOPPED[3:] = np.nan


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Runs: whole, stopped after three candidates, and one that has committed nothing."""
    folder = tmp_path_factory.mktemp("runs")
    parts = searched_parts(folder)
    for name, scores in (("whole", SCORES), ("stopped", STOPPED), ("begun", None)):
        searched_run(parts, folder / name, scores)
    save_ensemble(parts, searched_run(parts, folder / "ended", SCORES))
    return folder


def refused(arguments: list[Any], capsys) -> str:
    code, out, err = call([str(word) for word in arguments], capsys)
    assert (code, out) == (2, ""), err
    (message,) = err.splitlines()
    return message.removeprefix("perturbjax: error: ")


def content(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in [folder, *folder.rglob("*")]}


@pytest.mark.parametrize(("name", "expected"), [("whole", SCORES), ("stopped", STOPPED)])
def test_scores_are_those_committed(name, expected, runs, tmp_path, capsys):
    before, parts = content(runs / name), searched_parts(runs)
    found = randopt.read_scores(runs / name)
    np.testing.assert_array_equal(found.scores, expected)
    assert found.example.tolist() == [example.id for example in parts.splits.search] and set(found.split) == {"search"}
    np.testing.assert_array_equal(found.sigma, parts.population.sigma_of(np.arange(6)))
    assert found.index.tolist() == [*range(6)] and found.seed == 0
    for suffix in ("npz", "parquet"):
        code, out, err = call(["scores", str(runs / name), "--out", str(tmp_path / f"s.{suffix}")], capsys)
        whole = int((~np.isnan(expected)).all(axis=1).sum())
        assert code == 0 and err == "" and out.startswith("6 candidates x 4 examples") and f"; {whole} candidates answered" in out
    with np.load(tmp_path / "s.npz", allow_pickle=False) as arrays:
        assert {*arrays} == {*vars(found)}
        for field, array in vars(found).items():
            np.testing.assert_array_equal(arrays[field], array)
    rows = pq.read_table(tmp_path / "s.parquet").to_pylist()
    places = [(i, d) for i in range(6) for d in range(4) if not np.isnan(expected[i, d])]
    assert [(row["index"], row["example"], row["score"]) for row in rows] == [(i, found.example[d], expected[i, d]) for i, d in places]
    assert {(row["seed"], row["split"]) for row in rows} == {(0, "search")} and rows[0]["sigma"] == np.float32(0.01)
    assert content(runs / name) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scores", "whole", "--out", "s.csv"], "--out s.csv: a name that ends with .npz or .parquet is required"),
        (["scores", "whole", "--out", "s"], "--out s: a name that ends with .npz or .parquet is required"),
        (["scores", "whole", "--out", "whole/s.npz"], "--out whole/s.npz: lies in the run directory"),
        (["scores", "whole", "--out", "no/s.npz"], "--out no/s.npz: a file in an existing directory is required"),
        (["scores", "begun", "--out", "s.npz"], "begun: no scores were committed; search with: "),
        (["scores", "nowhere", "--out", "s.npz"], "nowhere: no run directory"),
        (["select", "begun"], "begun: no scores were committed; search with: "),
        (["select", "whole", "--top-k", "7"], "--top-k 7: 6 of 6 candidates answered all 4 search questions; lower it, or continue"),
        (["select", "stopped", "--top-k", "4"], "--top-k 4: 3 of 6 candidates answered all 4 search questions; lower it, or continue"),
        (["select", "whole", "--top-k", "0"], "--top-k 0: an integer of at least 1 is required"),
        (["select", "whole", "--vote", "most"], "--vote most: one or several of majority, weighted are required"),
        (["select", "whole", "--members", "best,best"], "--members best,best: one or several of best, greedy are required, each once"),
        (["select", "whole", "--out", "whole"], "--out whole: exists and is not an empty directory"),
        (["select", "whole", "--out", "whole/new"], "--out whole/new: lies in the run directory"),
        (["select", "whole", "--out", "even.jsonl/new"], "--out even.jsonl/new: "),
        (
            ["report", "whole"],
            "whole: no results.json, the run has not finished; continue it with: perturbjax randopt",
        ),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(arguments, message, runs, capsys, monkeypatch):
    monkeypatch.chdir(runs)
    before = content(runs)
    assert refused(arguments, capsys).startswith(message)
    assert content(runs) == before


def test_a_run_of_another_chapter_has_no_population(runs, tmp_path, capsys):
    record = json.loads((runs / "whole" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(record | {"chapter": "ivl"}))
    for command in (["scores", tmp_path, "--out", "s.npz"], ["select", tmp_path]):
        assert "a run of ivl, which has no population" in refused(command, capsys)
    for chapter, message in (("os", "chapter 'os': one of randopt, "), ([], "chapter []: the name of a chapter is required")):
        (tmp_path / "config.json").write_text(json.dumps(record | {"chapter": chapter}))
        assert message in refused(["report", tmp_path], capsys)


def test_a_task_that_changed_since_is_refused(runs, tmp_path, capsys):
    record = json.loads((runs / "whole" / "config.json").read_text())
    rows = (runs / "even.jsonl").read_text()
    (tmp_path / "even.jsonl").write_text(rows.replace('"no"}', '"yes"}').replace("number", "integer"))
    record["config"]["data"]["task"] = str(tmp_path / "even.jsonl")
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert "the run has other content" in refused(["scores", tmp_path, "--out", runs / "s.npz"], capsys)


@pytest.mark.parametrize(
    "record", [{}, {"nonfinite": "x", "seconds": 1.0}, {"nonfinite": [], "seconds": 1.0}, {"nonfinite": [0], "seconds": "1"}]
)
def test_a_forged_state_is_one_line(record, runs, tmp_path, capsys):
    parts = searched_parts(runs)
    directory = searched_run(parts, tmp_path / "run")
    with open_state(directory.state, parts.config.race, parts.identity) as state:
        state.commit({"scores": SCORES, "tokens": np.zeros((6, 1), np.int64)}, record)
    assert "state: step 1: " in refused(["scores", directory.path, "--out", tmp_path / "s.npz"], capsys)


def test_members_are_chosen_again_and_used_like_a_run(runs, tmp_path, capsys, monkeypatch):
    before, chosen, reselect, found = content(runs / "ended"), tmp_path / "chosen", reselection.reselect, []
    monkeypatch.setattr(reselection, "reselect", lambda *arguments: found.append(reselect(*arguments)) or found[0])
    options = ["--top-k", "3", "--vote", "majority,weighted", "--members", "best,greedy"]
    code, out, _ = call(["select", str(runs / "ended"), *options, "--out", str(chosen)], capsys)
    assert code == 0 and out.count("(chosen)") == 1
    monkeypatch.setattr(reselection, "reselect", lambda *_: found[0])
    monkeypatch.chdir(tmp_path)
    code, shown, _ = call(["select", str(runs / "ended"), *options], capsys)
    assert code == 0 and shown.splitlines() == [*out.splitlines()[:-1], "nothing was written; give --out to keep this ensemble"]
    assert [path.name for path in tmp_path.iterdir()] == ["chosen"]
    assert content(runs / "ended") == before and {path.name for path in chosen.iterdir()} == {
        "config.json",
        "ensemble.json",
        "selection.json",
    }
    record, ensemble = json.loads((chosen / "selection.json").read_text()), Ensemble.load(chosen / "ensemble.json")
    assert (record["candidates"], record["finalists"], record["examples"], record["K"]) == (6, 6, 3, len(ensemble))
    assert ensemble.voting.rule == record["way"]["vote"] and record["way"] in record["tried"] and len(record["tried"]) == 8
    assert ensemble.scores is not None
    np.testing.assert_array_equal(ensemble.scores, SCORES.mean(axis=1)[ensemble.members])
    _, reopened = reopen_ensemble(chosen, lambda _: None)  # as predict, evaluate and export begin
    assert reopened.members.tolist() == ensemble.members.tolist() and reopened.voting.rule == ensemble.voting.rule
    for command in (["select", chosen], ["scores", chosen, "--out", tmp_path / "s.npz"]):
        assert "made by perturbjax select, without scores" in refused(command, capsys)
    assert "made by perturbjax select, without a test" in refused(["report", chosen], capsys)
    assert "cannot be continued" in refused(["randopt", "--out", chosen, "--resume"], capsys)


def test_a_vote_that_nobody_knows_is_refused(runs, tmp_path):
    document = json.loads((runs / "ended" / "ensemble.json").read_text())
    assert document["vote"] == "majority"
    (tmp_path / "ensemble.json").write_text(json.dumps(document | {"vote": "os:abort"}))
    with pytest.raises(InputError, match="vote 'os:abort': one of majority, weighted is required"):
        Ensemble.load(tmp_path / "ensemble.json")
    (tmp_path / "ensemble.json").write_text(json.dumps({name: value for name, value in document.items() if name != "vote"}))
    assert Ensemble.load(tmp_path / "ensemble.json").voting.rule == "majority"
