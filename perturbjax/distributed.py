"""Several processes, one search: joining them, and how the others follow process 0.

Process 0 alone decides, writes and prints: it reads the run directory, runs the search and the evaluation, and keeps the state. The others
hold their share of the mesh and wait. What needs the devices of all (``Engine`` calls it a piece of work) process 0 first sends to the
others, and then all of them do it together. So nothing but the engine knows that there are others, and they cannot disagree about what
comes next.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from perturbjax.errors import InputError

CLUSTER = "cluster"
"""Instead of an address: what the cluster's own environment says (Cloud TPU, GKE, SLURM, MPI)."""
_LEAST_BYTES = 1 << 12


def join(coordinator: str, num_processes: int | None, process_id: int | None) -> None:
    """Joins the other processes, before jax is used for anything.

    Args:
        coordinator: HOST:PORT of process 0, or ``CLUSTER``.
        num_processes, process_id: how many there are and which one this is, from 0; found out from the cluster where None.

    Raises:
        InputError: they cannot be joined; says which address was tried.
    """
    import jax

    # Of CPU devices alone; on others the setting is not looked at.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        if coordinator == CLUSTER:
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(coordinator, num_processes, process_id)
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        if coordinator == CLUSTER:
            raise InputError(f"--coordinator {CLUSTER}: no cluster found ({reason}); give --coordinator HOST:PORT") from error
        raise InputError(f"--coordinator {coordinator}: process {process_id} of {num_processes} cannot join ({reason})") from error


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

    def announce(self, work: Any) -> None:
        """On process 0: the others get ``work`` from ``orders``, and will do it now."""
        if not self._alone and is_main():
            share(work)

    def orders(self) -> Iterator[Any]:
        """On the others: what process 0 announces, one after the other, until it has finished."""
        while (work := share()) is not None:
            yield work

    @contextmanager
    def leading(self) -> Iterator[None]:
        """On process 0: the others are sent home when the block ends, however it ends."""
        try:
            yield
        finally:
            if not self._alone and is_main():
                share(None)
