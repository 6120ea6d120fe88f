"""``perturbjax report``: the page of a finished run once more, from the files of its directory."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from perturbjax.errors import InputError
from perturbjax.runs.console import Console
from perturbjax.runs.files import write_fault
from perturbjax.runs.rundir import RunDirectory

CHAPTERS = ("randopt", "ivl", "vpretrain", "caulking")
"""Each has ``write_report``, ``results_table`` and ``read_results`` in files of the same names."""


@dataclass(frozen=True)
class ReportConfig:
    """Write the page of a finished run again (RUN/report.html, RUN/plots) and show its table; nothing is computed again.

    perturbjax report RUN

    Takes a run of any chapter. Of a value network (ivl) the page has what perturbjax evaluate measured since."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run directory of a finished run."""


def run_report(config: ReportConfig, console: Console) -> None:
    """Write and show."""
    directory = RunDirectory(config.run)
    chapter = directory.chapter
    if chapter not in CHAPTERS:
        raise InputError(f"{directory.config}: chapter {chapter[:80]!r}: one of {', '.join(CHAPTERS)} is required")
    if directory.selection.exists():
        raise InputError(f"{config.run}: made by perturbjax select, without a test; measure it with: perturbjax evaluate {config.run}")
    directory.check_finished()
    if fault := write_fault(config.run):
        raise InputError(f"{config.run}: {fault}; copy the run to a place that can be written")
    report, table, results = (importlib.import_module(f"perturbjax.{chapter}.{name}") for name in ("report", "results_table", "results"))
    with directory.locked():
        page = report.write_report(config.run)
    console.line(table.results_table(results.read_results(directory.results)))
    console.line()
    console.line(f"report  {page.absolute()}")
