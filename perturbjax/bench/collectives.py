"""Which collectives a compiled program holds: read from its HLO text, by kind, mesh axis, size and how often they run."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from perturbjax import sharding
from perturbjax.bench.hlo import read_computations

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_OP = re.compile(rf"= (?P<type>.*?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\(")
_ARRAY = re.compile(r"\b(?:[a-z]+(\d+)[a-z0-9]*|pred)\[([\d,]*)\]")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_LISTED = re.compile(r"replica_groups=\{(\{[\d,{}]*\})\}")
_PAIRS = re.compile(r"source_target_pairs=\{(\{[\d,{}]*\})\}")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.-]+)|branch_computations=\{([^}]*)\}")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")
_CONDITION = re.compile(r"condition=%?([\w.-]+)")
_BOUND = re.compile(r"\bs32\[\]\S* constant\((\d+)\)")


@dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
        kind: one of ``KINDS``.
        axis: the mesh axis whose devices talk to each other, "data" or "model", or "both".
        nbytes: of its result on one device.
        loops: how many loops it lies in.
        times: how often it runs in one turn of the loops whose length is data (candidates, slots, decoding steps).
    """

    kind: str
    axis: str
    nbytes: int
    loops: int
    times: int


def read_collectives(text: str, model: int) -> list[Collective]:
    """The collectives of a compiled module's text, on a (data, model) mesh with ``model`` neighbors along "model"."""
    computations, entry = read_computations(text)
    callers = _callers(computations)

    def reached(name: str) -> list[tuple[int, int]]:
        """(loops, times) of each way from the entry to a computation."""
        if name == entry:
            return [(0, 1)]
        return [(loops + loop, times * n) for caller, loop, n in callers[name] for loops, times in reached(caller)]

    found = []
    for name, lines in computations.items():
        for line in lines:
            if (match := _OP.search(line)) is None:
                continue
            sizes = [
                int(bits or 8) * int(np.prod([int(n) for n in dims.split(",") if n])) // 8 for bits, dims in _ARRAY.findall(match["type"])
            ]
            # What an asynchronous gather starts with is (operand, result).
            nbytes = sizes[-1] if match["start"] and match["kind"] != "all-reduce" else sum(sizes)
            for loops, times in reached(name):
                found.append(Collective(match["kind"], _axis(line, model), nbytes, loops, times))
    return found


def _callers(computations: dict[str, list[str]]) -> dict[str, list[tuple[str, int, int]]]:
    """Computation -> (who calls it, whether as a loop, how often where that is known)."""
    callers = defaultdict(list)
    for name, lines in computations.items():
        for line in lines:
            loop = " while(" in line
            trips = _trips(computations, line) if loop else 1
            for one, several in _CALLED.findall(line):
                for called in [one] if one else re.findall(r"[\w.-]+", several):
                    if called in computations:
                        callers[called].append((name, int(loop), trips))
    return callers


def _trips(computations: dict[str, list[str]], line: str) -> int:
    """How often a loop turns: the one constant that its condition compares with; 1 where that is data."""
    match = _CONDITION.search(line)
    bounds = [bound for text in computations.get(match[1], ()) for bound in _BOUND.findall(text)] if match else []
    return int(bounds[0]) if len(bounds) == 1 else 1


def _axis(line: str, model: int) -> str:
    if match := _MESH.search(line):
        sizes = [(name, int(size)) for name, size in re.findall(r"'(\w+)'=(\d+)", match[1])]
        along = [name in re.findall(r"'(\w+)'", match[2]) for name, _ in sizes]
        devices = np.arange(math.prod(size for _, size in sizes)).reshape([size for _, size in sizes])
        order = [d for d, inside in enumerate(along) if not inside] + [d for d, inside in enumerate(along) if inside]
        group = math.prod(size for (_, size), inside in zip(sizes, along, strict=True) if inside)
        rows = devices.transpose(order).reshape(-1, group).tolist()
    elif match := _IOTA.search(line):
        groups, dims, order = ([int(n) for n in part.split(",")] if part else None for part in match.groups())
        assert groups and dims
        rows = np.arange(np.prod(dims)).reshape(dims).transpose(order or range(len(dims))).reshape(groups).tolist()
    else:
        match = _LISTED.search(line) or _PAIRS.search(line)
        rows = [[int(n) for n in group.split(",") if n] for group in re.findall(r"\{([\d,]*)\}", match[1])] if match else []
    along_model = all(len({device // model for device in row}) == 1 for row in rows)
    along_data = all(len({device % model for device in row}) == 1 for row in rows)
    return sharding.MODEL if rows and along_model else sharding.DATA if rows and along_data else "both"
