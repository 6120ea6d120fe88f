"""Two runs compared by question, against a loop over the questions."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.chapter import call
from support.searched import searched_parts, searched_run

from perturbjax.randopt.questions import compare_runs, write_question_scores
from perturbjax.tasks.base import Example


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return searched_run(searched_parts(folder), folder / "run").path


@pytest.fixture
def pair(run, tmp_path) -> tuple[Path, Path]:
    """Two copies of a run."""
    paths = tmp_path / "first", tmp_path / "second"
    for path in paths:
        shutil.copytree(run, path)
    return paths


def refused(arguments: list[object], capsys) -> str:
    code, out, err = call([str(word) for word in arguments], capsys)
    assert (code, out) == (2, ""), err
    (message,) = err.splitlines()
    return message


def measured(rng: np.random.Generator, count: int = 40) -> tuple[list[Example], dict[str, np.ndarray]]:
    """Questions in any order, and scores of two systems, half right being possible."""
    rows = [Example(f"row-{i}", f"what is {i}?", str(i), fields={"passage": int(i)}) for i in rng.permutation(count)]
    base, vote = rng.choice([0, 0.5, 1], size=(2, count)).astype(np.float32)
    return rows, {"base": base, "randopt": vote, "random_k": base}


def test_runs_are_paired_by_question_whatever_the_order_and_the_ids(pair, capsys):
    rng, votes = np.random.default_rng(0), []
    for number, path in enumerate(pair):
        rows, scores = measured(rng)
        write_question_scores(path / "test.parquet", [replace(row, id=f"{number}-{row.id}") for row in rows], scores)
        votes.append({row.question: score for row, score in zip(rows, scores["randopt"], strict=True)})
    found = compare_runs(*pair)
    differences = np.array([votes[1][question] - votes[0][question] for question in votes[0]])
    compared = found.comparison
    assert (found.n, compared.gained, compared.lost) == (40, (differences > 0).sum(), (differences < 0).sum())
    assert compared.difference == pytest.approx(differences.mean())
    assert found.accuracies == (pytest.approx(np.mean([*votes[0].values()])), pytest.approx(np.mean([*votes[1].values()])))
    resampled = rng.choice(differences, size=(20_000, 40)).mean(axis=1)
    np.testing.assert_allclose(compared.difference_interval, np.quantile(resampled, [0.025, 0.975]), atol=0.02)
    code, out, err = call(["compare", *map(str, pair)], capsys)
    assert code == 0 and err == "" and "on 40 test questions" in out and f"{compared.gained} where the second scores higher" in out
    same = compare_runs(pair[0], pair[0]).comparison
    assert (same.difference, same.difference_interval, same.gained, same.lost, same.p_value) == (0, (0, 0), 0, 0, 1)


def test_runs_on_other_questions_are_refused(pair, capsys):
    rows, scores = measured(np.random.default_rng(0))
    for path in pair:
        write_question_scores(path / "evaluation-more.parquet", rows, scores)
    command = ["compare", *pair, "--evaluation", "more"]
    assert call([str(word) for word in command], capsys)[0] == 0
    for field, value in {"answer": "no", "question": "what else?", "fields": {"passage": "other"}, "choices": ("a", "b")}.items():
        write_question_scores(pair[1] / "evaluation-more.parquet", [*rows[:-1], replace(rows[-1], **{field: value})], scores)
        alone = f"the questions differ: 1 of 40 are in {pair[0]} alone, 1 of 40 in {pair[1]} alone; evaluate both"
        assert alone in refused(command, capsys)
    write_question_scores(pair[1] / "evaluation-more.parquet", rows[1:], {name: values[1:] for name, values in scores.items()})
    assert f"1 of 40 are in {pair[0]} alone, 0 of 39 in {pair[1]} alone" in refused(command, capsys)


def test_what_was_not_measured_or_is_damaged_is_one_line(pair, capsys):
    (path, _), (rows, scores) = pair, measured(np.random.default_rng(0))
    command = ["compare", path, path]
    assert "no results.json, the run has not finished" in refused(command, capsys)
    (path / "results.json").write_text("{}")
    assert "no test.parquet, the run is older than this file; delete its results.json" in refused(command, capsys)
    assert "--evaluation '../x': letters, digits" in refused([*command, "--evaluation", "../x"], capsys)
    assert "perturbjax evaluate" in refused([*command, "--evaluation", "more"], capsys)
    (path / "selection.json").write_text("{}")
    assert "made by perturbjax select, without a test" in refused(command, capsys)
    for damage in ({"randopt": scores["randopt"] * 3}, {"base": scores["base"] * np.nan}, {"base": ["x"] * 40}, {"id": [None] * 40}):
        columns = {"id": [row.id for row in rows], "question": ["q"] * 40, **scores} | damage
        pq.write_table(pa.table({name: pa.array(column) for name, column in columns.items()}), path / "test.parquet")
        assert "test.parquet: " in refused(command, capsys)
    for data in (b"", b"PAR1" * 100):
        (path / "test.parquet").write_bytes(data)
        assert "test.parquet: cannot be read" in refused(command, capsys)
