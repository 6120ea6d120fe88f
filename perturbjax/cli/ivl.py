"""``perturbjax ivl``: train a value network, on one process or several."""

from perturbjax.cli.randopt import in_cluster
from perturbjax.ivl import Config
from perturbjax.runs.console import Console


def run_ivl(config: Config, console: Console) -> None:
    """Run; SIGTERM, or the loss of another process, ends it with a line and a code of its own."""
    config.validate()
    from perturbjax.ivl.stages import run

    in_cluster(config.machine, console, lambda peers: run(config, console, peers))
