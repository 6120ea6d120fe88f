"""``perturbjax consolidate``: one model of the ensemble of a run."""

from pathlib import Path

from perturbjax.cli.randopt import in_cluster
from perturbjax.consolidate import Config
from perturbjax.errors import InputError
from perturbjax.runs.config import Machine
from perturbjax.runs.console import Console


def run_consolidate(config: Config, console: Console) -> None:
    """Run; SIGTERM ends it with a line and a code of its own."""
    config.validate()
    from perturbjax.consolidate.stages import run

    in_cluster(Machine(compile_cache=config.compile_cache), console, lambda peers: run(config, console, peers))


def refuse_consolidated(run: Path, chapter: str) -> None:
    """Raise ``InputError`` for what ``perturbjax consolidate`` made, which is a model and no run."""
    if chapter == "consolidate":
        there = (run / "model").exists()
        what = f"its model is {run / 'model'}, which `model` of a search takes" if there else "it has no model: its result is the base"
        raise InputError(f"{run}: made by perturbjax consolidate; {what}")
