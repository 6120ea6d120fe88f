"""The command line with other limits, so that what takes half a minute otherwise takes seconds in a test.

`python fault_process.py '{"perturbjax.cluster.peers.TIMEOUT_S": 4}' randopt ...`

With "elsewhere" among the limits, the state lies below that directory: another machine, whose file system is its own. With "file_bytes",
no file may become longer: a full disk.
"""

import importlib
import json
import resource
import sys
from pathlib import Path
from typing import Any

from perturbjax.cli import main
from perturbjax.runs.state import RunState


def move_elsewhere(root: Path) -> None:
    open_here = RunState.open

    def open_elsewhere(directory: Path, *arguments: Any) -> RunState:
        there = root / directory.absolute().relative_to("/")
        there.mkdir(parents=True, exist_ok=True)
        return open_here(there, *arguments)

    RunState.open = open_elsewhere  # type: ignore[method-assign]


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
