"""Starts one command as several processes on this machine, each with its own forced CPU devices: a rehearsal of a run on several hosts.

    python scripts/launch_local.py --processes 2 --devices 4 -- perturbjax randopt --mesh 4x2

Each process gets the command with --coordinator, --num-processes and --process-id added. SIGTERM is passed on to all of them. When one
fails, the others have time to end by themselves, are then told to stop, and at last killed. The exit code is that of the first that
failed; 128 plus the signal's number, if a signal ended it.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time

GRACE_S = 40.0
"""How long a process may take to end by itself after another has failed, and once more after SIGTERM. More than
`perturbjax.cluster.distributed.TIMEOUT_S`: those that are left over report a death themselves."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices", type=int, default=4, help="CPU devices of each process")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="after --")
    options = parser.parse_args()
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command or options.processes < 1 or options.devices < 1:
        parser.error("--processes and --devices of at least 1, and a command after --, are required")
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={options.devices}"
    env = os.environ | {"XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"}
    joining = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", str(options.processes), "--process-id"]
    try:
        running = [subprocess.Popen([*command, *joining, str(i)], env=env) for i in range(options.processes)]
    except OSError as error:
        parser.error(f"{command[0]}: cannot be started ({error.strerror})")
    return wait(running)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait(running: list[subprocess.Popen[bytes]]) -> int:
    """The first exit code that is not 0, once all have ended; a failure ends the others."""

    def send(number: int) -> None:
        for process in running:
            process.send_signal(number)

    signal.signal(signal.SIGTERM, lambda number, frame: send(signal.SIGTERM))
    failed, ways, deadline = 0, [signal.SIGTERM, signal.SIGKILL], float("inf")
    while any(process.poll() is None for process in running):
        codes = [process.returncode for process in running if process.returncode]
        if codes and not failed:
            failed, deadline = codes[0], time.monotonic() + GRACE_S
        if ways and time.monotonic() > deadline:
            send(ways.pop(0))
            deadline = time.monotonic() + GRACE_S
        time.sleep(0.05)
    failed = failed or next((process.returncode for process in running if process.returncode), 0)
    return failed if failed >= 0 else 128 - failed


if __name__ == "__main__":
    sys.exit(main())
