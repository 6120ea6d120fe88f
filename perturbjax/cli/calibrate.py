"""``perturbjax calibrate``: a sigma for this model, noise and task, without labels."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from perturbjax.cli.outputs import check_new_file
from perturbjax.cli.randopt import in_cluster
from perturbjax.cluster import is_main
from perturbjax.records import to_json
from perturbjax.report.words import count, fact_lines, percent
from perturbjax.runs.console import SILENT, Console
from perturbjax.runs.files import write_json
from perturbjax.studies import Config, calibrate

if TYPE_CHECKING:
    from perturbjax.inference.calibration import Calibration, Point


@dataclass(frozen=True)
class CalibrateConfig:
    """Choose a sigma for a model, a noise and the prompts of a task, without labels.

    - for the default search: perturbjax calibrate
    - for another noise: perturbjax calibrate --noise rademacher --rank 1
    - R of the modular scale: perturbjax calibrate --scale modular
    - in a search, at once: perturbjax randopt --sigmas auto

    The rule: the literature's best sigma is 5e-4, isotropic, on Qwen2.5 of 1.5B to 7B. That noise is put on this model, and the sigma
    chosen is the one with which the wanted noise changes the next token after a prompt as much: the same KL from the base and the same
    relative change of the hidden state. For isotropic noise it is 5e-4 by definition.

    What it cannot know: whether any candidate is better than the base, and whether 5e-4 is right for this model and task. No label is
    read. A search says by itself whether it can rank its candidates."""

    study: Config = field(default_factory=Config)
    out: Path | None = None
    """JSON file to write; replaced if it exists. Only shown when left out."""


def run_calibrate(config: CalibrateConfig, console: Console) -> None:
    """Measure, show, and write where that was asked for."""
    config.study.validate()
    if config.out is not None:
        check_new_file(config.out)

    def work(_: object) -> None:
        found = calibrate(config.study, console if is_main() else SILENT)
        if not is_main():
            return
        for line in calibration_lines(found):
            console.line(line)
        if config.out is None:
            console.line("nothing was written; give --out to keep this")
            return
        write_json(config.out, {"config": to_json(config.study), "calibration": to_json(found)})
        console.line(f"written to {config.out}")

    in_cluster(config.study.machine, console, work)


def calibration_lines(found: "Calibration") -> Iterator[str]:
    """The curve, the choice, the flat range, and what a search would get."""
    yield f"next token after {count(found.prompts)} prompts, {count(found.candidates)} candidates of each sigma; no label was read"
    yield f"{'sigma':>12}  {'KL (nats)':>9}  {'95 % interval':<18}  {'hidden':>7}  {'argmax changed':>14}"
    yield f"{_figures(found.reference)}  reference: isotropic"
    for point in found.points:
        yield _figures(point)
    low, high = found.flat
    yield from fact_lines(
        [
            ("same KL at", f"{found.by_kl:.2g}"),
            ("same hidden at", f"{found.by_hidden:.2g}"),
            ("choice", f"{found.choice:g}"),
            ("flat from", f"{low:.2g} to {high:.2g} of the sigmas measured: the model changes in proportion there"),
            ("sigmas of a search", ",".join(f"{sigma:g}" for sigma in found.sigmas)),
        ]
    )
    yield "The rule matches 5e-4, isotropic, the literature's best on Qwen2.5 1.5B to 7B; it cannot know whether that is best here."


def _figures(point: "Point") -> str:
    low, high = point.kl_interval
    interval = f"{low:.1e} to {high:.1e}"
    return f"{point.sigma:>12.3g}  {point.kl:>9.2e}  {interval:<18}  {percent(point.hidden):>7}  {percent(point.changed):>14}"
