"""What the scripts here share: a user's mistake is one line, and exit code 2."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path


def at_least(least: int) -> Callable[[str], int]:
    """A type for argparse: whole numbers from ``least`` on."""

    def check(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text}: a number of at least {least} is required")
        return int(text)

    return check


def directory(text: str) -> Path:
    """A type for argparse: a directory that is there."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text}: no such directory")
    return Path(text)


def exit_code(main: Callable[[], int | None]) -> int:
    """Runs a script's ``main``; what the package refuses is said as ``perturbjax`` says it."""
    from perturbjax.errors import InputError

    try:
        return main() or 0
    except InputError as error:
        print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
