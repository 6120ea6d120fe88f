"""A script in a process of its own, where work on untrusted text is bounded: it answers lines of JSON with lines of JSON.

The script bounds itself, in memory and in CPU time of a request, and may be ended by it. It should import little, so that it starts soon.
"""

import atexit
import contextlib
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any


class LineProcess:
    """The process of a script; started when it is first asked, and again after a request that ended it. Safe to ask from any thread."""

    def __init__(self, script: str) -> None:
        """
        Args:
            script: path of the file; its folder does not become a place of modules.
        """
        self._script = Path(script)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: Any) -> Any | None:
        """The script's answer to a request, None if the request ended the process: it went beyond a limit."""
        with self._lock:
            process = self._process or self._start()
            assert process.stdin is not None and process.stdout is not None
            line = b""
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
                line = process.stdout.readline()
            if not line:
                self._end()
                return None
            return json.loads(line)

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", str(self._script)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        atexit.register(self._end)
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._process = None
        atexit.unregister(self._end)
