"""``perturbjax vpretrain``: pretrain a model further on designed targets, on one process or several."""

from perturbjax.cli.randopt import in_cluster
from perturbjax.runs.console import Console
from perturbjax.vpretrain import Config


def run_vpretrain(config: Config, console: Console) -> None:
    """Run; SIGTERM, or the loss of another process, ends it with a line and a code of its own."""
    config.validate()
    from perturbjax.vpretrain.stages import run

    in_cluster(config.machine, console, lambda peers: run(config, console, peers))
