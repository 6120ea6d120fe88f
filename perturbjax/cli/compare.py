"""``perturbjax compare``: the votes of two runs on the same questions, paired."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from perturbjax.cli.outputs import check_file_name
from perturbjax.report.words import count, fact_lines, percent, percent_range, points, points_range, probability
from perturbjax.runs.console import Console


@dataclass(frozen=True)
class CompareConfig:
    """Compare two ensembles (randopt) on the same questions, paired: the difference, its interval, and on how many questions they differ.

    - two runs on one test split: perturbjax compare RUN OTHER
    - what perturbjax evaluate measured as more: perturbjax compare RUN CHOSEN --evaluation more

    Runs that were tested on other questions are refused: their difference would be that of the questions too."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run directory of a finished run."""
    other: Annotated[Path, tyro.conf.Positional]
    """Another one; the difference is this one minus the first."""
    evaluation: str | None = None
    """NAME of the evaluation-NAME files of perturbjax evaluate to compare by; the runs' test questions when left out."""


def run_compare(config: CompareConfig, console: Console) -> None:
    """Read and show."""
    check_file_name("evaluation", config.evaluation)
    from perturbjax.randopt.questions import compare_runs

    found = compare_runs(config.run, config.other, config.evaluation)
    compared = found.comparison
    verdict = {"helped": "the second is better", "hurt": "the first is better", "no clear effect": "no clear difference"}[compared.verdict]
    questions = "test questions" if config.evaluation is None else f"questions of evaluation {config.evaluation}"
    console.line(f"{verdict} on {count(found.n)} {questions}")
    runs = zip(("first", "second"), (config.run, config.other), found.accuracies, found.intervals, found.bases, strict=True)
    for name, run, accuracy, interval, base in runs:
        console.line(f"{name:<7}{percent(accuracy):>8} right  [{percent_range(interval)[:-2]}]  base {percent(base)}  {run}")
    difference = f"{points(compared.difference)} points, 95 % interval {points_range(compared.difference_interval)}"
    alone = f"{count(compared.gained)} where the second scores higher, {count(compared.lost)} where the first does"
    p_value = f"exact test p {'' if compared.p_value < 0.001 else '= '}{probability(compared.p_value)}"
    for line in fact_lines([("second - first", difference), ("they differ on", f"{alone}; {p_value}")]):
        console.line(line)
