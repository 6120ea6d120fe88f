"""``perturbjax randopt``: the whole RandOpt run, from settings to report, resumable at every point."""

from perturbjax.randopt import Config
from perturbjax.runs.console import Console


def run_randopt(config: Config, console: Console) -> None:
    """Run, show the table, say where things are."""
    from perturbjax.randopt.run import run_command

    run_command(config, console)
