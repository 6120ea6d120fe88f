"""What systems scored on each question: test.parquet of a run, evaluation-NAME.parquet of an evaluation; and two runs compared by them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from perturbjax.errors import InputError
from perturbjax.report import Comparison, comparison
from perturbjax.report.accounting import wilson
from perturbjax.report.schema import Interval
from perturbjax.runs.files import read_columns, write_atomically
from perturbjax.runs.rundir import RunDirectory
from perturbjax.tasks.base import Example
from perturbjax.tasks.splits import same_question_key
from perturbjax.tree import derived_seed, digest

BASE, RANDOPT = "base", "randopt"
_KINDS = {"id": pa.string(), "question": pa.string(), BASE: pa.float32(), RANDOPT: pa.float32()}
_SCHEMA = pa.schema([pa.field(name, kind, nullable=False) for name, kind in _KINDS.items()])


@dataclass(frozen=True)
class QuestionScores:
    """Scores on B questions.

    Attributes:
        ids: (B,) of the examples.
        questions: (B,) digests of what is asked and what is right: equal for the same question, whatever its id.
        base, randopt: (B,) float32 strict scores of the unperturbed model and of the ensemble's vote.
    """

    ids: np.ndarray
    questions: np.ndarray
    base: np.ndarray
    randopt: np.ndarray


@dataclass(frozen=True)
class RunComparison:
    """Two runs on the same questions.

    Attributes:
        n: questions.
        accuracies: of the first and of the second ensemble; ``intervals``: their Wilson intervals; ``bases``: accuracies of their bases.
        comparison: the second beside the first, paired.
    """

    n: int
    accuracies: tuple[float, float]
    intervals: tuple[Interval, Interval]
    bases: tuple[float, float]
    comparison: Comparison


def write_question_scores(path: Path, examples: Sequence[Example], scores: Mapping[str, np.ndarray]) -> None:
    """Writes a row for each example, atomically: id, question and the score of each system, ``BASE`` and ``RANDOPT`` among them."""
    questions = [digest([*same_question_key(example), example.answer]) for example in examples]
    columns = {name: np.asarray(values, np.float32) for name, values in scores.items()}
    table = pa.table({"id": [example.id for example in examples], "question": questions, **columns})
    write_atomically(path, lambda file: pq.write_table(table, file, compression="zstd"))


def read_question_scores(path: Path) -> QuestionScores:
    """What ``write_question_scores`` wrote.

    Raises:
        InputError: the file is damaged, or says what it cannot.
    """
    table = read_columns(path, _SCHEMA, "measure again to write it anew")
    found = QuestionScores(*(table[name].to_numpy() for name in _SCHEMA.names))
    for scores in (found.base, found.randopt):
        if table.num_rows < 1 or not ((scores >= 0) & (scores <= 1)).all():
            raise InputError(f"{path}: rows, and scores from 0 to 1, are required; measure again to write it anew")
    return found


def compare_runs(first: str | Path, second: str | Path, evaluation: str | None = None) -> RunComparison:
    """The votes of two runs on the test questions, or on those of an evaluation, paired by question.

    Args:
        first, second: the run directories, which are not changed.
        evaluation: the NAME of the evaluation-NAME.parquet in both; the test split when None.

    Raises:
        InputError: nothing was measured there, or on other questions.
    """
    paths = [_measured(RunDirectory(Path(run)), evaluation) for run in (first, second)]
    one, other = (_by_question(read_question_scores(path)) for path in paths)
    if one.questions.tolist() != other.questions.tolist():
        alone = [len(np.setdiff1d(mine.questions, theirs.questions)) for mine, theirs in ((one, other), (other, one))]
        which = f"{alone[0]} of {len(one.ids)} are in {first} alone, {alone[1]} of {len(other.ids)} in {second} alone"
        same = "compare runs with equal `task`, `seed` and `test_examples`" if evaluation is None else "evaluate both on the same ones"
        raise InputError(f"the questions differ: {which}; {same}")
    n = len(one.ids)
    sums = [float(found.randopt.sum(dtype=np.float64)) for found in (one, other)]
    return RunComparison(
        n=n,
        accuracies=(sums[0] / n, sums[1] / n),
        intervals=(wilson(sums[0], n), wilson(sums[1], n)),
        bases=(float(one.base.mean(dtype=np.float64)), float(other.base.mean(dtype=np.float64))),
        comparison=comparison(other.randopt, one.randopt, derived_seed(0, "bootstrap")),
    )


def _by_question(found: QuestionScores) -> QuestionScores:
    order = np.argsort(found.questions, kind="stable")
    return QuestionScores(*(values[order] for values in vars(found).values()))


def _measured(directory: RunDirectory, evaluation: str | None) -> Path:
    """The file of a run's measurement."""
    if (chapter := directory.chapter) != "randopt":
        raise InputError(f"{directory.path}: a run of {chapter}; two runs of randopt are required")
    path = directory.test if evaluation is None else directory.evaluation(evaluation).with_suffix(".parquet")
    if path.is_file():
        return path
    if evaluation is not None:
        raise InputError(f"{directory.path}: no {path.name}; write it with: perturbjax evaluate {directory.path} --name {evaluation}")
    if directory.selection.exists():
        again = f"perturbjax evaluate {directory.path} --name NAME, and compare with `evaluation` NAME"
        raise InputError(f"{directory.path}: made by perturbjax select, without a test; measure both with: {again}")
    directory.check_finished()
    again = f"delete its results.json and continue it with: perturbjax randopt ... --out {directory.path} --resume"
    raise InputError(f"{directory.path}: no {path.name}, the run is older than this file; {again}")
