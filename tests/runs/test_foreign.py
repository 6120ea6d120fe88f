"""Run directories from elsewhere: what they name is not run, what they say is checked."""

import sys
from pathlib import Path
from typing import Any

import pytest
from support.chapter import call
from support.cli_tiny import search_arguments, write_questions

from perturbjax.errors import InputError
from perturbjax.ivl import config as ivl
from perturbjax.randopt import config as randopt
from perturbjax.randopt.setup import reopen
from perturbjax.records import to_json
from perturbjax.runs.rundir import RunDirectory
from perturbjax.vpretrain import config as vpretrain

CODE = "foreign_under_test:task"
CONFIGS = {
    "randopt task": randopt.Config(data=randopt.Data(task=CODE)),
    "ivl task": ivl.Config(data=ivl.Data(task=CODE)),
    "ivl demonstrations": ivl.Config(data=ivl.Data(demonstrations=CODE)),
    "vpretrain corpus": vpretrain.Config(data=vpretrain.Data(corpus=CODE, feedback=("sst2",))),
    "vpretrain feedback": vpretrain.Config(data=vpretrain.Data(corpus="gsm8k", feedback=("sst2", CODE))),
}


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """The file that the code of the run writes when it is imported; its module lies in the working directory."""
    (tmp_path / "foreign_under_test.py").write_text("open('imported', 'w').close()\ntask = 5\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "imported"
    sys.modules.pop("foreign_under_test", None)


def make_run(path: Path, chapter: str, config: Any, **changes: Any) -> Path:
    """A directory that says it is a finished run of these settings."""
    name = {} if chapter == "randopt" else {"chapter": chapter}
    record = {**name, "config": to_json(config), "prompt_clock": None, "model": {"name": "m"}, **changes}
    RunDirectory(path).create({}, record)
    return path


@pytest.mark.parametrize("named", CONFIGS)
def test_no_command_imports_what_a_run_names(named, imported, tmp_path, capsys):
    chapter = named.split()[0]
    run = make_run(tmp_path / "run", chapter, CONFIGS[named])
    questions = write_questions(tmp_path / "even.jsonl", 24)
    kind = ["--rank", "1"] if chapter == "randopt" else []
    commands = [["evaluate", run], ["predict", run, "--questions", questions, "--out", "a.jsonl"], ["export", run, "--out", "m", *kind]]
    for command in [*commands, ["evaluate", run, "--task", questions]]:
        code, out, err = call([str(word) for word in command], capsys)
        assert (code, out) == (2, "")
        assert err == f"perturbjax: error: {run}: the run names Python code, which would be run; if you trust it, add --trust {CODE}\n"
    assert not imported.exists() and not (tmp_path / "a.jsonl").exists() and not (tmp_path / "m").exists()


@pytest.mark.parametrize("words", [["--trust", CODE], ["--trust", f"sst2,{CODE}"], ["--task", CODE]])
def test_what_the_user_names_too_is_imported(words, imported, tmp_path, capsys):
    for named, next_refusal in (("ivl demonstrations", "no value network there"), ("randopt task", "the search has not finished")):
        run = make_run(tmp_path / named, named.split()[0], CONFIGS[named])
        code, _, err = call(["evaluate", str(run), *words], capsys)
        assert code == 2 and next_refusal in err
    with pytest.raises(InputError, match="int is not a Task"):
        reopen(make_run(tmp_path / "other", "randopt", CONFIGS["randopt task"]), print, (CODE,))
    assert imported.exists()


def test_a_run_is_continued_with_the_code_of_the_command_line(imported, tmp_path, capsys):
    run = make_run(tmp_path / "run", "randopt", CONFIGS["randopt task"])
    code, _, err = call(search_arguments(write_questions(tmp_path / "even.jsonl", 24), run, resume=True), capsys)
    assert code == 2 and "--resume: " in err and not imported.exists()


@pytest.mark.parametrize("text", ["sst2", "mmlu:anatomy", "os:abort.jsonl", "a b:c", "datasets:squad:train", "C:/rows.jsonl", "text"])
def test_other_data_need_no_trust(text, tmp_path):
    config = randopt.Config(data=randopt.Data(task=text))
    assert RunDirectory(make_run(tmp_path / "run", "randopt", config)).read_settings(randopt.Config) == config
