"""Run directories from elsewhere: what they name is not run, what they say is checked."""

import copy
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from support.chapter import call
from support.cli_tiny import search_arguments, write_questions
from support.searched import save_ensemble, searched_parts, searched_run

from perturbjax.errors import InputError
from perturbjax.ivl import config as ivl
from perturbjax.randopt import config as randopt
from perturbjax.randopt.setup import reopen, reopen_ensemble
from perturbjax.records import to_json
from perturbjax.runs.identity import identity_digest
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
    (tmp_path / "foreign_under_test.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\ntask = 5\n")
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
def test_what_the_user_names_too_is_imported_from_where_it_was(words, imported, tmp_path, capsys, monkeypatch):
    for named, next_refusal in (("ivl demonstrations", "no value network there"), ("randopt task", "the search has not finished")):
        run = make_run(tmp_path / named, named.split()[0], CONFIGS[named])
        code, _, err = call(["evaluate", str(run), *words], capsys)
        assert code == 2 and next_refusal in err
    other = make_run(tmp_path / "other", "randopt", CONFIGS["randopt task"])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    code, _, err = call(["evaluate", str(other)], capsys)
    assert code == 2 and err.endswith(f"add --trust {CODE} (of {tmp_path}, unless it is found elsewhere)\n")
    assert str(tmp_path) not in sys.path
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(InputError, match="int is not a Task"):
        reopen(other, print, (CODE,))
    assert imported.exists()


def test_a_run_is_continued_with_the_code_of_the_command_line(imported, tmp_path, capsys):
    run = make_run(tmp_path / "run", "randopt", CONFIGS["randopt task"])
    code, _, err = call(search_arguments(write_questions(tmp_path / "even.jsonl", 24), run, resume=True), capsys)
    assert code == 2 and "--resume: " in err and not imported.exists()


@pytest.mark.parametrize("text", ["sst2", "mmlu:anatomy", "os:abort.jsonl", "a b:c", "datasets:squad:train", "C:/rows.jsonl", "text"])
def test_other_data_need_no_trust(text, tmp_path):
    config = randopt.Config(data=randopt.Data(task=text))
    assert RunDirectory(make_run(tmp_path / "run", "randopt", config)).read_settings(randopt.Config) == config


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> Path:
    """What reopening a finished search reads; nothing was searched."""
    folder = tmp_path_factory.mktemp("searched")
    parts = searched_parts(folder)
    save_ensemble(parts, searched_run(parts, folder / "run"))
    return folder


def refused(run: Path, capsys) -> str:
    """The one line with which a run is refused."""
    code, out, err = call(["export", str(run), "--base", "--out", str(run.parent / "model")], capsys)
    *before, message = err.splitlines()
    assert (code, out) == (2, "") and all(line.startswith(("model ", "task ", "noise ")) for line in before), err
    assert message.startswith("perturbjax: error: ") and len(message) < 700 and not (run.parent / "model").exists()
    return message


def forge(searched: Path, folder: Path, name: str, path: tuple[Any, ...], value: Any) -> Path:
    """A copy of the run with another value at a place of one of its files; its identity agrees with its digest again."""
    run = folder / "run"
    shutil.copytree(searched / "run", run)
    content = json.loads((run / name).read_text())
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = copy.deepcopy(value)
    if "identity" in content and isinstance(content["identity"], dict):
        content["identity_digest"] = identity_digest(content["identity"])
    (run / name).write_text(json.dumps(content))
    return run


def test_the_run_that_the_forgeries_change_is_read(searched, tmp_path, capsys):
    run = forge(searched, tmp_path, "ensemble.json", ("version",), 2)
    assert call(["export", str(run), "--base", "--out", str(run.parent / "model")], capsys)[0] == 0


NUMBERS = (-1, 0, 2**32, 2**62, 10**400, 10**5000, 0.5, 1e308, float("nan"), float("inf"))
OTHERS = (None, True, "", "x" * 10**6, "\x1b[2J\n", "\ud800", [], {}, [[]], {"a": {}})
FORGED = [
    *(("ensemble.json", ("population", "size"), value) for value in (*NUMBERS, *OTHERS)),
    *(("ensemble.json", ("noise", "rank"), value) for value in (10**9, *NUMBERS, *OTHERS[1:])),
    *(("ensemble.json", ("members", 0, "index"), value) for value in NUMBERS),
    *(("ensemble.json", (field,), []) for field in ("population", "noise", "members", "base_fingerprint", "format", "version")),
    ("ensemble.json", ("noise", "rules"), [{"pattern": "(((", "scale": None}]),
    *(("config.json", ("config", *path), value) for path in (("search", "rank"), ("search", "population")) for value in (10**9, 2**40)),
    *(("config.json", ("config", part), 5) for part in ("base", "data", "search", "machine", "run")),
    *(("config.json", ("prompt_clock",), value) for value in (5, True, "yesterday", [], "9" * 5000)),
    *(("config.json", (field,), value) for field in ("identity", "config", "format") for value in (None, [], "x", 5, {})),
    ("config.json", ("identity", "seed"), {"a": [10**400]}),
]


def test_forged_values_are_one_line(searched, tmp_path):
    for number, (name, path, value) in enumerate(FORGED):
        sys.set_int_max_str_digits(0)
        run = forge(searched, tmp_path / str(number), name, path, value)
        sys.set_int_max_str_digits(4300)
        with pytest.raises(InputError) as error:
            reopen_ensemble(run, lambda _: None)
        assert "\n" not in str(error.value) and len(str(error.value)) < 700


@pytest.mark.parametrize("name", ["config.json", "ensemble.json"])
def test_files_of_another_kind_are_one_line(name, searched, tmp_path, capsys):
    run = tmp_path / "run"
    deep, wide = "[" * 10_000 + "]" * 10_000, '{"a": [' + "[]," * 6_000_000 + "[]]}"
    makers = {
        "link": lambda file: file.symlink_to(file),
        "folder": lambda file: file.mkdir(),
        "fifo": os.mkfifo,
        "device": lambda file: file.symlink_to("/dev/zero"),
        **{kind: lambda file, text=text: file.write_text(text) for kind, text in (("deep", deep), ("wide", wide), ("empty", ""))},
    }
    for make in makers.values():
        shutil.copytree(searched / "run", run)
        (run / name).unlink()
        make(run / name)
        refused(run, capsys)
        shutil.rmtree(run)
