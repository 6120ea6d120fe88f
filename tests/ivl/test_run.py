"""One whole training of a value network on a model of random weights: the battery of chapters, and the commands on its run."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.chapter import ChapterBattery, call
from support.cli_tiny import write_questions
from support.paths import FIXTURES
from support.value_cases import decoder_logits, softmax

from perturbjax import InputError, ivl
from perturbjax.inference import Engine
from perturbjax.ivl import reopen as reopening
from perturbjax.ivl.alignment import exact_first
from perturbjax.ivl.artifacts import load_value
from perturbjax.ivl.combined import combine
from perturbjax.ivl.reopen import reopen
from perturbjax.ivl.results import read_evaluation, read_results
from perturbjax.noise import Noise
from perturbjax.pretrained import load_model
from perturbjax.train.demonstrations import encode_demonstrations
from perturbjax.train.rows import pack_rows
from perturbjax.tree import leaf_paths

pytestmark = pytest.mark.usefixtures("optimized")

BASE = FIXTURES / "tiny_llama_tied"
OTHER = FIXTURES / "tiny_qwen2"
SETTINGS = {
    "validation-examples": 4,
    "test-examples": 6,
    "layers": 1,
    "steps": 6,
    "every": 2,
    "batch-rows": 2,
    "row-tokens": 64,
    "learning-rate": 0.01,
    "without-norm": True,
}


class TestIvl(ChapterBattery):
    compared = ("value/value.safetensors", "value/value.json")
    commits = 3

    @classmethod
    def prepare(cls, folder: Path) -> None:
        write_questions(folder / "even.jsonl", 24)

    @classmethod
    def arguments(cls, folder: Path, out: Path) -> list[str]:
        given = [word for name, value in SETTINGS.items() for word in ([f"--{name}"] if value is True else [f"--{name}", str(value)])]
        return ["ivl", "--base", str(BASE), "--demonstrations", str(folder / "even.jsonl"), "--out", str(out), *given]

    @classmethod
    def run(cls, folder: Path, out: Path, resume: bool = False) -> Any:
        config = ivl.Config(
            ivl.Bases(str(BASE)),
            ivl.Data(str(folder / "even.jsonl"), validation_examples=4, test_examples=6),
            ivl.Value(layers=1, without_norm=True),
            ivl.Training(steps=6, every=2, batch_rows=2, row_tokens=64, learning_rate=0.01),
            run=ivl.Run(out, resume),
        )
        return ivl.run(config)

    def test_a_second_training_has_no_norm_in_its_loss(self, finished):
        results = read_results(finished / "run" / "results.json")
        for own, other in zip(results.looks, results.without_norm, strict=True):
            assert own.losses["loss"] > own.losses["cross_entropy"] and other.losses["loss"] == other.losses["cross_entropy"]
            assert own.tokens == other.tokens and own.step == other.step
        assert results.without_norm[-1].losses["norm"] > results.looks[-1].losses["norm"]
        page = (finished / "run" / "report.html").read_text()
        assert "without the norm" in page and "was not measured: <code>--without-norm" not in page

    def test_operations_of_a_pass_are_those_of_the_matrices(self, finished):
        results, value = read_results(finished / "run" / "results.json"), reopen(finished / "run", lambda _: None)
        rows = pack_rows(encode_demonstrations(value.train, value.trained.tokenizer), 64)
        tokens, learned = rows.tokens, int((rows.arrays["weights"] > 0).sum())

        def forward(params, decoder):
            layers = sum(leaf.size for path, leaf in leaf_paths(params).items() if path.split("/")[0] not in ("embed", "head"))
            scores = decoder.num_layers * decoder.num_heads * decoder.head_dim * tokens**2 / len(rows)  # of half of a square
            return 2 * layers * tokens + 2 * scores + 2 * decoder.vocab_size * decoder.hidden_size * learned

        wanted = 3 * forward(value.params, value.record.decoder) + forward(value.trained.params, value.trained.config)
        assert results.pass_flops == pytest.approx(wanted, rel=1e-6)
        if results.tokens_per_s is not None:  # every timed step was one that compiled
            assert results.flops_per_s == pytest.approx(wanted / tokens * results.tokens_per_s, rel=1e-6)
            assert "GFLOP/s of the models" in (finished / "run" / "report.html").read_text()

    def test_evaluate_measures_what_the_run_measured(self, finished, capsys):
        code, out, _ = call(["evaluate", str(finished / "run"), "--name", "again"], capsys)
        assert code == 0 and "with value" in out
        again, results = (json.loads((finished / "run" / name).read_text()) for name in ("evaluation-again.json", "results.json"))
        assert again["entries"] == results["entries"] and again["entries"]["changes"] is None  # a task of choices has no replies
        assert "tiny_llama_tied" in (finished / "run" / "report.html").read_text()

    def test_another_vocabulary_is_measured_and_other_settings_have_a_file_of_their_own(self, finished, capsys):
        arguments = ["evaluate", str(finished / "run"), "--vocabulary", "exact_first", "--base"]
        assert call([*arguments, f"{BASE},{OTHER}"], capsys)[0] == 0
        assert (finished / "run" / "evaluation-tiny_llama_tied-even.json").is_file()
        code, out, _ = call([*arguments, str(OTHER), "--gate", "3", "--mesh", "1x1"], capsys)
        assert code == 0 and "by probability" in out and "evaluation-tiny_qwen2-even-gate3.json" in out
        assert (finished / "run" / "evaluation-tiny_qwen2-even.json").is_file()
        found = read_evaluation(finished / "run" / "evaluation-tiny_qwen2-even-gate3.json").entries.map_statistics
        assert found is not None and found.base_mass is not None
        value, base = reopen(finished / "run", lambda _: None), load_model(str(OTHER))
        prompts = base.tokenizer.encode_prompts([value.task.prompt(example, value.template) for example in value.test])
        tokens = np.zeros((len(prompts), max(map(len, prompts))), np.int32)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt)] = prompt
        last = decoder_logits(base.config, base.params, tokens)[np.arange(len(prompts)), [len(prompt) - 1 for prompt in prompts]]
        table = exact_first(value.trained.tokenizer, base.tokenizer)
        exact = softmax(last).mean(axis=0)[: table.base_size][table.exact].sum()
        assert found.base_mass.exact == pytest.approx(exact, abs=1e-5) and found.base_mass.distributions == len(prompts)
        page = (finished / "run" / "report.html").read_text()
        assert "By probability, of the base's next token after 6 of the questions" in page and "The likeliest tokens" in page

    def test_maps_are_kept_with_the_run_and_built_anew_where_they_are_damaged(self, finished, tmp_path, monkeypatch):
        run, built = tmp_path / "run", []
        shutil.copytree(finished / "run", run, ignore=shutil.ignore_patterns("maps"))
        monkeypatch.setattr(reopening, "exact_first", lambda *pair: built.append(1) or exact_first(*pair))
        value = reopen(run, lambda _: None)
        expected = exact_first(value.trained.tokenizer, load_model(str(OTHER)).tokenizer)

        def ask_twice() -> None:
            for _ in range(2):
                table = value.on(str(OTHER), "exact_first", 1.0, None).vocabulary
                assert table is not None
                np.testing.assert_array_equal(table.weights, expected.weights)
                np.testing.assert_array_equal(table.indices, expected.indices)

        ask_twice()
        (folder,) = (run / "maps").iterdir()
        assert len(built) == 1 and folder.name.startswith("exact_first-")
        (folder / "vocabulary_map.npz").write_bytes(b"PK")
        ask_twice()
        assert len(built) == 2
        (run / "maps").rename(run / "elsewhere")
        (run / "maps").write_text("")  # as in a directory that may not be written
        ask_twice()
        assert len(built) == 4

    def test_logits_of_other_tokens_are_never_added(self, finished):
        record, params = ivl.load_value(finished / "run" / "value")
        value = reopen(finished / "run", lambda _: None)
        other = load_model(str(OTHER))
        # As many tokens, and others.
        others = dataclasses.replace(value.trained, name="others", tokenizer=other.tokenizer)
        with pytest.raises(ValueError, match=f"the value network speaks the tokens of {value.record.base}, others has others; give a map"):
            ivl.combine(others, record, params)
        table = exact_first(value.trained.tokenizer, other.tokenizer)
        with pytest.raises(ValueError, match="was built for another tokenizer of the base"):
            ivl.combine(value.trained, record, params, vocabulary=table)
        assert ivl.combine(other, record, params, vocabulary=table).config.vocab_size == other.config.vocab_size

    def test_alpha_0_is_the_base(self, finished, capsys):
        code, _, _ = call(["evaluate", str(finished / "run"), "--alpha", "0", "--name", "nothing"], capsys)
        entries = json.loads((finished / "run" / "evaluation-nothing.json").read_text())["entries"]
        assert code == 0 and entries["systems"]["with value"]["gained"] == entries["systems"]["with value"]["lost"] == 0

    def test_predict_answers_as_the_combined_model_does(self, finished, tmp_path, capsys):
        rows = [json.loads(line) for line in (finished / "even.jsonl").read_text().splitlines()[:5]]
        questions, answers = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
        questions.write_text("".join(json.dumps({"question": row["question"]}) + "\n" for row in rows))
        code, _, _ = call(["predict", str(finished / "run"), "--questions", str(questions), "--out", str(answers)], capsys)
        assert code == 0
        value = reopen(finished / "run", lambda _: None)
        model = combine(value.trained, value.record, value.params)
        engine = Engine(model, value.task, Noise(), chunk=1)
        by_question = {example.question: example for example in value.task.examples()}
        batch = engine.prepare([by_question[row["question"].strip()] for row in rows], value.template)
        expected = engine.run_plain(batch).answers[0]
        assert tuple(json.loads(line)["answer"] for line in answers.read_text().splitlines()) == expected

    def test_export_is_the_value_network(self, finished, tmp_path, capsys):
        code, _, _ = call(["export", str(finished / "run"), "--out", str(tmp_path / "value")], capsys)
        assert code == 0 and "z_base + z_value" in (tmp_path / "value" / "README.md").read_text()
        exported, value = load_model(str(tmp_path / "value")), reopen(finished / "run", lambda _: None)
        assert exported.config == value.record.decoder
        np.testing.assert_array_equal(exported.params["head"]["kernel"], value.params["head"]["kernel"])

    def test_a_page_for_another_vocabulary_adds_mapped_logits_alone(self, finished, tmp_path, capsys):
        beside = ["--beside", str(OTHER), "--vocabulary", "exact_first"]
        assert call(["export", str(finished / "run"), *beside, "--out", str(tmp_path / "value")], capsys)[0] == 0
        page = (tmp_path / "value" / "README.md").read_text()
        assert page.count("def logits(") == 1 and "z_base + pad(change(tokens)" in page and "z_base + z_value" not in page

    @pytest.mark.parametrize(
        ("command", "said"),
        [
            (["evaluate", "RUN", "--base", str(OTHER)], "ask for a map between them with --vocabulary exact_first"),
            (["evaluate", "RUN", "--base", f"{BASE},{OTHER}"], "ask for a map between them with --vocabulary exact_first"),
            (["evaluate", "RUN", "--base", f"{BASE},{BASE}"], "one is named twice"),
            (["evaluate", "RUN", "--base", f"{BASE},{OTHER}", "--name", "x"], "--name x: names one evaluation"),
            (["evaluate", "RUN", "--mesh", "2x2"], "--mesh 2x2: 4 devices, there are 1; use e.g. 1x1"),
            (["predict", "RUN", "--questions", "Q", "--out", "OUT", "--mesh", "2x"], "--mesh 2x: DATAxMODEL is required, e.g. 4x2"),
            (["evaluate", "RUN", "--gate", "-1"], "--gate -1.0: an entropy in nats, 0 or above, is required"),
            (["evaluate", "RUN", "--examples", "7"], "--examples 7: 6 questions are there; ask for fewer"),
            (["export", "RUN", "--out", "OUT", "--merge"], "--merge True: RUN is a run of ivl, which does not take it"),
        ],
    )
    def test_bad_input_is_one_line(self, finished, tmp_path, capsys, command, said):
        places = {"RUN": str(finished / "run"), "OUT": str(tmp_path / "out")}
        code, out, err = call([str(places.get(word, word)) for word in command], capsys)
        assert code == 2 and out == ""
        assert said.replace("RUN", places["RUN"]) in err.splitlines()[-1]
        assert not (tmp_path / "out").exists()

    def test_changed_questions_are_refused(self, finished, tmp_path, capsys):
        run, questions = tmp_path / "run", tmp_path / "even.jsonl"
        shutil.copytree(finished / "run", run)
        questions.write_text((finished / "even.jsonl").read_text().replace("even", "odd"))
        config = json.loads((run / "config.json").read_text())
        config["config"]["data"]["demonstrations"] = str(questions)
        (run / "config.json").write_text(json.dumps(config))
        code, _, err = call(["evaluate", str(run)], capsys)
        assert code == 2 and "the test questions of even are not those of the run" in err.splitlines()[-1]

    def test_a_training_that_diverges_ends_with_one_line(self, finished, tmp_path, capsys):
        arguments = self.arguments(finished, tmp_path / "run")
        arguments[arguments.index("--learning-rate") + 1] = "1e30"
        code, _, err = call(arguments, capsys)
        assert code == 1 and "Traceback" not in err
        assert "FloatingPointError: the loss or its gradient is not finite at step" in err.splitlines()[-1]
        assert "other settings need another --out" in err.splitlines()[-1] and "continue with" not in err

    def test_answers_do_not_replace_files_of_the_run(self, finished, capsys):
        given = ["predict", str(finished / "run"), "--questions", str(finished / "even.jsonl"), "--out"]
        for command in ([*given, str(finished / "run" / "config.json")], ["export", given[1], "--out", str(finished / "run" / "new")]):
            code, _, err = call(command, capsys)
            assert code == 2 and "lies in the run directory, which is not changed" in err

    @pytest.mark.parametrize(
        ("field", "value", "said"),
        [
            ("architecture", "", 'decoder.architecture "": one of '),
            ("num_layers", 2**40, "cannot be read ("),
            ("hidden_size", 31, "cannot be read ("),
        ],
    )
    def test_a_record_that_does_not_fit_its_weights_is_refused(self, finished, tmp_path, field, value, said):
        shutil.copytree(finished / "run" / "value", tmp_path / "value")
        record = json.loads((tmp_path / "value" / "value.json").read_text())
        record["decoder"][field] = value
        (tmp_path / "value" / "value.json").write_text(json.dumps(record))
        with pytest.raises(InputError, match=re.escape(said)):
            load_value(tmp_path / "value")

    def test_a_damaged_value_network_is_refused(self, finished, tmp_path, capsys):
        run = tmp_path / "run"
        shutil.copytree(finished / "run", run)
        weights = run / "value" / "value.safetensors"
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(bytes(data))
        code, _, err = call(["evaluate", str(run)], capsys)
        assert code == 2 and "not the weights that value.json belongs to" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--demonstrations", "none.jsonl"], "demonstrations none.jsonl: the file cannot be read"),
        (["--demonstrations", "nowhere"], "--demonstrations nowhere: unknown task"),
        (["--demonstrations", "CHATS"], "--task: the demonstrations are no task; name the task whose questions are asked at the end"),
        (["--demonstrations", "BAD", "--task", "EVEN"], "line 2: response null: a text that is not empty is required"),
        (
            ["--demonstrations", "ROLES", "--task", "EVEN"],
            'messages[0] "assistant": a turn of the assistant answers one of the user',
        ),
        (["--demonstrations", "EVEN", "--row-tokens", "4"], "tokens; raise it"),
        (["--demonstrations", "SAME", "--task", "EVEN"], "leaves 0, because 4 of its demonstrations ask what one for validation asks"),
        (["--demonstrations", "EVEN", "--row-tokens", "100000"], "--row-tokens 100000: the bases take at most"),
        (["--demonstrations", "EVEN", "--layers", "9"], "--layers 9: 1 to 2, the number that the base has, is required"),
        (["--demonstrations", "EVEN", "--held-out", str(OTHER)], "its vocabulary is not that of tiny_llama_tied"),
        (
            ["--demonstrations", "EVEN", "--connection", "linear", "--layers", "1"],
            "--connection linear: a probe of the logits has no layers",
        ),
        (["--demonstrations", "EVEN", "--accumulate", "2"], "--batch-rows 1: --accumulate 2 must divide it"),
        (["--demonstrations", "EVEN", "--task", "LONG"], "tokens under template"),
        (["--demonstrations", "EVEN", "--rivals", "lora,lora"], "--rivals lora,lora: one is named twice"),
        (["--demonstrations", "EVEN", "--also", str(BASE)], f"--also {BASE},{BASE}: one is named twice"),
        (["--demonstrations", "EVEN", "--epochs", "1e300"], "--epochs 1e+300: 8e+300 steps, at most 2147483647 are required"),
        (["--demonstrations", "~nobody-of-this-name/x.py:task"], "there is no file "),
        (["--demonstrations", "EVEN", "--train-examples", "20"], "--train-examples 20 + --validation-examples 8"),
    ],
)
def test_bad_settings_are_one_line_and_make_nothing(tmp_path, capsys, flags, said):
    files = {name: tmp_path / f"{name.lower()}.jsonl" for name in ("CHATS", "BAD", "ROLES", "EVEN", "LONG", "SAME")}
    write_questions(files["EVEN"], 24)
    long = [{"question": f"{n} {'word ' * 600}", "answer": "yes", "choices": ["yes", "no"]} for n in range(12)]
    files["LONG"].write_text("".join(json.dumps(row) + "\n" for row in long))
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    files["CHATS"].write_text(json.dumps(good))
    files["BAD"].write_text(json.dumps({"prompt": "a", "response": "b"}) + "\n" + json.dumps({"prompt": "a"}))
    files["SAME"].write_text("".join(json.dumps({"prompt": "a", "response": str(n)}) + "\n" for n in range(12)))
    files["ROLES"].write_text(json.dumps({"messages": [{"role": "assistant", "content": "b"}]}))
    flags = [str(files.get(word, word)) for word in flags]
    steps = [] if "--epochs" in flags else ["--steps", "1"]
    common = ["--base", str(BASE), "--validation-examples", "8", "--test-examples", "8", "--batch-rows", "1", *steps]
    row_tokens = [] if "--row-tokens" in flags else ["--row-tokens", "64"]
    code, out, err = call(["ivl", *common, *row_tokens, *flags, "--out", str(tmp_path / "run")], capsys)
    assert code == 2 and out == "" and said in err.splitlines()[-1]
    assert not (tmp_path / "run").exists()
