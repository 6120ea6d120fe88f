"""metrics.jsonl: one line a chunk, in step with the committed state, written by process 0."""

import json
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
        on_main(lambda: self._rewind(step))

    def append(self, line: dict[str, Any]) -> None:
        on_main(lambda: self._append(line))

    def _rewind(self, step: int) -> None:
        committed = []
        for raw in self.path.read_bytes().splitlines() if self.path.exists() else ():
            try:
                line = json.loads(raw)
                chunk = line["chunk"]
            except (ValueError, KeyError, TypeError):
                continue
            if isinstance(chunk, int) and chunk <= step:
                committed.append(raw)
        write_atomically(self.path, lambda file: file.writelines(raw + b"\n" for raw in committed))

    def _append(self, line: dict[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
