"""One whole search on a model of random weights: the battery of chapters, and the members rebuilt in a fresh process."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.chapter import ChapterBattery
from support.cli_tiny import MODEL, search_arguments, search_settings, write_questions
from support.configs import config_of
from support.paths import SCRIPTS

from perturbjax import randopt
from perturbjax.errors import InputError
from perturbjax.randopt.entries import CONTROLS
from perturbjax.randopt.reselection import reselect
from perturbjax.randopt.results import read_results
from perturbjax.randopt.stages import prepare_all
from perturbjax.tasks import load_task
from perturbjax.tasks.splits import make_splits

pytestmark = pytest.mark.usefixtures("optimized")


class TestRandOpt(ChapterBattery):
    compared = ("candidates.parquet", "ensemble.json", "test.parquet")
    commits = 3

    @classmethod
    def prepare(cls, folder: Path) -> None:
        write_questions(folder / "even.jsonl", 24)

    @classmethod
    def arguments(cls, folder: Path, out: Path) -> list[str]:
        return search_arguments(folder / "even.jsonl", out)

    @classmethod
    def run(cls, folder: Path, out: Path, resume: bool = False) -> Any:
        config = config_of(model=str(MODEL), task=str(folder / "even.jsonl"), out=out, resume=resume, **search_settings())
        return randopt.run(config)

    def test_members_rebuilt_from_ensemble_json_in_fresh_processes_score_the_same(self, finished):
        script = SCRIPTS / "check_rebuild.py"
        done = subprocess.run([sys.executable, script, finished / "run", "--members", "2"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("equal to the run's") == 4

    def test_choosing_again_by_the_same_rules_chooses_the_same(self, finished):
        found, ensemble = reselect(finished / "run")
        selection = read_results(finished / "run" / "results.json").selection
        assert (found.way.sigma, found.K) == (selection.sigma, selection.K)
        assert found.by_k == selection.candidates.K and [w.accuracy for w in found.tried] == [
            o.accuracy for o in selection.candidates.sigma
        ]
        ensemble.save(finished / "again.json")
        assert (finished / "again.json").read_bytes() == (finished / "run" / "ensemble.json").read_bytes()

    def test_scores_by_question_are_those_of_the_results(self, finished):
        results, table = read_results(finished / "run" / "results.json"), pq.read_table(finished / "run" / "test.parquet")
        entries = {"randopt": results.chosen, **{name: getattr(results, name) for name in ("base", *CONTROLS)}}
        assert {*table.column_names} == {"id", "question", *entries}
        for name, entry in entries.items():
            assert table[name].to_numpy().mean(dtype=np.float64) == pytest.approx(entry.accuracy)


def test_a_prompt_that_is_too_long_under_a_template_of_the_controls_says_who_asks_it(tmp_path):
    write_questions(tmp_path / "q.jsonl", 24)
    task = load_task(str(tmp_path / "q.jsonl"))
    parts: Any = SimpleNamespace(task=task, splits=make_splits(task.examples(), 8, 8, 8, 0), template=task.templates[0])
    whose = "; whatever `template` says, a control asks the base under all of the task's"
    for long, said in zip(task.templates[:2], ("", whose), strict=True):

        def prepare(examples, template, long=long):
            if template is long:
                raise InputError("too long")

        engine: Any = SimpleNamespace(prepare=prepare)
        with pytest.raises(InputError, match=f"^too long{said}$"):
            prepare_all(parts, engine)
