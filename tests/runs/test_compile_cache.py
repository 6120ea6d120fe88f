"""The compilation cache of the commands, each in a process of its own, because jax sets it up once."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.cli_tiny import MODEL, search_arguments, write_questions

from perturbjax.cli import main
from perturbjax.randopt import Config
from perturbjax.records import from_json
from perturbjax.runs.compile_cache import default_directory
from perturbjax.runs.rundir import RunDirectory

COMPILE = """
import json, sys
import jax, jax.numpy as jnp
from jax import monitoring
from perturbjax.runs.compile_cache import use_compile_cache
from perturbjax.runs.console import Console

events = []
monitoring.register_event_listener(lambda name, **_: events.append(name))
use_compile_cache(sys.argv[1], Console())
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # so that a small program is kept
print(json.dumps([float(jax.jit(lambda x: jnp.sin(x @ x).sum())(jnp.eye(8))), events.count("/jax/compilation_cache/cache_hits")]))
"""


def compile_with(choice: str, home: Path, **environment: str) -> tuple[float, int, str]:
    """Value, cache hits and stderr of a process that compiles one program."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "JAX_"))}
    env = inherited | {"JAX_PLATFORMS": "cpu", "HOME": str(home)} | environment
    done = subprocess.run([sys.executable, "-c", COMPILE, choice], env=env, capture_output=True, text=True, check=True)
    value, hits = json.loads(done.stdout)
    return value, hits, done.stderr


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_second_process_loads_what_the_first_compiled_and_says_nothing(tmp_path):
    value, hits, said = compile_with("auto", tmp_path)
    assert hits == 0 and said == ""
    kept = files(tmp_path / ".cache" / "perturbjax")
    assert kept and all(name.endswith("-cache") for name in kept)
    again, hits, said = compile_with("auto", tmp_path)
    assert again == value and hits >= 1 and said == ""
    assert files(tmp_path / ".cache" / "perturbjax") == kept
    # A damaged entry, as a process that was killed leaves it: compiled anew, quietly.
    for path in (tmp_path / ".cache").rglob("*-cache"):
        path.write_bytes(path.read_bytes()[:100])
    assert compile_with("auto", tmp_path) == (value, 0, "")


def test_where_the_cache_goes_and_how_to_do_without(tmp_path):
    compile_with("off", tmp_path)
    compile_with("auto", tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")
    assert files(tmp_path) == []
    compile_with("auto", tmp_path, XDG_CACHE_HOME=str(tmp_path / "xdg"))
    assert files(tmp_path / "xdg" / "perturbjax") and not (tmp_path / ".cache").exists()
    compile_with("auto", tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "jax"))
    assert files(tmp_path / "jax") and not (tmp_path / ".cache").exists()
    compile_with(str(tmp_path / "mine"), tmp_path)
    [keyed] = (tmp_path / "mine").iterdir()
    assert re.fullmatch(r"[\w.]+-[0-9a-f]{12}", keyed.name) and files(keyed)


def test_a_directory_that_cannot_be_written_is_one_line_and_no_failure(tmp_path):
    (tmp_path / "file").write_text("")
    value, hits, said = compile_with(str(tmp_path / "file"), tmp_path)
    assert value and hits == 0
    assert said == f"compile cache {tmp_path / 'file'}: cannot be written (Not a directory); going on without it\n"


def test_the_default_is_not_in_the_working_directory(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_directory() == Path.home() / ".cache" / "perturbjax"


def test_the_suite_itself_keeps_nothing_in_the_home_of_the_user():
    import jax

    kept = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    assert kept and not Path(kept).is_relative_to(default_directory())


@pytest.mark.parametrize("below", ["", "below"])
def test_a_profile_that_cannot_be_written_is_refused_before_the_run_is_made(tmp_path, capsys, below):
    (tmp_path / "file").write_text("")
    questions = write_questions(tmp_path / "even.jsonl")
    code = main(search_arguments(questions, tmp_path / "run", profile=tmp_path / "file" / below))
    assert code == 2 and "is a file; give a directory" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_profiled_search_is_the_same_run_and_leaves_a_trace_with_named_scopes(tmp_path, capsys):
    questions = write_questions(tmp_path / "even.jsonl")
    arguments = search_arguments(questions, tmp_path / "run", profile=tmp_path / "trace")
    assert main(arguments) == 0
    assert f"xprof --logdir {tmp_path / 'trace'}" in capsys.readouterr().err
    [trace] = (tmp_path / "trace").rglob("*.xplane.pb")
    for scope in ("embed", "attention", "mlp", "head", "noise"):
        assert re.search(rb"/%s/" % scope.encode(), trace.read_bytes()), scope
    saved = RunDirectory(tmp_path / "run").read_config()
    assert saved["config"]["run"]["profile"] is None and saved["config"]["machine"]["compile_cache"] == "auto"
    assert not {"profile", "compile_cache"} & saved["identity"].keys()
    assert from_json(Config, saved["config"], "config.json").base.model == str(MODEL)
    # Not scored twice as far as the run is concerned.
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["done"] for line in metrics] == [2, 4, 6]
