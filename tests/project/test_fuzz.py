"""Files of anything, given to the commands: exit code 2, one short line, no traceback, and nothing left behind; within 5 s of CPU time and
1 GiB of memory more than the process had.

The examples are the same in every run (``conftest``). Cases that were found once stand as tests beside the code that they are about.
"""

import contextlib
import io
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from support.cli_tiny import MODEL

from perturbjax.cli import main
from perturbjax.records import to_json
from perturbjax.runs.rundir import RunDirectory

NUMBERS = st.sampled_from([-1, 0, 1, 0.5, 1e308, float("nan"), float("inf"), 2**32, 2**63, 10**400])
TEXTS = st.text(max_size=12) | st.sampled_from(["x" * 100_000, "\x1b[2J", "\ud800", "os:abort", "/dev/zero", "../..", "\0"])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4)
)
ROWS = st.fixed_dictionaries({"question": VALUES, "answer": VALUES}, optional={"choices": VALUES, "id": VALUES, "x": VALUES})
LINES = st.lists((ROWS | VALUES).map(lambda row: json.dumps(row).encode()) | st.binary(max_size=30), max_size=5).map(b"\n".join)


def refused(arguments: list[str]) -> None:
    out, err = io.StringIO(), io.StringIO()
    started, taken = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    assert time.process_time() - started < 5 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - taken < 2**20  # KiB
    *_, message = err.getvalue().splitlines()
    assert (code, out.getvalue()) == (2, ""), err.getvalue()
    assert message.startswith("perturbjax: error: ") and len(message) < 1100 and message.isprintable() and "Traceback" not in err.getvalue()


@given(content=LINES)
@settings(max_examples=40)
def test_any_file_of_questions(content):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "q.jsonl").write_bytes(content)
        refused(["randopt", "--compile-cache", "off", "--task", str(folder / "q.jsonl"), "--out", str(folder / "run")])
        refused(["predict", str(folder), "--questions", str(folder / "q.jsonl"), "--out", str(folder / "a.jsonl")])
        assert [path.name for path in folder.iterdir()] == ["q.jsonl"]


@given(data=st.data())
@settings(max_examples=40)
def test_any_setting_of_a_run(data):
    from perturbjax import caulking, ivl, randopt, vpretrain

    chapter, module = data.draw(st.sampled_from([("randopt", randopt), ("ivl", ivl), ("vpretrain", vpretrain), ("caulking", caulking)]))
    content: dict[str, Any] = {"chapter": chapter, "config": to_json(module.Config()), "prompt_clock": None, "model": {"name": "m"}}
    part = data.draw(st.sampled_from([*content["config"], None]))
    if part is None:
        content[data.draw(st.sampled_from(sorted(content)))] = data.draw(VALUES)
    else:
        content["config"][part][data.draw(st.sampled_from(sorted(content["config"][part])))] = data.draw(VALUES)
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        RunDirectory(run).create({}, {})
        (run / "config.json").write_text(json.dumps(json.loads((run / "config.json").read_text()) | content))
        refused(["evaluate", str(run), "--compile-cache", "off"])
        refused(["select", str(run), "--compile-cache", "off"])
        refused(["scores", str(run), "--out", str(Path(name) / "scores.npz")])
        refused(["compare", str(run), str(run)])
        refused(["study", "density", str(run)])
        refused(["report", str(run)])
        assert [path.name for path in run.iterdir()] == ["config.json"]


@given(data=st.data())
@settings(max_examples=40)
def test_any_configuration_of_a_model(data):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw = json.loads((MODEL / "config.json").read_text()) | {"architectures": ["LlamaForCausalLM"]}
        for key in data.draw(st.lists(st.sampled_from(sorted(raw)), min_size=1, max_size=3)):
            raw[key] = data.draw(VALUES)
        (folder / "config.json").write_text(json.dumps(raw))
        refused(["randopt", "--compile-cache", "off", "--task", "arithmetic", "--model", name, "--out", str(folder / "run")])
        assert [path.name for path in folder.iterdir()] == ["config.json"]
