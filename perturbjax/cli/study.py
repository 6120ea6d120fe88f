"""``perturbjax study``: what RandOpt's papers claim, tested; a table, a sentence, a figure and a JSON file each."""

import importlib
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Union

import tyro

from perturbjax.cli.outputs import check_outside, check_population
from perturbjax.cli.randopt import in_cluster
from perturbjax.cluster import is_main
from perturbjax.errors import InputError
from perturbjax.records import to_json
from perturbjax.runs.config import Machine
from perturbjax.runs.console import SILENT, Console
from perturbjax.runs.files import write_fault, write_json
from perturbjax.runs.machine import require
from perturbjax.studies import density, discordance, linearity, rivals, scaling, screening, signals


@dataclass(frozen=True)
class SignalsConfig:
    """1-D signals: what pretraining makes of the neighborhood of a network's weights.

    - perturbjax study signals
    - a quick look: perturbjax study signals --seeds 2 --population 200

    A small network predicts the next value of a signal. Around an untrained, a narrowly and a widely pretrained base, candidates are scored
    on a few signals, and the best forecast together, beside as many random ones. Names each neighborhood needle, plateau or thicket."""

    study: signals.Config = field(default_factory=signals.Config)
    out: Path | None = None
    """Directory for signals.png and signals.json, replaced if they exist; runs/studies when left out."""


@dataclass(frozen=True)
class DensityConfig:
    """Density: the share of candidates that beat the base by a margin, and how much of it is luck.

    - of a search: perturbjax study density RUN
    - by group of parameters: perturbjax study density --model smollm2-135m --task sst2 --groups all,embedding,attention,mlp,norms

    Every share stands beside what is left of it without the noise of the questions: candidates chosen on one half of them and measured on
    the other, which luck does not survive."""

    study: density.Config = field(default_factory=density.Config)
    out: Path | None = None
    """Directory for density.png and density.json, replaced if they exist; RUN-studies, or runs/studies without RUN, when left out."""


@dataclass(frozen=True)
class ScalingConfig:
    """N and K: what more candidates and more votes of a search are worth, and why a vote gains.

    perturbjax study scaling RUN

    Nested prefixes of the population, from its recorded scores; votes of the best and of as many that nobody chose, on questions of the
    test split; their difference by support (more right members) and by voting (better use of them). It wants a search that asked all
    candidates the same questions: perturbjax randopt --racing off"""

    study: scaling.Config
    out: Path | None = None
    """Directory for scaling.png and scaling.json, replaced if they exist; RUN-studies when left out."""


@dataclass(frozen=True)
class DiscordanceConfig:
    """Discordance: whether candidates that are good at one task are others than those that are good at the next.

    perturbjax study discordance --tasks sst2,rte,arc_easy,boolq

    D is 1 less the mean correlation of the tasks' rankings of the same candidates. Noise drives it to 1, so it stands beside that of two
    halves of the same task."""

    study: discordance.Config = field(default_factory=discordance.Config)
    out: Path | None = None
    """Directory for discordance.png and discordance.json, replaced if they exist; runs/studies when left out."""


@dataclass(frozen=True)
class LinearityConfig:
    """Linearity: how well one backward pass predicts what noise does to a model's log-odds.

    - perturbjax study linearity
    - small noise in the MLPs alone: perturbjax study linearity --groups mlp --sigmas 0.0005,0.001

    The gradient of the mean log-odds times the noise, beside the change measured on the same questions: r, by group and sigma."""

    study: linearity.Config = field(default_factory=linearity.Config)
    out: Path | None = None
    """Directory for linearity.png and linearity.json, replaced if they exist; runs/studies when left out."""


@dataclass(frozen=True)
class ScreeningConfig:
    """Screening: whether one gradient finds the candidates that a search would have to run to find.

    - perturbjax study screening
    - a huge population: perturbjax study screening --population 100000

    Every candidate's inner product with a gradient, without running it (at rank 1 about one token's forward pass each); then random and
    promising ones answer the gradient's questions and others: correlation, recall of the true top K, gain, and what it costs."""

    study: screening.Config = field(default_factory=screening.Config)
    out: Path | None = None
    """Directory for screening.png and screening.json, replaced if they exist; runs/studies when left out."""


@dataclass(frozen=True)
class RivalsConfig:
    """Rivals: what else the tokens of a search could have bought, on the same questions.

    - perturbjax study rivals
    - a quick look: perturbjax study rivals --tasks sst2 --candidates 16 --search-examples 16 --screen 500

    The vote of a plain search, of one that is screened by a gradient, evolution strategies, one gradient step, SFT and GRPO, at equal
    cost: choices on select questions, one look at the test questions, paired intervals against the base and the plain search."""

    study: rivals.Config = field(default_factory=rivals.Config)
    out: Path | None = None
    """Directory for rivals.png and rivals.json, replaced if they exist; runs/studies when left out."""


STUDIES: Mapping[str, type] = {
    "signals": SignalsConfig,
    "density": DensityConfig,
    "scaling": ScalingConfig,
    "discordance": DiscordanceConfig,
    "linearity": LinearityConfig,
    "screening": ScreeningConfig,
    "rivals": RivalsConfig,
}
"""Name -> command; ``perturbjax.studies`` has a module of each name: ``run``, ``table``, and ``plots.plot_NAME``."""


def _member(name: str, kind: type) -> Any:
    return Annotated[kind, tyro.conf.subcommand(name, prefix_name=False, description=kind.__doc__)]


@dataclass(frozen=True)
class StudyConfig:
    """Test what RandOpt's papers claim: a table, a sentence, a figure and a JSON file each.

    - the first to try, without a model or data: perturbjax study signals
    - what a study does: perturbjax study signals --help"""

    command: Union[tuple(_member(name, kind) for name, kind in STUDIES.items())]  # type: ignore[valid-type]  # noqa: UP007
    """Which."""


def run_study(config: StudyConfig, console: Console) -> None:
    """Run, show and write."""
    command: Any = config.command
    name = next(name for name, kind in STUDIES.items() if type(command) is kind)
    study = command.study
    study.validate()
    run = getattr(study, "run", None)
    if run is not None:
        check_population(run, f"study {name}")
    beside = Path("runs", "studies") if run is None else run.resolve().with_name(f"{run.resolve().name}-studies")
    out = beside if command.out is None else command.out
    if run is not None:
        check_outside(out, run)
    require("matplotlib")
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if fault := "not a directory" if not there.is_dir() else write_fault(there):
        raise InputError(f"`out` {out}: {there}: {fault}; give another directory")
    module = importlib.import_module(f"perturbjax.studies.{name}")

    def work(_: object) -> None:
        found = module.run(study, console if is_main() else SILENT)
        if not is_main():
            return
        out.mkdir(parents=True, exist_ok=True)  # not before: what is refused leaves nothing
        plot: Callable[[Path, Any], None] = getattr(importlib.import_module("perturbjax.studies.plots"), f"plot_{name}")
        plot(out / f"{name}.png", found)
        again = " ".join(["perturbjax study", name, *([shlex.quote(str(run))] if run else []), *flags(study)])
        write_json(out / f"{name}.json", {"command": again, "results": to_json(found), "sentence": found.sentence})
        for line in module.table(found):
            console.line(line)
        for line in ("", found.sentence, "", f"figure   {out / f'{name}.png'}", f"results  {out / f'{name}.json'}", f"command  {again}"):
            console.line(line)

    in_cluster(getattr(study, "machine", Machine()), console, work)


def flags(config: Any) -> Iterator[str]:
    """The flags with which a command has this configuration: fields that differ from their defaults."""
    for each in fields(config):
        value = getattr(config, each.name)
        if is_dataclass(value):
            yield from flags(value)
        elif each.name != "run" and value != each.default:
            shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            yield f"--{each.name.replace('_', '-')} {shlex.quote(shown)}"
