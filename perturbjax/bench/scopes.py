"""Where the time of a step goes: a profiler trace, its operations summed by the named scope that they were written in.

XLA's trace names the operation (``hlo_op``) of every event; the compiled program's text says for each operation which scopes it came from
(``op_name``). The innermost known scope counts, so noise that is made inside the attention is noise. A fusion counts as what most of its
instructions are, its own name breaking a tie. An event's time is its own, without that of events within it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jax.profiler import ProfileData

from perturbjax.bench.hlo import read_computations

SCOPES = ("embed", "attention", "mlp", "head", "noise", "sample")
OTHER = "other"

_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_OP_NAME = re.compile(r'metadata=\{[^}]*?op_name="([^"]*)"')
_CALLS = re.compile(r" fusion\(.*calls=%?([\w.\-]+)")


@dataclass(frozen=True)
class Shares:
    """Share of the operations' time by scope (adding up to 1), and how much of the wall time of the trace they cover."""

    shares: dict[str, float]
    covered: float
    seconds: float


def shares(directory: Path, texts: Iterable[str], seconds: float) -> Shares:
    """Reads the newest trace below ``directory`` of programs compiled to ``texts``."""
    scope_of = {name: scope for text in texts for name, scope in instruction_scopes(text).items()}
    newest = max(directory.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    times: Counter[str] = Counter()
    for plane in ProfileData.from_file(str(newest)).planes:
        for line in plane.lines:
            for operation, nanoseconds in _own_times(line.events).items():
                times[scope_of.get(operation, OTHER)] += nanoseconds
    total = sum(times.values())
    parts = {scope: times[scope] / total if total else 0.0 for scope in (*SCOPES, OTHER)}
    return Shares(parts, total / 1e9 / seconds, seconds)


def instruction_scopes(text: str) -> dict[str, str]:
    """Instruction name -> scope, of a compiled program's text."""
    own: dict[str, str] = {}
    fused: dict[str, str] = {}
    votes: dict[str, Counter[str]] = {}
    for computation, lines in read_computations(text)[0].items():
        for line in lines:
            if (instruction := _INSTRUCTION.match(line)) is None:
                continue
            name = instruction[1]
            op_name = _OP_NAME.search(line)
            own[name] = _scope(op_name[1]) if op_name else OTHER
            if own[name] != OTHER:
                votes.setdefault(computation, Counter())[own[name]] += 1
            if calls := _CALLS.search(line):
                fused[name] = calls[1]
    for name, called in fused.items():
        if called in votes:
            own[name] = max(votes[called], key=lambda scope: (votes[called][scope], scope == own[name]))
    return own


def _scope(op_name: str) -> str:
    return next((part for part in reversed(op_name.split("/")) if part in SCOPES), OTHER)


def _own_times(events: Iterable) -> Counter[str]:
    """Nanoseconds of each operation on one thread or device line, less those of operations inside it."""
    found = []
    for event in events:
        operation = dict(filter(None, event.stats)).get("hlo_op")
        if operation is not None:
            found.append((event.start_ns, event.duration_ns, operation))
    times: Counter[str] = Counter()
    open_: list[tuple[float, str]] = []
    for start, duration, operation in sorted(found, key=lambda event: (event[0], -event[1])):
        while open_ and open_[-1][0] <= start:
            open_.pop()
        if open_:
            times[open_[-1][1]] -= duration
        times[operation] += duration
        open_.append((start + duration, operation))
    return times
