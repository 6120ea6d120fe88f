"""Joining the processes of a run, and what they tell each other.

Every process runs the same program on the same data (SPMD). What only process 0 can know (the file system, what a user's task code says)
it broadcasts. So all processes call the functions here at the same places, in the same order, and from their main threads: each is a
collective on the devices. Only bytes of arrays and JSON are sent; nothing is unpickled. With one process nothing is sent.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from numpy.typing import ArrayLike

from perturbjax import _compat
from perturbjax.cluster.relay import relay
from perturbjax.errors import InputError, first_line

_log = logging.getLogger(__name__)

CLUSTER = "cluster"
"""Instead of an address: what the cluster's own environment says (Cloud TPU, GKE, SLURM, MPI)."""
PEER_LOST = 69
"""Exit code (EX_UNAVAILABLE of sysexits.h) of a process whose peer has died or cannot be reached: the same command with --resume goes on,
once the machine is back or without it. Not 75: nobody asked this run to stop, and whoever restarts it may want to look first."""
TIMEOUT_S = 30.0
"""How long a process may be silent. One that is killed is noticed at once, because its connection breaks; this is for one that hangs."""
CONNECT_S = 60.0
"""How long the connections of the heartbeats may take, once all processes have joined."""
ARRIVAL_S = 300
"""How long the processes wait for each other at the start, in seconds; then each that is there says so and ends with ``PEER_LOST``."""
MAX_JSON_BYTES = 1 << 28
_FIRST_BYTES = 1 << 12
"""Of the first message of a JSON value. It holds most values whole, and its size is always the same: each size is a compiled program."""
_LENGTH_BYTES = 8


def join(coordinator: str, num_processes: int | None, process_id: int | None) -> str:
    """Joins the other processes of the run and waits for them, for ``ARRIVAL_S`` seconds; comes before any other use of jax.

    Args:
        coordinator: HOST:PORT of process 0, or ``CLUSTER``.
        num_processes, process_id: how many there are and which one this is, from 0; taken from the cluster's environment where None.

    Returns:
        The host of process 0.

    Raises:
        InputError: the processes cannot be joined; names the address that was tried.
    """
    # Only for CPU devices; ignored on others.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX's handler of SIGTERM would replace ``preemption``'s.
    jax.config.update("jax_enable_preemption_service", False)
    address, local_devices = coordinator, None
    if coordinator == CLUSTER:
        try:
            found, num_processes, process_id, local_devices = _compat.detect_cluster(ARRIVAL_S)
        except RuntimeError as error:
            raise InputError(f"`coordinator` {CLUSTER}: {error}") from error
        if found is None or num_processes is None or process_id is None:
            raise InputError(f"`coordinator` {CLUSTER}: no cluster found; give `coordinator` HOST:PORT")
        address = found
    host, port = address.rsplit(":", 1)
    if process_id != 0:
        address = relay(host, int(port), ARRIVAL_S)
    who = f"process {process_id} of {num_processes}"

    def give_up() -> None:
        where = f"{host}:{port} within {ARRIVAL_S} s"
        _log.error("%s: not all processes met at %s; start all of them, with the same --coordinator", who, where)
        os._exit(PEER_LOST)

    timer = threading.Timer(ARRIVAL_S, give_up)
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            address,
            num_processes,
            process_id,
            local_devices,
            # JAX ends a process whose time is up with a fatal log; the timer here and ``peers`` are to be first.
            initialization_timeout=2 * ARRIVAL_S,
            heartbeat_timeout_seconds=int(4 * TIMEOUT_S),
            shutdown_timeout_seconds=int(CONNECT_S),
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(f"`coordinator` {coordinator}: {who} cannot join at {host}:{port} ({first_line(error)})") from error
    finally:
        timer.cancel()
    return host


def is_main() -> bool:
    """Whether this is process 0, which writes and prints; the only process of a run is."""
    return jax.process_index() == 0


def broadcast(array: np.ndarray) -> np.ndarray:
    """Process 0's array, on every process. All pass an array of the same shape and dtype; only process 0's values are read."""
    if jax.process_count() == 1 or array.size == 0:
        return array
    return np.frombuffer(_broadcast_bytes(array.tobytes(), array.nbytes), array.dtype).reshape(array.shape)


def gather(array: ArrayLike) -> np.ndarray:
    """The arrays of all P processes, (P, ...), on every process. All pass an array of the same shape and dtype, of at most 32 bits."""
    array = np.asarray(array)
    return array[None] if jax.process_count() == 1 else np.asarray(multihost_utils.process_allgather(array))


def broadcast_json(value: Any = None) -> Any:
    """Process 0's JSON value, on every process; the others' arguments are ignored. Tuples arrive as lists, also with one process.

    Raises:
        ValueError: it takes more than ``MAX_JSON_BYTES``, or holds a number that is not finite.
        TypeError: it is no JSON value.
    """
    content = json.dumps(value, allow_nan=False).encode() if is_main() else b""
    if jax.process_count() > 1:
        head = _broadcast_bytes(len(content).to_bytes(_LENGTH_BYTES, "little") + content[: _FIRST_BYTES - _LENGTH_BYTES], _FIRST_BYTES)
        length, head = int.from_bytes(head[:_LENGTH_BYTES], "little"), head[_LENGTH_BYTES:]
        if length > MAX_JSON_BYTES:
            raise ValueError(f"a JSON value of {length} bytes: at most {MAX_JSON_BYTES} can be broadcast")
        rest = length - len(head)
        tail = _broadcast_bytes(content[len(head) :], 1 << (rest - 1).bit_length()) if rest > 0 else b""
        content = (head + tail)[:length]
    return json.loads(content)


def on_main(fn: Callable[[], Any]) -> Any:
    """Runs ``fn`` on process 0 alone; every process returns its JSON value, or raises its ``InputError`` or ``OSError``.

    For what depends on the file system or on a user's code, which may differ between the processes. Other exceptions are raised on process
    0 alone, which ends the run.
    """
    outcome, raised = {}, None
    if is_main():
        try:
            outcome = {"value": fn()}
        except (InputError, OSError) as error:
            raised = error
            outcome = {"input" if isinstance(error, InputError) else "system": str(error)}
    outcome = broadcast_json(outcome)
    if raised is not None:
        raise raised
    if "value" not in outcome:
        raise InputError(outcome["input"]) if "input" in outcome else OSError(outcome["system"])
    return outcome["value"]


def _broadcast_bytes(content: bytes, size: int) -> bytes:
    """The first ``size`` bytes of process 0's content, padded with zeros."""
    padded = np.zeros(size, np.uint8)
    if is_main():
        padded[: len(content)] = np.frombuffer(content, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8).tobytes()
