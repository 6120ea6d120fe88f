"""Searches of one or several processes that are disturbed and continued; for fault_drill.py and the tests."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from perturbjax.errors import InputError

COMPARED = ("candidates.parquet", "ensemble.json")
"""What must be equal to the undisturbed run's, byte for byte; metrics.jsonl must count every candidate once."""
PROGRAM = Path(__file__).with_name("fault_process.py")


def write_questions(path: Path, count: int = 16, start: int = 0, choices: bool = True) -> Path:
    """A task file of questions whose answers a program knows."""
    rows = []
    for i in range(start, start + count):
        row = {"question": f"is {i} an even number", "answer": "no" if i % 2 else "yes"}
        rows.append(row | {"choices": ["yes", "no"]} if choices else row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@dataclass
class Run:
    """A search, running.

    Attributes:
        out: run directory; the search continues what is there.
        arguments: of `perturbjax randopt`, but for --out, --mesh and --resume.
        processes, devices: how many, and CPU devices of each.
        model: devices of one candidate.
        limits: of fault_process.py, for each process or for all.
    """

    out: Path
    arguments: Sequence[str]
    processes: int = 1
    devices: int = 1
    model: int = 1
    limits: dict[str, Any] | Sequence[dict[str, Any]] = field(default_factory=dict)

    def __enter__(self) -> Self:
        flags = f"--xla_force_host_platform_device_count={self.devices}"
        env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "JAX_ENABLE_COMPILATION_CACHE": "true"}
        mesh = f"{self.processes * self.devices // self.model}x{self.model}"
        common = ["randopt", *self.arguments, "--out", str(self.out), "--mesh", mesh, "--resume"]
        port = free_port()
        self.running: list[subprocess.Popen[str]] = []
        for index in range(self.processes):
            limits = self.limits if isinstance(self.limits, dict) else self.limits[index]
            joining = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", str(self.processes), "--process-id", str(index)]
            command = [sys.executable, str(PROGRAM), json.dumps(limits), *common, *(joining if self.processes > 1 else [])]
            self.running.append(subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
        self.said = [""] * self.processes
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running:
            if process.poll() is None:
                process.kill()
                process.communicate()

    def wait_for(self, chunks: int, later: float = 0.0, within: float = 120.0) -> list[dict[str, Any]]:
        """Until that many chunks are reported, and a little later; what is reported then."""
        deadline = time.monotonic() + within
        while len(lines(self.out)) < chunks:
            ended = [process.returncode for process in self.running if process.poll() is not None]
            assert not ended, f"ended with {ended} before {chunks} chunks: {self.words()}"
            assert time.monotonic() < deadline, f"{chunks} chunks have not come"
            time.sleep(0.01)
        time.sleep(later)
        return lines(self.out)

    def send(self, number: signal.Signals, who: Iterable[int]) -> None:
        for index in who:
            self.running[index].send_signal(number)

    def end(self, within: float, but: Iterable[int] = ()) -> tuple[list[int], float]:
        """Exit codes of all processes but some, and after how many seconds the last of them ended."""
        started = time.monotonic()
        for index in set(range(self.processes)) - set(but):
            _, self.said[index] = self.running[index].communicate(timeout=max(0.1, within - (time.monotonic() - started)))
        codes = [process.returncode for index, process in enumerate(self.running) if index not in set(but)]
        return codes, time.monotonic() - started

    def words(self) -> str:
        """Everything that all processes said; ends them."""
        for process in self.running:
            process.kill()
        return "\n".join(process.communicate()[1] for process in self.running)


def complete(out: Path, arguments: Sequence[str], **how: Any) -> None:
    """Runs a search to its end, or continues it."""
    with Run(out, arguments, **how) as run:
        codes, _ = run.end(within=300)
        if codes[0] == 2:
            raise InputError(run.said[0].splitlines()[-1].removeprefix("perturbjax: error: "))
        assert codes == [0] * len(codes), (codes, run.said)


def lines(out: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl."""
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


def differences(out: Path, undisturbed: Path, before: Sequence[dict[str, Any]]) -> list[str]:
    """What of a finished run is not as it should be; ``before``: the lines of metrics.jsonl when it was disturbed.

    All of those but the last were on disk then, and must have been kept: a line is written after the commit of the line before it.
    """
    wrong = [name for name in COMPARED if (out / name).read_bytes() != (undisturbed / name).read_bytes()]
    now = lines(out)
    if [line["chunk"] for line in now] != list(range(1, len(now) + 1)):
        wrong.append("chunks are not counted through")
    if sum(line["candidates"] for line in now) != sum(line["candidates"] for line in lines(undisturbed)):
        wrong.append("candidates are not counted once")
    kept = list(before[:-1])
    if now[: len(kept)] != kept:
        wrong.append("a committed chunk was lost")
    return wrong


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
