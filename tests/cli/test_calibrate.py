"""``perturbjax calibrate`` and a search that calibrates itself and looks whether it can rank."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.chapter import call
from support.cli_tiny import MODEL, search_arguments, write_questions
from support.toy import one_batch_size

from perturbjax import randopt
from perturbjax.inference.calibration import Calibration
from perturbjax.randopt.results import read_results
from perturbjax.records import from_json


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    one_batch_size(monkeypatch)


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    return write_questions(tmp_path_factory.mktemp("questions") / "even.jsonl", 24)


def test_the_curve_and_the_choice_are_shown_and_written_only_where_asked(questions, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["calibrate", "--model", str(MODEL), "--task", str(questions), "--prompts", "8", "--candidates", "2"]
    code, out, err = call([*arguments, "--out", "found.json"], capsys)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == "next token after 8 prompts, 2 candidates of each sigma; no label was read"
    assert lines[2].endswith("reference: isotropic") and sum(line.lstrip().startswith("0.0") for line in lines) == 6
    assert "choice             0.0005" in lines and lines[-1] == "written to found.json"
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]
    found = from_json(Calibration, json.loads(Path("found.json").read_text())["calibration"], "found.json")
    assert found.choice == 5e-4 and found.points[1] == found.reference and f"{found.reference.kl:.2e}" in lines[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompts", "25"], "--prompts 25: the task has 24 different questions; lower it"),
        (["--prompts", "0"], "--prompts 0: an integer of at least 1 is required"),
        (["--candidates", "1"], "--candidates 1: at least 2 are required, or there is no interval"),
        (["--rank", "0"], "--rank 0: an integer of at least 1 is required"),
        (["--seed", "-1"], "--seed -1: an integer from 0 to 4294967295 is required"),
        (["--template", "none"], "--template none: task even has no such template"),
        (["--rules", ".=exclude"], "--rules: they exclude every parameter"),
        (["--rank", "999"], "--rank 999: no matrix of the model has a rank above"),
        (["--model", "nowhere"], "--model nowhere"),
        (["--out", "/nowhere/found.json"], "--out /nowhere/found.json: a file in an existing directory is required"),
    ],
)
def test_bad_input_is_one_line(arguments, message, questions, capsys):
    code, out, err = call(["calibrate", "--model", str(MODEL), "--task", str(questions), "--prompts", "2", *arguments], capsys)
    assert (code, out) == (2, ""), err
    assert err.splitlines()[-1].startswith("perturbjax: error: ") and message in err.splitlines()[-1]


def test_a_search_calibrates_itself_stops_where_it_cannot_rank_and_goes_on(questions, tmp_path, capsys):
    settings = search_arguments(questions, tmp_path / "run", sigmas="auto", rules=None)
    code, out, err = call([*settings, "--require-reliability"], capsys)
    assert (code, out) == (2, ""), err
    message = err.splitlines()[-1]
    assert message.startswith("perturbjax: error: --require-reliability: this search cannot rank its candidates: reliability 0.")
    assert message.endswith("resume without it") and "sigmas 0.0005" in err
    stopped = randopt.read_scores(tmp_path / "run")
    assert stopped.asked.all() and set(stopped.sigma) <= {np.float32(sigma) for sigma in (5e-4, 1e-3, 2e-3)}

    # A resume asks again whether it can rank, before anything else is scored.
    code, _, err = call([*settings, "--resume", "--require-reliability"], capsys)
    assert code == 2 and "calibrating" not in err and "cannot rank" in err
    code, _, err = call([*search_arguments(questions, tmp_path / "run", sigmas="0.01", rules=None), "--resume"], capsys)
    assert code == 2 and "--sigmas 0.01, the run has 0.0005" in err

    code, out, err = call([*settings, "--resume"], capsys)
    assert code == 0 and "calibrating" not in err and "perturbjax: warning: this search cannot rank" in err, err
    np.testing.assert_array_equal(randopt.read_scores(tmp_path / "run").scores, stopped.scores)
    found = read_results(tmp_path / "run" / "results.json").reliability
    assert found is not None and found.first_look == found.population and not found.population.enough
    assert f"reliability        {found.population.words}" in out
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["identity"]["sigmas"] == record["config"]["search"]["sigmas"] == record["calibration"]["sigmas"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "How they were chosen" in page and "Can these scores rank the candidates?" in page and "--sigmas auto" not in page

    code, _, err = call(
        [*search_arguments(questions, tmp_path / "given"), "--require-reliability", "--population", "1", "--top-k", "1"], capsys
    )
    assert code == 2 and "--require-reliability: at least 2 candidates and 2 search examples are required, there are 1 and 4" in err
    assert not (tmp_path / "given").exists()


def test_a_search_leaves_out_what_its_first_candidates_all_get_right(questions, tmp_path, capsys):
    size = {"population": 34, "racing": "dead", "sigmas": "0.0001", "chunk": 17}
    code, out, err = call(search_arguments(questions, tmp_path / "run", **size), capsys)
    assert code == 0, err
    found, asked = read_results(tmp_path / "run" / "results.json"), randopt.read_scores(tmp_path / "run").asked
    skipped = (~asked).any(axis=0)
    assert asked[:32].all() and 0 < skipped.sum() < 4 and not asked[32:, skipped].any() and asked[:, ~skipped].all()
    race = found.racing
    assert (race.skipped, race.screen, [r.candidates for r in race.rounds]) == (skipped.sum(), 32, [34])
    assert race.share < 1 and f"dead: {skipped.sum()} of 4 questions skipped, on which the first 32 candidates were all right" in out
    assert f"for {skipped.sum()} that the first 32 all got right" in (tmp_path / "run" / "report.html").read_text()
