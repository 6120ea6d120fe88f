"""The command line with other limits, so that what takes half a minute in life takes seconds in a test.

`python fault_process.py '{"perturbjax.cluster.peers.SILENCE_S": 4}' search ...`

With "elsewhere" among the limits, the paths that process 0 names lead into that directory: another machine, whose file system is its own.
With "file_bytes", no file may become longer: a full disk.
"""

import importlib
import json
import resource
import sys
from pathlib import Path

from perturbjax.cli import main
from perturbjax.runs.share import Share


def move_elsewhere(root: Path) -> None:
    open_here = Share.open

    def open_elsewhere(self: Share, directory: str, probe: str, shape: tuple[int, int]) -> None:
        there = [root / Path(path).relative_to("/") for path in (directory, probe)]
        there[0].mkdir(parents=True, exist_ok=True)
        open_here(self, str(there[0]), str(there[1]), shape)

    Share.open = open_elsewhere


if __name__ == "__main__":
    limits = json.loads(sys.argv[1])
    if "elsewhere" in limits:
        move_elsewhere(Path(limits.pop("elsewhere")))
    if "file_bytes" in limits:
        # Python ignores the signal that comes with it and sees the error.
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits["file_bytes"], limits.pop("file_bytes")))
    for name, value in limits.items():
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name
        setattr(importlib.import_module(module), attribute, value)
    sys.exit(main(sys.argv[2:]))
