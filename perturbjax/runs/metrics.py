"""metrics.jsonl: one line a chunk, in step with the committed state."""

import json
from pathlib import Path
from typing import Any

from perturbjax.runs.files import write_atomically


class MetricsLog:
    """Append one JSON line per committed chunk.

    The line of a chunk is written just before the chunk is committed. A kill between the two leaves a line too many, never one too few;
    ``rewind`` removes it, so no chunk is ever reported twice.
    """

    def __init__(self, path: Path):
        self.path = path

    def rewind(self, step: int) -> None:
        """Keep the whole lines of chunks 1 to ``step``; drop later and torn ones."""
        kept = []
        for raw in self.path.read_bytes().splitlines() if self.path.exists() else ():
            try:
                line = json.loads(raw)
                chunk = line["chunk"]
            except (ValueError, KeyError, TypeError):
                continue
            if isinstance(chunk, int) and chunk <= step:
                kept.append(raw)
        write_atomically(self.path, lambda file: file.writelines(raw + b"\n" for raw in kept))

    def append(self, line: dict[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
