"""A whole grid on a model of random weights: the battery of chapters, and the commands on its run."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.chapter import ChapterBattery, call, failing_commits
from support.cli_tiny import write_questions
from support.paths import FIXTURES

from perturbjax import InputError, caulking
from perturbjax.caulking.cells import read_cells
from perturbjax.caulking.program import GridProgram
from perturbjax.caulking.results import read_results
from perturbjax.inference import Engine
from perturbjax.models.adapters import LoRA
from perturbjax.noise import Noise
from perturbjax.pretrained import load_model
from perturbjax.pretrained.adapter_files import read_adapter
from perturbjax.tasks import load_task

BASE = FIXTURES / "tiny_llama_tied"
SETTINGS = {
    "samples": "4,8",
    "seeds": 2,
    "in-flight": 2,
    "sigmas": "0,0.1",
    "test-examples": 8,
    "steps": 4,
    "batch": 2,
    "rank": 2,
    "learning-rates": 0.05,
    "accuracies": "0.3,0.9",
}


class TestCaulking(ChapterBattery):
    compared = ("cells.parquet", "caulks/lora-q0.1-n8-s1.safetensors")
    commits = 4

    @classmethod
    def prepare(cls, folder: Path) -> None:
        write_questions(folder / "even.jsonl", 24)

    @classmethod
    def arguments(cls, folder: Path, out: Path) -> list[str]:
        given = [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))]
        return ["caulking", "--base", str(BASE), "--target", str(folder / "even.jsonl"), "--out", str(out), *given]

    @classmethod
    def run(cls, folder: Path, out: Path, resume: bool = False) -> Any:
        config = caulking.Config(
            caulking.Bases(str(BASE), sigmas=(0.0, 0.1)),
            caulking.Data(str(folder / "even.jsonl"), test_examples=8, accuracies=(0.3, 0.9)),
            caulking.Grid(samples=(4, 8), seeds=2, rank=2, learning_rates=(0.05,), in_flight=2),
            caulking.Fitting(steps=4, batch=2),
            run=caulking.Run(out, resume),
        )
        return caulking.run(config)

    def test_the_plan_is_said_before_anything_is_trained(self, finished, tmp_path, capsys):
        arguments = self.arguments(finished, finished / "run")
        shutil.copytree(finished / "run", tmp_path / "run", ignore=shutil.ignore_patterns("results.json", "state", "caulks"))
        arguments[arguments.index("--out") + 1] = str(tmp_path / "run")
        code, out, err = call([*arguments, "--resume"], capsys)
        lines = err.splitlines()
        plan = next(
            n for n, line in enumerate(lines) if line.startswith("plan       8 cells (lora; 2 bases, 2 numbers of examples, 2 seeds)")
        )
        assert code == 0 and lines[plan + 3].startswith("expected   about ") and lines[plan + 4].startswith("training")
        assert "by matrix products timed here, besides compiling 1 program; the bar" in lines[plan + 3]
        assert "examples that an accuracy takes" in out and self.content(tmp_path / "run") == self.content(finished / "run")

    def test_predict_answers_as_the_exported_adapter_does(self, finished, tmp_path, capsys):
        rows = [json.loads(line) for line in (finished / "even.jsonl").read_text().splitlines()[:6]]
        questions, answers = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
        questions.write_text("".join(json.dumps({"question": row["question"]}) + "\n" for row in rows))
        run, cell = str(finished / "run"), "lora-q0-n8-s1"
        code, _, _ = call(["predict", run, "--cell", cell, "--questions", str(questions), "--out", str(answers)], capsys)
        assert code == 0
        code, out, _ = call(["export", run, "--cell", cell, "--out", str(tmp_path / "peft")], capsys)
        assert code == 0 and "as a PEFT adapter" in out
        base, task = load_model(str(BASE)), load_task(str(finished / "even.jsonl"))
        lora, trained = read_adapter(tmp_path / "peft", base)
        assert (lora.rank, lora.scale) == (2, 2.0) and float(lora.norm(base.params, trained)) > 0
        batch_of = {example.question: example for example in task.examples()}
        merged = base.__class__(**vars(base) | {"params": lora.apply(base.params, trained)})
        engine = Engine(merged, task, Noise(), chunk=1)
        batch = engine.prepare([batch_of[row["question"]] for row in rows], task.templates[0])
        expected = engine.run_plain(batch).answers[0]
        assert tuple(json.loads(line)["answer"] for line in answers.read_text().splitlines()) == expected

    def test_a_caulk_of_a_moved_base_is_exported_with_it(self, finished, tmp_path, capsys):
        code, out, _ = call(["export", str(finished / "run"), "--cell", "lora-q0.1-n8-s0", "--out", str(tmp_path / "merged")], capsys)
        assert code == 0 and "merged into it" in out
        moved = load_model(str(tmp_path / "merged")).params["embed"]["embedding"]
        assert 0.05 < np.std(moved - load_model(str(BASE)).params["embed"]["embedding"]) < 0.2

    def test_cells_are_in_the_table_and_the_page(self, finished):
        cells = read_cells(finished / "run" / "cells.parquet")
        assert len(cells) == 8 and {cell.quality for cell in cells} == {0.0, 0.1} and all(0 <= cell.error <= 1 for cell in cells)
        assert (
            caulking.sample_complexity(caulking.read_cells(str(finished / "run" / "cells.parquet")), 2.0)["lora"][0.1].words == "at most 4"
        )
        page = (finished / "run" / "report.html").read_text()
        assert "the base itself, moved by gaussian noise of sigma 0.1" in page and "LoRA of rank 2, alpha 4<" in page
        assert "accuracy takes" in page and "reconstruction" in page and page.count("data:image/png") == 2

    @pytest.mark.parametrize(
        ("command", "said"),
        [
            (["evaluate", "RUN"], "every cell of a run of caulking was measured already"),
            (["predict", "RUN", "--alpha", "2", "--questions", "Q", "--out", "OUT"], "--alpha 2.0: RUN is a run of caulking"),
            (["export", "RUN", "--cell", "lora-q0-n5-s0", "--out", "OUT"], "--cell lora-q0-n5-s0: the run keeps no such caulk"),
            (["export", "RUN", "--merge", "--out", "OUT"], "--merge True: RUN is a run of caulking, which does not take it"),
        ],
    )
    def test_bad_commands_are_one_line(self, finished, tmp_path, capsys, command, said):
        places = {"RUN": str(finished / "run"), "OUT": str(tmp_path / "out"), "Q": str(finished / "even.jsonl")}
        code, out, err = call([str(places.get(word, word)) for word in command], capsys)
        assert code == 2 and out == "" and said.replace("RUN", places["RUN"]) in err.splitlines()[-1]
        assert not (tmp_path / "out").exists()

    def test_a_damaged_or_missing_caulk_is_refused(self, finished, tmp_path, capsys):
        run = tmp_path / "run"
        shutil.copytree(finished / "run", run)
        path = run / "caulks" / "lora-q0-n8-s1.safetensors"
        path.write_bytes(path.read_bytes()[:100])
        code, _, err = call(["export", str(run), "--cell", "lora-q0-n8-s1", "--out", str(tmp_path / "out")], capsys)
        assert code == 2 and "cannot be read" in err.splitlines()[-1]

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda content: content["curves"][0].update(sigma=0.7), "curves: sigma 0.7: that of one of the bases is required"),
            (lambda content: content["curves"][1].update(points=[]), "curves: points and needed, as many in each curve, are required"),
            (lambda content: content["curves"][0].update(method="\x1b"), "curves: method '\\x1b': one of lora,"),
            (lambda content: content["curves"][0]["points"][0].update(error=7), "curves: points of errors from 0 to 1"),
            (lambda content: content["curves"][0].update(exponent=1.0), "curves: floor, size and exponent are required together"),
            (lambda content: content["bases"][0].update(error=-1), "bases: errors from 0 to 1"),
            (lambda content: content["trained"].clear(), "trained: lora is missing"),
        ],
    )
    def test_results_that_do_not_fit_together_are_refused(self, finished, tmp_path, change, said):
        content = json.loads((finished / "run" / "results.json").read_text())
        change(content)
        (tmp_path / "results.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=re.escape(said)):
            read_results(tmp_path / "results.json")

    def test_settings_that_cannot_be_used_have_no_page(self, finished, tmp_path, capsys):
        shutil.copytree(finished / "run", tmp_path / "run")
        content = json.loads((tmp_path / "run" / "config.json").read_text())
        content["config"]["grid"]["methods"] = [""]
        (tmp_path / "run" / "config.json").write_text(json.dumps(content))
        code, out, err = call(["report", str(tmp_path / "run")], capsys)
        assert (code, out) == (2, "") and "config.json: --methods : some of lora, " in err

    def test_cells_that_the_run_has_not_are_not_opened(self, finished, tmp_path, capsys):
        import pyarrow.parquet as pq

        shutil.copytree(finished / "run", tmp_path / "run")
        columns = pq.read_table(finished / "run" / "cells.parquet").to_pydict()
        changes = [
            ({"quality": [float("nan")] * 8}, "caulks of lora are not kept"),
            ({"method": ["adapter"] * 8}, "caulks of lora are not kept"),
        ]
        changes += [
            ({"seed": [5] * 8}, "lora-q0-n8-s5.safetensors: cannot be read"),
            ({"error": [float("nan")] * 8}, "its training diverged"),
        ]
        for changed, said in changes:
            pq.write_table(
                pa.table(columns | changed, pq.read_schema(finished / "run" / "cells.parquet")), tmp_path / "run" / "cells.parquet"
            )
            code, _, err = call(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out")], capsys)
            assert code == 2 and said in err

    def test_a_lost_or_damaged_table_of_cells_is_written_again(self, finished, tmp_path, capsys):
        run = tmp_path / "run"
        shutil.copytree(finished / "run", run)
        arguments = self.arguments(finished, run)
        (run / "cells.parquet").write_bytes(b"PAR1")
        code, _, err = call(["export", str(run), "--out", str(tmp_path / "out")], capsys)
        assert code == 2 and err.endswith("resume the run to write it again\n")
        assert call([*arguments, "--resume"], capsys)[0] == 0 and self.content(run) == self.content(finished / "run")
        assert (run / "results.json").read_bytes() == (finished / "run" / "results.json").read_bytes()

    def test_a_finished_run_is_asked_for_other_accuracies_and_trains_nothing(self, finished, tmp_path, capsys, monkeypatch):
        run = tmp_path / "run"
        shutil.copytree(finished / "run", run)
        arguments = self.arguments(finished, run)
        monkeypatch.setattr(GridProgram, "__call__", lambda *given: pytest.fail("a cell was trained"))
        monkeypatch.setattr("perturbjax.caulking.stages.bases_alone", lambda *given: pytest.fail("a base was measured"))
        others = [*arguments[: arguments.index("0.3,0.9")], "0.5", "--resume"]
        code, out, err = call(others, capsys)
        assert code == 0 and "50.0 %" in out and "90.0 %" not in out and "plan" not in err
        assert "--accuracies 0.5" in (page := (run / "report.html").read_text()) and "0.3,0.9" not in page
        before = (run / "report.html").read_bytes()
        assert call(["report", str(run)], capsys)[0] == 0 and (run / "report.html").read_bytes() == before
        assert call([*arguments, "--resume"], capsys)[0] == 0
        for name in ("results.json", "report.html", "config.json", "cells.parquet"):
            assert (run / name).read_bytes() == (finished / "run" / name).read_bytes()

    def test_results_of_another_version_are_written_again(self, finished, tmp_path, capsys):
        run = tmp_path / "run"
        shutil.copytree(finished / "run", run)
        (run / "results.json").write_text((run / "results.json").read_text().replace('"version": 2', '"version": 1'))
        code, _, err = call(["report", str(run)], capsys)
        assert code == 2 and "version 1: this release reads 2; resume the run to write it again" in err.splitlines()[-1]
        assert call([*self.arguments(finished, run), "--resume"], capsys)[0] == 0
        assert (run / "results.json").read_bytes() == (finished / "run" / "results.json").read_bytes()

    def test_a_stopped_run_whose_identity_has_accuracies_goes_on(self, finished, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        arguments = self.arguments(finished, tmp_path)
        del arguments[arguments.index("--out") : arguments.index("--out") + 2]
        with monkeypatch.context() as before, failing_commits(2):
            before.setattr("perturbjax.runs.identity._GIVEN_ANEW", ())
            assert call(arguments, capsys)[0] == 130
        (run,) = (tmp_path / "runs").iterdir()
        assert json.loads((run / "config.json").read_text())["identity"]["accuracies"] == [0.3, 0.9]
        code, _, err = call([*arguments, "--resume"], capsys)
        assert code == 0 and ", 4 left" in err and self.content(run) == self.content(finished / "run")
        code, _, err = call([*arguments[: arguments.index("0.3,0.9")], "0.5", "--resume", "--out", str(run)], capsys)
        assert code == 0 and "plan" not in err and read_results(run / "results.json").accuracies == (0.5,)

    def test_lost_and_damaged_caulks_come_back(self, finished, tmp_path, capsys):
        run = tmp_path / "run"
        shutil.copytree(finished / "run", run)
        files = sorted((finished / "run" / "caulks").iterdir())
        (run / "caulks" / "lora-q0.1-n8-s1.safetensors").unlink()
        (run / "caulks" / "lora-q0-n4-s0.safetensors").write_bytes(b"cut")
        code, _, err = call([*self.arguments(finished, run), "--resume"], capsys)
        assert code == 0 and "lost or damaged are the files of 2 caulks, e.g. lora-q0-n4-s0; what was trained with" in err
        assert "8 cells (lora; 2 bases, 2 numbers of examples, 2 seeds), 2 left" in err
        assert len(files) == 8 and [path.read_bytes() for path in files] == [(run / "caulks" / path.name).read_bytes() for path in files]
        assert (run / "results.json").read_bytes() == (finished / "run" / "results.json").read_bytes()
        assert (run / "metrics.jsonl").read_bytes() == (finished / "run" / "metrics.jsonl").read_bytes()

    def test_an_adapter_of_another_base_is_refused(self, finished, tmp_path, capsys):
        call(["export", str(finished / "run"), "--cell", "lora-q0-n8-s1", "--out", str(tmp_path / "peft")], capsys)
        other = load_model(str(BASE))
        other.params["norm"]["scale"] = other.params["norm"]["scale"] * 2
        with pytest.raises(InputError, match="it was trained on another base"):
            read_adapter(tmp_path / "peft", other)
        assert isinstance(read_adapter(tmp_path / "peft", load_model(str(BASE)))[0], LoRA)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--samples", "4,40"], "--samples 40: even has 15 different ones beside --test-examples 8; ask for fewer of either"),
        (["--samples", "8,4"], "--samples 8,4: growing numbers of examples are required"),
        (["--methods", "lora,magic"], "--methods magic: some of lora, adapter, head, bitfit, full, scratch are required"),
        (["--methods", "lora,head", "--learning-rates", "0.1"], "--learning-rates 0.1: one for each of --methods is required"),
        (["--methods", "bitfit", "--target", "gsm8k"], "--target gsm8k: a task of given answers is required"),
        (["--rank", "4000"], "--rank 4000: at most "),
        (["--methods", "adapter", "--bottleneck", "40"], "--bottleneck 40: at most 32 is required, the hidden size of tiny_llama_tied"),
        (["--sigmas", "0.1,0"], "--sigmas 0.1,0.0: growing numbers of at least 0 are required"),
        (["--accuracies", "80"], "--accuracies 80.0: fractions between 0 and 1 are required"),
        (["--accuracies", "0.5,0.5"], "--accuracies 0.5,0.5: one is named twice"),
        (["--seeds", "1000000"], "--seeds 1000000: 2000000 cells of --methods, --sigmas and --samples; at most 1048576 are required"),
        (["--in-flight", str(10**30)], "--in-flight 1000000000000000000000000000000: at most 2147483647 is required"),
        (["--steps", "100000000"], "--steps 100000000, --batch 8: 800000000 rows are drawn for a cell; at most 67108864 are required"),
        (["--methods", "scratch", "--sigmas", "0,0.1"], "--sigmas 0,0.1: scratch trains no base; leave them out, or add a method"),
        (["--mesh", "1x2"], "--mesh 1x2: cells are sharded, models are not; use DATAx1"),
        (
            ["--target", "OPEN"],
            "--target open: a task of given answers is required, this one generates text; give each of its rows choices",
        ),
        (["--target", "MIXED"], "--target mixed: questions of one number of choices are required, these have 2 to 3"),
    ],
)
def test_bad_settings_are_one_line_and_make_nothing(tmp_path, capsys, flags, said):
    write_questions(tmp_path / "even.jsonl", 24)
    mixed = [{"question": f"{n}?", "answer": "a", "choices": ["a", "b", "c"][: 2 + n % 2]} for n in range(24)]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mixed))
    write_questions(tmp_path / "open.jsonl", 24, choices=False)
    flags = [str(tmp_path / f"{word.lower()}.jsonl") if word in ("MIXED", "OPEN") else word for word in flags]
    common = {"--base": str(BASE), "--target": str(tmp_path / "even.jsonl"), "--samples": "4,8", "--test-examples": "8"}
    given = [word for name in common if name not in flags for word in (name, common[name])]
    code, out, err = call(["caulking", *given, *flags, "--out", str(tmp_path / "run")], capsys)
    assert code == 2 and out == "" and said in err.splitlines()[-1]
    assert not (tmp_path / "run").exists()
