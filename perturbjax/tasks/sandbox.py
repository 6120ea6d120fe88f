"""Runs a generated program with its tests where it can do no harm, or not at all. NOTES.md says what is guaranteed and what is not.

Each run is a process of its own (``sandbox_process``) with an empty environment, in a session and process group that are killed whole. It
can read Python's standard library and nothing else, write nothing, open no socket, start no process or thread and signal nobody; CPU time,
memory and waiting are bounded. Where the platform cannot give all of this the program is refused: there is no way to run it without.
"""

import contextlib
import functools
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from perturbjax.errors import InputError, printable

_PROCESS = Path(__file__).with_name("sandbox_process.py")
_MAX_LENGTH = 200_000
"""Characters of the longest program."""
_MAX_REPLY = 1000


@dataclass(frozen=True)
class Limits:
    """What one run may use.

    Attributes:
        cpu_s: seconds of CPU time, the program's tests included. It does not depend on what else the machine does.
        wall_s: seconds by the clock, for a program that waits.
        memory: bytes of address space, Python's own 40 MiB included.
    """

    cpu_s: int = 10
    wall_s: float = 30.0
    memory: int = 2**29


@dataclass(frozen=True)
class Verdict:
    """How a run ended: whether the tests ran to their end, and if not why, on one line."""

    passed: bool
    reason: str = ""


def run_tests(program: str, tests: str, limits: Limits = Limits()) -> Verdict:
    """Runs the program, then the tests in the same namespace. They pass if both run to their end.

    Passing is told by a random word that the process says after the last test; exit codes and output count for nothing.

    Raises:
        InputError: the platform cannot give the sandbox.
    """
    require_sandbox()
    return _verdict(program, tests, limits)


@functools.cache
def require_sandbox() -> None:
    """Tries the locks, once a process: what must be refused is tried in the sandbox itself.

    Raises:
        InputError: the platform cannot give the sandbox.
    """
    if sys.platform != "linux" or not sys.executable:
        raise _refusal(f"this is {sys.platform}")
    verdict = _verdict("", _TRIALS.format(file=str(_PROCESS)), Limits())
    if not verdict.passed:
        raise _refusal(verdict.reason)


def _refusal(reason: str) -> InputError:
    return InputError(
        f"`task`: generated code runs only in a sandbox, which is not to be had here ({reason}); "
        "it needs Linux 5.13 or newer with Landlock and seccomp, on x86-64 or arm64"
    )


_TRIALS = """
import _socket, os
trials = [
    lambda: open({file!r}),
    lambda: os.listdir("/"),
    lambda: os.open("/dev/null", os.O_RDWR),
    lambda: _socket.socket(),
    lambda: os.kill(os.getpid(), 0),
    lambda: os.fork(),
]
for trial in trials:
    try:
        trial()
    except PermissionError:
        continue
    raise SystemError(f"{{trial.__code__.co_names}} was not refused")
"""


def _verdict(program: str, tests: str, limits: Limits) -> Verdict:
    if len(program) > _MAX_LENGTH:
        return Verdict(False, f"a program of more than {_MAX_LENGTH} characters")
    token = secrets.token_hex(16)
    request = {"program": program, "tests": tests, "token": token, "parent": os.getpid(), "cpu_s": limits.cpu_s, "memory": limits.memory}
    # -I -S: neither the user's folder nor site-packages.
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", str(_PROCESS)],
        env={},
        start_new_session=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with process:
        try:
            reply = _reply(process, json.dumps(request).encode(), time.monotonic() + limits.wall_s)
        except TimeoutError:
            reply = f"it took more than {limits.wall_s:g} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if reply == token:
        return Verdict(True)
    return Verdict(False, printable(" ".join(reply.split())[:200]) or _how_it_ended(process.returncode, limits))


def _reply(process: subprocess.Popen[bytes], request: bytes, deadline: float) -> str:
    """What the process says, cut; "" if it ends without a word.

    Raises:
        TimeoutError: it neither says anything nor ends before the deadline.
    """
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # it did not start
        process.stdin.write(request)
        process.stdin.close()
    ready = select.poll()
    ready.register(process.stdout, select.POLLIN)
    reply = b""
    while len(reply) < _MAX_REPLY:
        if not ready.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError
        if not (part := os.read(process.stdout.fileno(), _MAX_REPLY)):
            break
        reply += part
    if not reply:  # how it ended is seen before it is killed
        try:
            process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise TimeoutError from None
    return reply.decode(errors="replace")


def _how_it_ended(code: int, limits: Limits) -> str:
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"it took more than {limits.cpu_s} s of CPU time"
    return f"it ended before its tests did ({f'signal {-code}' if code < 0 else f'exit code {code}'})"
