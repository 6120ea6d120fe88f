"""Rivals of a value network: the base fine-tuned on its demonstrations, and proxy-tuning; trained once, kept in the run."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from support.chapter import call
from support.cli_tiny import write_questions
from support.paths import FIXTURES

from perturbjax import ivl
from perturbjax.errors import InputError
from perturbjax.ivl.reopen import reopen
from perturbjax.ivl.results import VALUE_ALONE, WITH_VALUE
from perturbjax.pretrained import load_model
from perturbjax.pretrained.export import export_safetensors
from perturbjax.tree import fingerprint

BASE = FIXTURES / "tiny_llama_tied"
LORA, FULL, PROXY = "fine-tuned by LoRA", "fine-tuned in full", "proxy-tuning"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run that measured LoRA by itself, and another base of the same vocabulary."""
    folder = tmp_path_factory.mktemp("rivals")
    write_questions(folder / "even.jsonl", 24)
    ivl.run(
        ivl.Config(
            ivl.Bases(str(BASE)),
            ivl.Data(str(folder / "even.jsonl"), validation_examples=4, test_examples=6, rivals=("lora",)),
            ivl.Value(layers=1),
            ivl.Training(steps=6, every=2, batch_rows=2, row_tokens=64, learning_rate=0.01),
            ivl.Machine(compile_cache="off"),
            ivl.Run(folder / "run"),
        )
    )
    model = load_model(str(BASE))
    other = jax.tree.map(lambda leaf: leaf * np.float32(1.05), model.params)
    export_safetensors(model, other, folder / "other")
    return folder


def entries_of(folder, name):
    return json.loads((folder / "run" / name).read_text())["entries"]


def metrics_of(folder):
    return {
        (path.parent.parent.name, path.parent.name): path.read_bytes() for path in (folder / "run" / "rivals").glob("*/*/metrics.jsonl")
    }


def test_rivals_are_trained_once_and_reported(folder, capsys):
    own = fingerprint(load_model(str(BASE)).params).removeprefix("sha256:")[:16]
    before, results = metrics_of(folder), entries_of(folder, "results.json")
    assert list(results["systems"]) == [WITH_VALUE, VALUE_ALONE, LORA] and set(before) == {(own, "lora")}
    code, out, _ = call(["evaluate", str(folder / "run"), "--rivals", "lora,full", "--name", "own"], capsys)
    assert code == 0
    found, trained = entries_of(folder, "evaluation-own.json"), metrics_of(folder)
    assert trained[own, "lora"] == before[own, "lora"], "found trained, not trained again"
    for part in ("systems", "tunings", "against"):
        assert found[part][LORA] == results[part][LORA]
    lora, full = (found["tunings"][name] for name in (LORA, FULL))
    assert lora["tokens"] == full["tokens"] > 0 and lora["steps"] == full["steps"] == 6
    assert (lora["learning_rate"], full["learning_rate"]) == (0.1, 0.01) and lora["parameters"] < full["parameters"]
    assert f"{full['parameters']:,} parameters of tiny_llama_tied, 6 steps" in out and "with value vs it" in out
    for name in (LORA, FULL):
        beside, value = found["against"][name], found["systems"][WITH_VALUE]
        assert beside["difference"] == pytest.approx(value["accuracy"] - found["systems"][name]["accuracy"])

    # Proxy-tuning adds what full fine-tuning changed in the run's own base, which is there already.
    other = [str(folder / "run"), "--base", str(folder / "other"), "--name", "other"]
    code, out, _ = call(["evaluate", *other, "--rivals", "proxy"], capsys)
    assert code == 0 and set(metrics_of(folder)) == {(own, "lora"), (own, "full")}
    found = entries_of(folder, "evaluation-other.json")
    assert found["tunings"][PROXY] == full and "full fine-tuning" not in out
    page = (folder / "run" / "report.html").read_text()
    for words in (LORA, FULL, PROXY, "What it was measured against", "Each rival was trained once"):
        assert words in page, words


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--rivals", "lora,best"], "--rivals best: some of lora, full, proxy are required, comma separated"),
        (["--rivals", "proxy"], "--rivals proxy: on the base that the value network was trained beside, proxy-tuning is the base"),
        (
            ["--base", str(FIXTURES / "tiny_qwen2"), "--vocabulary", "exact_first", "--rivals", "proxy"],
            "--rivals proxy: it adds logits of tiny_llama_tied token by token, and tiny_qwen2 has other tokens",
        ),
    ],
)
def test_bad_input_is_one_line_and_trains_nothing(folder, capsys, flags, said):
    before = metrics_of(folder)
    code, out, err = call(["evaluate", str(folder / "run"), *flags], capsys)
    assert code == 2 and out == "" and said in err.splitlines()[-1] and metrics_of(folder) == before


def test_changed_demonstrations_are_refused(folder, tmp_path, capsys):
    run, questions = tmp_path / "run", tmp_path / "even.jsonl"
    shutil.copytree(folder / "run", run)
    shown = {example.key for example in reopen(run, lambda _: None).train}
    rows = [json.loads(line) for line in (folder / "even.jsonl").read_text().splitlines()]
    other = {"yes": "no", "no": "yes"}
    changed = [row | {"answer": other[row["answer"]]} if row["question"] in shown else row for row in rows]
    assert changed != rows
    questions.write_text("\n".join(map(json.dumps, changed)))
    config = json.loads((run / "config.json").read_text())
    config["config"]["data"]["demonstrations"] = str(questions)
    (run / "config.json").write_text(json.dumps(config))
    code, _, err = call(["evaluate", str(run)], capsys)
    assert code == 2 and f"the demonstrations of {questions} are not those of the run; restore the file" in err.splitlines()[-1]


def test_the_config_knows_its_rivals():
    for rivals, said in ((("all",), "`rivals` all: some of"), (("proxy",), "name full, or measure another base")):
        with pytest.raises(InputError, match=said):
            dataclasses.replace(ivl.Config(), data=ivl.Data(rivals=rivals)).validate()
