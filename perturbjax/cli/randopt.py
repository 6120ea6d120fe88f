"""``perturbjax randopt``: the whole RandOpt run, on one process or several."""

import inspect
import logging
from collections.abc import Callable
from typing import Any

from perturbjax.cli.arguments import with_flags
from perturbjax.cluster.peers import Peers
from perturbjax.cluster.preemption import cluster_run
from perturbjax.noise import DISTRIBUTIONS
from perturbjax.randopt import Config
from perturbjax.runs.compile_cache import use_compile_cache
from perturbjax.runs.config import Machine
from perturbjax.runs.console import Console
from perturbjax.tasks import TASK_NAMES

_TASKS = [*(name for name in TASK_NAMES if not name.startswith("mmlu:")), "mmlu:<subject>"]
_NOISES = [f"{name} ({record.help})" for name, record in DISTRIBUTIONS.items()]
# The help is the docstring, and the tables of tasks and distributions. Not in config.py: `import perturbjax` does without the tasks.
Config.__doc__ = f"{inspect.cleandoc(Config.__doc__ or '')}\n\nTasks: {', '.join(_TASKS)}.\nKinds of noise: {', '.join(_NOISES)}."


def run_randopt(config: Config, console: Console) -> None:
    """Run; SIGTERM, or the loss of another process, ends it with a line and a code of its own."""
    config.validate()
    from perturbjax.randopt.stages import run

    in_cluster(config.machine, console, lambda peers: run(config, console, peers))


def in_cluster(machine: Machine, console: Console, work: Callable[[Peers], Any]) -> None:
    """``work`` as one of the processes of a run."""
    # Orbax logs a failed write or read with the tracebacks of all its threads; the error itself comes to us.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)

    def say(text: str) -> None:
        console.note(with_flags(text, ()))

    with cluster_run(say, machine.coordinator, machine.num_processes, machine.process_id) as peers:
        use_compile_cache(machine.compile_cache, console)
        work(peers)
