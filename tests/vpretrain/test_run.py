"""One whole steered pretraining of a model of random weights: the battery of chapters, the commands on its run, bad input."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.chapter import ChapterBattery, call
from support.cli_tiny import write_questions
from support.paths import FIXTURES

from perturbjax import vpretrain
from perturbjax.inference import Engine
from perturbjax.noise import Noise
from perturbjax.pretrained import load_model
from perturbjax.runs.identity import identity_digest
from perturbjax.vpretrain import stages
from perturbjax.vpretrain.config import MODES
from perturbjax.vpretrain.reopen import reopen
from perturbjax.vpretrain.report import steered_words

pytestmark = pytest.mark.usefixtures("optimized")

MODEL = FIXTURES / "tiny_llama_tied"
OTHER = FIXTURES / "tiny_qwen2"
SETTINGS = {
    "feedback-examples": 8,
    "validation-examples": 4,
    "test-examples": 6,
    "feedback-rows": 2,
    "candidates": 8,
    "meta-period": 2,
    "subset-layers": 1,
    "designer-hidden": 16,
    "designer-layers": 1,
    "designer-learning-rate": 0.01,
    "steps": 4,
    "every": 2,
    "batch-rows": 2,
    "row-tokens": 64,
    "learning-rate": 0.01,
}


def write_texts(path: Path, count: int = 40, word: str = "Number") -> Path:
    rows = [{"text": f"{word} {n} of a list, with {n * n} beside it, and so on to the end of this line."} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def change(path: Path, *place: Any, value: Any) -> None:
    """Put a value into a JSON file."""
    content = part = json.loads(path.read_text())
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    path.write_text(json.dumps(content))


def flags(**changes: Any) -> list[str]:
    settings = {**SETTINGS, "compile-cache": "auto", **{name.replace("_", "-"): value for name, value in changes.items()}}
    return [word for name, value in settings.items() for word in ([f"--{name}"] if value is True else [f"--{name}", str(value)])]


class TestVpretrain(ChapterBattery):
    compared = ("model/model.safetensors", "designer/designer.safetensors")
    commits = 2
    stopped_with = ("--controls", "plain,uniform")

    @classmethod
    def prepare(cls, folder: Path) -> None:
        write_questions(folder / "even.jsonl", 24)
        write_texts(folder / "texts.jsonl")
        write_texts(folder / "other.jsonl", 3, "Line")

    @classmethod
    def arguments(cls, folder: Path, out: Path) -> list[str]:
        data = ["--corpus", str(folder / "texts.jsonl"), "--feedback", str(folder / "even.jsonl"), "--general", str(folder / "other.jsonl")]
        return ["vpretrain", "--model", str(MODEL), *data, "--out", str(out), *flags()]

    @classmethod
    def run(cls, folder: Path, out: Path, resume: bool = False) -> Any:
        data = vpretrain.Data(
            str(folder / "texts.jsonl"),
            (str(folder / "even.jsonl"),),
            general=str(folder / "other.jsonl"),
            feedback_examples=8,
            validation_examples=4,
            test_examples=6,
            feedback_rows=2,
        )
        steer = vpretrain.Steer(
            candidates=8, meta_period=2, subset_layers=1, designer_hidden=16, designer_layers=1, designer_learning_rate=0.01
        )
        training = vpretrain.Training(epochs=1.0, steps=4, every=2, batch_rows=2, row_tokens=64, learning_rate=0.01, warmup=0.03)
        machine = vpretrain.Machine(compile_cache="auto")
        return vpretrain.run(
            vpretrain.Config(vpretrain.Base(str(MODEL)), data, vpretrain.Adapt(), steer, training, machine, vpretrain.Run(out, resume))
        )

    def test_the_run_says_what_was_trained_and_measured(self, finished):
        run = finished / "run"
        results = json.loads((run / "results.json").read_text())
        assert [arm["mode"] for arm in results["arms"]] == ["start", "plain", "value"]
        start, plain, value = results["arms"]
        (name,) = value["sets"]
        assert value["sets"][name]["against_plain"]["difference"] == pytest.approx(
            plain["sets"][name]["loss"] - value["sets"][name]["loss"], abs=1e-6
        )
        assert start["sets"][name]["against_start"] is None and value["updates"] == 2 and value["skipped"] == 0
        first = json.loads((run / "arms" / "start.json").read_text())["looks"]
        assert [look["step"] for look in first] == [0] and first[0]["validation"].keys() == {name, "general"}
        assert 0 < value["drift"] < 1 and 0 < value["off_true"] < value["alpha"] and 0 < value["alpha_start"] < 0.5
        assert value["general"] > 0 and value["sets"][name]["accuracy"]["n"] == 6
        page = (run / "report.html").read_text()
        assert "plain pretraining" in page and "designed targets" in page and page.count("data:image/png") == 4
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [2, 4] and lines[1]["updates"][0].keys() >= {"predicted", "realized"}

    def test_the_accuracy_at_looks_is_that_of_an_engine_on_validation_questions(self, finished):
        run = reopen(finished / "run", lambda line: None)
        (each,) = run.feedback
        assert each.task is not None and each.template is not None and len(each.validation_questions) == 4
        assert not {example.id for example in each.validation_questions} & {example.id for example in each.questions}
        engine = Engine(run.start(), each.task, Noise())
        batch, found = engine.prepare(each.validation_questions, each.template), []
        for model in (run.start(), run.model):
            engine.rebase(model.params)
            found.append({each.name: float(engine.run_plain(batch).scores[0].mean())})
        arms = [json.loads((finished / "run" / "arms" / f"{name}.json").read_text()) for name in ("start", "value", "plain")]
        assert [arms[0]["looks"][0]["accuracy"], arms[1]["looks"][-1]["accuracy"]] == found
        assert all(look["accuracy"].keys() == {each.name} for arm in arms for look in arm["looks"])
        assert "of 4 validation questions of each set" in (finished / "run" / "report.html").read_text()

    def test_the_commands_act_on_the_run(self, finished, tmp_path, capsys):
        run = finished / "run"
        code, out, _ = call(["evaluate", str(run)], capsys)
        assert code == 0 and "after training" in out
        results = json.loads((run / "results.json").read_text())
        ((_, figures),) = results["arms"][-1]["sets"].items()
        (path,) = run.glob("evaluation-*.json")
        assert json.loads(path.read_text())["trained"] == figures["accuracy"]
        questions, answers = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
        questions.write_text(json.dumps({"question": "is 7 an even number"}) + "\n")
        code, _, _ = call(["predict", str(run), "--questions", str(questions), "--out", str(answers)], capsys)
        assert code == 0 and json.loads(answers.read_text())["answer"] in ("yes", "no")
        code, _, _ = call(["export", str(run), "--out", str(tmp_path / "model")], capsys)
        assert code == 0
        exported, own = load_model(str(tmp_path / "model")), load_model(str(run / "model"))
        np.testing.assert_array_equal(exported.params["embed"]["embedding"], own.params["embed"]["embedding"])
        code, _, err = call(["export", str(run), "--out", str(tmp_path / "more"), "--merge"], capsys)
        assert code == 2 and "is a run of vpretrain, which does not take it" in err.splitlines()[-1]

    def test_a_page_of_every_mode_says_what_its_targets_were(self, finished, tmp_path, capsys):
        run = shutil.copytree(finished / "run", tmp_path / "run")
        for name, place in (("results.json", ()), ("config.json", ("config", "steer"))):
            change(run / name, *place, "mode", value="plain")
        code, out, _ = call(["report", str(run)], capsys)
        page = (run / "report.html").read_text()
        assert code == 0 and out.splitlines()[0] == "Plain pretraining did better than step 0" and "probe.png" not in page
        assert "No designer: targets were the true tokens" in page and "Whether values came true" not in page
        assert "designer  " not in out and len({steered_words(vpretrain.Steer(mode=mode)) for mode in MODES}) == len(MODES)

    @pytest.mark.parametrize(
        ("name", "place", "value", "said"),
        [
            ("results.json", ("arms", 1, "mode"), "../plain", "arms: ../plain is there twice or no mode"),
            ("results.json", ("arms", 1, "mode"), "value", "arms: value is there twice or no mode"),
            ("results.json", ("arms", 1, "sets"), {}, "arms: figures of the same feedback sets, at least one, are required"),
            ("results.json", ("arms", 2, "entropy"), None, "arms[2].alpha, entropy: both or neither are required"),
            ("arms/value.json", ("mode",), "plain", "mode plain, value is required"),
            ("arms/plain.json", ("looks",), [], "looks with losses of validation are required"),
        ],
    )
    def test_a_page_is_not_made_of_files_that_do_not_fit_together(self, finished, tmp_path, capsys, name, place, value, said):
        run = shutil.copytree(finished / "run", tmp_path / "run")
        change(run / name, *place, value=value)
        code, out, err = call(["report", str(run)], capsys)
        assert code == 2 and out == "" and said in err and str(run / name) in err and err.count("\n") == 1

    def test_what_a_run_needs_of_its_feedback(self, finished, tmp_path, capsys):
        run, feedback = shutil.copytree(finished / "run", tmp_path / "run"), tmp_path / "mine.jsonl"
        data = ("config", "data", "feedback")
        change(run / "config.json", *data, value=[str(feedback)])  # gone
        code, _, _ = call(["export", str(run), "--out", str(tmp_path / "model")], capsys)
        assert code == 0
        code, out, err = call(["evaluate", str(run)], capsys)
        assert (code, out) == (2, "") and str(feedback) in err
        rows = (finished / "even.jsonl").read_text().splitlines()
        feedback.write_text("\n".join([*rows, json.dumps({"question": "is 77 an even number", "answer": "no", "choices": ["yes", "no"]})]))
        code, out, err = call(["evaluate", str(run)], capsys)
        assert (code, out) == (2, "") and f"--feedback {feedback}: not the rows that the run was made with" in err
        feedback.write_text("".join(json.dumps({"prompt": f"say {n}", "response": str(n)}) + "\n" for n in range(24)))
        change(run / "config.json", "feedback_digest", value=None)  # of a run of before
        given = ["--questions", str(finished / "even.jsonl"), "--out", str(tmp_path / "answers.jsonl")]
        code, out, err = call(["predict", str(run), *given], capsys)
        assert (code, out) == (2, "") and "--task: no feedback of the run is a task" in err.splitlines()[-1]
        code, _, _ = call(["predict", str(run), *given, "--task", str(finished / "even.jsonl")], capsys)
        assert code == 0 and len((tmp_path / "answers.jsonl").read_text().splitlines()) == 24

    def test_other_validation_rows_are_another_run_where_a_run_has_their_digest(self, finished, tmp_path, capsys):
        run, feedback = shutil.copytree(finished / "run", tmp_path / "run"), finished / "even.jsonl"
        (each,) = reopen(run, lambda line: None).feedback
        rows = [json.loads(line) for line in feedback.read_text().splitlines()]
        arguments = [*self.arguments(finished, run), "--resume"]
        arguments[arguments.index(str(feedback))] = str(tmp_path / feedback.name)

        def resumed(asked: Any, **changes: Any) -> tuple[int, str]:
            changed = [row | changes if row["question"] == asked.question else row for row in rows]
            (tmp_path / feedback.name).write_text("".join(json.dumps(row) + "\n" for row in changed))
            change(run / "config.json", "identity", "feedback", value=[str(tmp_path / feedback.name)])
            content = json.loads((run / "config.json").read_text())
            change(run / "config.json", "identity_digest", value=identity_digest(content["identity"]))
            code, _, err = call(arguments, capsys)
            return code, err.splitlines()[-1]

        asked = each.validation_questions[0]
        for changes in ({"answer": next(choice for choice in asked.choices if choice != asked.answer)}, {"choices": asked.choices[::-1]}):
            code, said = resumed(asked, **changes)
            assert code == 2 and "what they name is not (digests of: validation)" in said
        content = json.loads((run / "config.json").read_text())
        del content["identity"]["validation"]
        (run / "config.json").write_text(json.dumps(content))
        assert resumed(asked, **changes)[0] == 0  # a run of before

    def test_another_model_in_the_place_of_the_runs_is_refused(self, finished, tmp_path, capsys):
        run = shutil.copytree(finished / "run", tmp_path / "run")
        code, _, _ = call(["export", str(run), "--out", str(tmp_path / "start"), "--base"], capsys)
        assert code == 0
        shutil.copy(tmp_path / "start" / "model.safetensors", run / "model" / "model.safetensors")
        for command in (["evaluate", str(run)], ["export", str(run), "--out", str(tmp_path / "model")]):
            code, out, err = call(command, capsys)
            assert (code, out) == (2, "") and err.splitlines()[-1].endswith("not the model that the run made; restore it")

    def test_a_designer_of_another_shape_is_refused_by_what_differs(self, finished, tmp_path, capsys):
        data = ["--corpus", str(finished / "texts.jsonl"), "--feedback", str(finished / "even.jsonl")]
        other = flags(designer=finished / "run", designer_hidden=24, alpha_max=0.25)
        code, _, err = call(["vpretrain", "--model", str(MODEL), *data, "--out", str(tmp_path / "run"), *other], capsys)
        said = "--designer-hidden 24, it has 16; --alpha-max 0.25, it has 0.5; give its settings"
        assert code == 2 and sorted(said.split("; ")) == sorted(err.splitlines()[-1].split("run: ")[1].split("; "))

    def test_a_control_that_diverges_is_left_out_and_named(self, finished, tmp_path, capsys, monkeypatch):
        run, fit = tmp_path / "run", stages.fit

        def plain_alone(problem: Any, *others: Any) -> Any:
            if problem.auxiliary is not None:
                raise FloatingPointError("the loss is not finite")
            return fit(problem, *others)

        monkeypatch.setattr(stages, "fit", plain_alone)
        code, out, err = call([*self.arguments(finished, run), "--mode", "plain", "--controls", "value"], capsys)
        assert code == 0 and "warning: arm value: the loss is not finite" in err and "designed targets: not in the table" in out
        assert json.loads((run / "results.json").read_text())["diverged"] == ["value"]
        assert "Not in the table, because the loss was not finite: designed targets." in (run / "report.html").read_text()

    def test_a_finished_run_is_given_another_control(self, finished, stopped, tmp_path, capsys, monkeypatch):
        run, trained, fit = tmp_path / "run", [], stages.fit
        shutil.copytree(finished / "run", run)
        monkeypatch.setattr(stages, "fit", lambda *given: trained.append(given[4]["arm"]) or fit(*given))
        more = [*self.arguments(finished, run), "--resume", "--controls", "uniform"]
        assert call(more, capsys)[0] == 0 and trained == ["uniform"]
        both = [json.loads((at / "results.json").read_text())["arms"] for at in (run, finished / "run")]
        arms, before = ({arm["mode"]: arm for arm in each} for each in both)
        assert [*arms] == ["start", "plain", "value", "uniform"] and {mode: arms[mode] for mode in before} == before
        page = (run / "report.html").read_bytes()
        assert b"--controls plain,uniform" in page
        # Asked for fewer, it keeps what it has.
        assert call([*self.arguments(finished, run), "--resume"], capsys)[0] == 0
        assert trained == ["uniform"] and (run / "report.html").read_bytes() == page
        # What it is given is what it would have had from the start.
        losses = [json.loads((at / "arms" / "uniform.json").read_text())["losses"] for at in (run, stopped[0])]
        assert losses[0] == losses[1]

    @pytest.mark.parametrize(
        ("mode", "said"), [("plain", "try a lower rate; what"), ("value", "a lower rate or designer_learning_rate; what")]
    )
    def test_a_training_that_diverges_names_its_arm(self, finished, tmp_path, capsys, monkeypatch, mode, said):
        def diverging(*_: Any) -> Any:
            raise FloatingPointError("try a lower rate")

        monkeypatch.setattr(stages, "fit", diverging)
        code, _, err = call([*self.arguments(finished, tmp_path / "run"), "--mode", mode, "--controls", ""], capsys)
        assert code == 1 and f"FloatingPointError: arm {mode}: " in err.splitlines()[-1] and said in err.splitlines()[-1]

    def test_a_designer_of_another_tokenizer_is_refused(self, finished, tmp_path, capsys):
        data = ["--corpus", str(finished / "texts.jsonl"), "--feedback", str(finished / "even.jsonl")]
        given = ["vpretrain", "--model", str(OTHER), *data, "--out", str(tmp_path / "run"), *flags(designer=finished / "run")]
        code, _, err = call(given, capsys)
        assert code == 2 and "it speaks another tokenizer's tokens" in err.splitlines()[-1]
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"corpus": "none.jsonl"}, "none.jsonl: the file cannot be read"),
        ({"corpus": "EVEN"}, "rows occur in both sets of corpus+feedback: 12 of 12 (12 exactly); corpus+test: 6 of 6 (6 exactly)"),
        ({"corpus": "LOUD"}, "corpus+feedback: 12 of 12 (0 exactly)"),
        ({"steps": 400}, "rows of 64 tokens, the steps need 800; give more text, lower --steps, or let it --repeat"),
        ({"general": "TEXTS"}, "corpus+general: 40 of 40 (40 exactly)"),
        ({"feedback": "nowhere"}, "--feedback nowhere: unknown task"),
        ({"feedback": "nowhere.py:mine"}, "--feedback nowhere.py:mine: there is no file"),
        ({"feedback": "mmlu:nothing"}, "--feedback mmlu:nothing: unknown subject"),
        ({"corpus": "datasets:one"}, "--corpus datasets:one: datasets:NAME:SPLIT is required"),
        ({"general": "nowhere"}, "--general nowhere: unknown task"),
        ({"feedback": "SAME"}, "its answers say one token alone"),
        ({"burn-in": 4}, "--burn-in 4: the training has 4 steps, so value would be plain pretraining; lower it"),
        ({"row-tokens": 3}, "the shortest has 51 tokens; raise it (/"),
        ({"subset-layers": 0}, "--subset-layers: a number of layers, or --subset-rules, is required"),
        ({"accuracy-questions": 5}, "--accuracy-questions 5: at most --validation-examples 4 can be asked; raise that, or lower it"),
        ({"accuracy-questions": -1}, "--accuracy-questions -1: an integer of at least 0 is required"),
        ({"accuracy-questions": 4, "feedback": "LOUD"}, "--accuracy-questions 4: no feedback is a task, whose questions could be asked"),
        ({"candidates": 100000}, "--candidates 100000: at most"),
        ({"candidates": 1}, "--candidates 1: an integer of at least 2 is required"),
        ({"subset-rules": "atention"}, "--subset-rules atention: matches no parameter"),
        ({"subset-rules": "mlp/=rms"}, "--subset-rules mlp/=rms: a subset has no scales; mlp/ or mlp/=exclude is required"),
        ({"subset-rules": "up,(gate,down)=exclude,("}, "--subset-rules (: not a regular expression"),
        ({"subset-layers": 9}, "--subset-layers 9: 1 to 2, the number of layers, is required"),
        ({"designer": "EMPTY"}, "no designer there; give the directory of a finished run of vpretrain"),
        ({"feedback-examples": 40}, "--feedback-examples 40 + --validation-examples 4 + --test-examples 6"),
        ({"controls": "plane"}, "--controls plane: one of plain, value, random,"),
        ({"feedback-weights": "1,2"}, "1 weights are required, one for each --feedback"),
        ({"feedback-domains": "left,right"}, "--feedback-domains left,right: 1 domains are required, one for each --feedback"),
        ({"feedback-domains": "left"}, "line 1: domain null: one of left, the --feedback-domains, is required"),
        ({"corpus": "PARTS", "feedback": "EVEN,LOUD", "feedback-domains": "left,up"}, 'line 2: domain "right": one of left, up, the'),
        ({"corpus": "PARTS", "feedback": "EVEN,LOUD,SAME", "feedback-domains": "left,right,up"}, "--feedback-domains up: no row of the"),
        ({"corpus": "sst2", "feedback-domains": "left"}, "--corpus sst2: with --feedback-domains its rows need a domain"),
        ({"similarity": "cosine", "feedback-domains": "left"}, "--similarity cosine: it is of all rows together; with --feedback-domains"),
        ({"patience": 2}, "--patience 2: all arms take the same steps; leave it out"),
        ({"feedback-rows": 10**9}, "--feedback-rows 1000000000, --row-tokens 64: an update of 64000000000 tokens; at most 2147483647"),
        ({"burn-in": 10**20}, "--burn-in 100000000000000000000: at most 2147483647 is required"),
        ({"designer-layers": 10**6}, "--designer-hidden 16, --designer-layers 1000000: a designer of "),
        ({"allow-overlap": "corpus+test,corpus+test"}, "--allow-overlap corpus+test,corpus+test: one is named twice"),
        ({"row-tokens": 100000}, "takes at most"),
    ],
)
def test_bad_settings_are_one_line_and_make_nothing(tmp_path, capsys, changes, said):
    files = {name: tmp_path / f"{name.lower()}.jsonl" for name in ("TEXTS", "EVEN", "LOUD", "SAME", "PARTS")}
    write_texts(files["TEXTS"])
    write_questions(files["EVEN"], 24)
    rows = [json.loads(line) for line in files["EVEN"].read_text().splitlines()]
    files["LOUD"].write_text("".join(json.dumps({"prompt": f"{row['question'].upper()}?", "response": "x"}) + "\n" for row in rows))
    files["SAME"].write_text("".join(json.dumps({"prompt": row["question"], "response": "x"}) + "\n" for row in rows))
    parts = [{"text": f"number {n}", "domain": ("left", "right")[n % 2]} for n in range(9)]
    files["PARTS"].write_text("".join(json.dumps(row) + "\n" for row in parts))
    files["EMPTY"] = tmp_path / "empty"
    files["EMPTY"].mkdir()
    given = {"model": MODEL, "corpus": "TEXTS", "feedback": "EVEN", "out": tmp_path / "run", **changes}

    def named(value: Any) -> str:
        return ",".join(str(files.get(word, word)) for word in str(value).split(","))

    code, out, err = call(["vpretrain", *flags(**{name: named(value) for name, value in given.items()})], capsys)
    assert code == 2 and out == "" and said in err.splitlines()[-1]
    assert not (tmp_path / "run").exists()
