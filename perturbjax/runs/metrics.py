"""metrics.jsonl: one line a chunk, in step with the committed state, written by process 0."""

import json
import math
from pathlib import Path
from typing import Any

from perturbjax.cluster import on_main
from perturbjax.runs.files import write_atomically


class MetricsLog:
    """Appends one JSON line per committed chunk. All processes call the methods together.

    The line of a chunk is written just before the chunk is committed. A kill between the two leaves a line too many, never one too few;
    ``rewind`` removes it, so no chunk is ever reported twice.
    """

    def __init__(self, path: Path):
        self.path = path

    def rewind(self, step: int) -> None:
        """Keeps the whole lines of chunks 1 to ``step``; drops later and torn ones."""

        def on_disk() -> None:
            lines = self.path.read_bytes().splitlines() if self.path.exists() else []
            committed = [raw for raw in lines if _chunk(raw) <= step]
            write_atomically(self.path, lambda file: file.writelines(raw + b"\n" for raw in committed))

        on_main(on_disk)

    def append(self, line: dict[str, Any]) -> None:
        def on_disk() -> None:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")

        on_main(on_disk)


def _chunk(raw: bytes) -> float:
    """The number of the chunk of a line, infinite where the line is torn."""
    try:
        chunk = json.loads(raw)["chunk"]
    except (ValueError, KeyError, TypeError):
        return math.inf
    return chunk if isinstance(chunk, int) else math.inf
