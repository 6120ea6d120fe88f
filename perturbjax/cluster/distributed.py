"""Several processes, one search: joining them, and how the others follow process 0.

Process 0 alone decides, writes the files and prints: it reads the run directory and runs the search and the evaluation. The others hold
their share of the mesh and of the score matrix, and wait. What all must do together (a piece of work: scoring a chunk, committing the
state) process 0 first sends to the others, and then all of them do it. So nothing but the engine and the state knows that there are
others, and they cannot disagree about what comes next. Who has died or was told to stop is the business of ``peers``.
"""

from __future__ import annotations

import logging
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from perturbjax.cluster.peers import LINES_S, PEER_LOST, SILENCE_S
from perturbjax.cluster.relay import Relay
from perturbjax.errors import InputError

_log = logging.getLogger(__name__)

CLUSTER = "cluster"
"""Instead of an address: what the cluster's own environment says (Cloud TPU, GKE, SLURM, MPI)."""
ARRIVAL_S = 300
"""How long processes wait for each other at the start, in seconds; those that are there then end with code ``PEER_LOST`` and a line."""
_HEARTBEAT_S = int(4 * SILENCE_S)
"""JAX's own limit, after which it ends the process with a fatal log; ``peers`` is to be first."""
_LEAST_BYTES = 1 << 12


def join(coordinator: str, num_processes: int | None, process_id: int | None) -> str:
    """Joins the other processes, before jax is used for anything; waits for them for ``ARRIVAL_S`` seconds.

    Args:
        coordinator: HOST:PORT of process 0, or ``CLUSTER``.
        num_processes, process_id: how many there are and which one this is, from 0; found out from the cluster where None.

    Returns:
        The host of process 0.

    Raises:
        InputError: they cannot be joined; says which address was tried.
    """
    import jax

    from perturbjax import _compat

    # Of CPU devices alone; on others the setting is not looked at.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Its handler would swallow SIGTERM from here on; ``commands.preemption`` has its own.
    jax.config.update("jax_enable_preemption_service", False)
    local_devices = None
    address = coordinator
    if coordinator == CLUSTER:
        try:
            address, num_processes, process_id, local_devices = _compat.detect_cluster(ARRIVAL_S)
        except RuntimeError as error:
            raise InputError(f"--coordinator {CLUSTER}: {error}") from error
        if address is None or num_processes is None or process_id is None:
            raise InputError(f"--coordinator {CLUSTER}: no cluster found; give --coordinator HOST:PORT")
    host, port = address.rsplit(":", 1)
    if process_id != 0:
        address = Relay(host, int(port), ARRIVAL_S).address
    who = f"process {process_id} of {num_processes}"
    try:
        with _patience(who, f"{host}:{port}"):
            jax.distributed.initialize(
                address,
                num_processes,
                process_id,
                local_devices,
                initialization_timeout=2 * ARRIVAL_S,
                heartbeat_timeout_seconds=_HEARTBEAT_S,
                shutdown_timeout_seconds=int(LINES_S),
            )
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise InputError(f"--coordinator {coordinator}: {who} cannot join at {host}:{port} ({reason})") from error
    return host


@contextmanager
def _patience(who: str, where: str) -> Iterator[None]:
    """Ends the process if the block takes longer than ``ARRIVAL_S``: JAX would end it too, with a fatal log."""

    def give_up() -> None:
        _log.error("%s: not all processes met at %s within %d s; start all of them, with the same --coordinator", who, where, ARRIVAL_S)
        os._exit(PEER_LOST)

    timer = threading.Timer(ARRIVAL_S, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def is_main() -> bool:
    """Whether this is process 0, which decides, writes and prints; where there is only one, it is."""
    import jax

    return jax.process_index() == 0


def share(value: Any = None) -> Any:
    """Gives every process the value that process 0 has; the others' arguments are not looked at. All processes must call it.

    The processes are one program that somebody started as one, so what they send each other is trusted (it is a pickle).
    """
    from jax.experimental import multihost_utils

    content = np.frombuffer(pickle.dumps(value), np.uint8) if is_main() else np.zeros(0, np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(content.size)))
    # Few sizes, because each is a program of its own.
    room = max(_LEAST_BYTES, 1 << (length - 1).bit_length())
    padded = np.zeros(room, np.uint8)
    padded[: content.size] = content
    return pickle.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8)[:length].tobytes())


class Team:
    """Process 0 and those that follow it. With one process, nothing is ever sent."""

    def __init__(self) -> None:
        import jax

        self._alone = jax.process_count() == 1

    def announce(self, kind: str, work: Any) -> None:
        """On process 0: the others get ``work``, and do it now, as ``follow`` was told to do that kind."""
        if not self._alone and is_main():
            share((kind, work))

    def follow(self, duties: Mapping[str, Callable[[Any], Any]]) -> None:
        """On the others: does what process 0 announces, one after the other, until it has finished. ``duties``: kind -> how."""
        while (order := share()) is not None:
            kind, work = order
            duties[kind](work)

    @contextmanager
    def leading(self) -> Iterator[None]:
        """On process 0: the others are sent home when the block ends. Not if it fails: they may be in the middle of something, and have to
        be ended from outside (``peers.Peers``)."""
        yield
        if not self._alone and is_main():
            share(None)
