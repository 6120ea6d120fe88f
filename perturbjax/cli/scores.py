"""``perturbjax scores``: what every candidate of a population scored on every example, in a file for other programs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from perturbjax.cli.outputs import check_new_file, check_outside, check_population
from perturbjax.runs.console import Console


@dataclass(frozen=True)
class ScoresConfig:
    """Write what every candidate of a population scored on every search question.

    - for numpy: perturbjax scores RUN --out scores.npz
    - for pandas and the like, a row for each score: perturbjax scores RUN --out scores.parquet

    The search may have ended, been stopped, or be in progress. Arrays of the .npz: scores (candidates x examples, NaN where a candidate was
    not asked), index, sigma and seed of the candidates, example (ids) and split. From Python: perturbjax.randopt.read_scores(RUN)."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run directory of a search (randopt)."""
    out: Path
    """File to write, .npz or .parquet; replaced if it exists."""
    trust: tuple[str, ...] = ()
    """As for perturbjax evaluate."""


def run_scores(config: ScoresConfig, console: Console) -> None:
    """Read, write, say how much there was."""
    check_population(config.run, "scores")
    from perturbjax.randopt.scores import check_format, read_scores, write_scores
    from perturbjax.report.words import count, percent

    check_format(config.out)
    check_new_file(config.out)
    check_outside(config.out, config.run)
    scores = read_scores(config.run, config.trust, console)
    write_scores(config.out, scores)
    candidates, examples = scores.scores.shape
    whole = int(scores.asked.all(axis=1).sum())
    console.line(
        f"{count(candidates)} candidates x {count(examples)} examples, {percent(scores.asked.mean())} scored; "
        f"{count(whole)} candidates answered everything"
    )
    console.line(f"written to {config.out}")
