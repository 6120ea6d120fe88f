"""The text of a compiled program (``Compiled.as_text()``): its computations and their lines."""

import re

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")


def read_computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Name -> lines of every computation, and the name of the entry."""
    computations: dict[str, list[str]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            current.append(line)
    return computations, entry
