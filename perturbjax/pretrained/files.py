"""The reader of JSON files that every source of a model shares."""

import json
from pathlib import Path
from typing import Any

from perturbjax.errors import InputError, one_line


def read_json(path: Path, default: dict[str, Any] | None = None) -> dict[str, Any]:
    """The JSON object in one of a model's files.

    Args:
        path: the file.
        default: what to return when there is no such file; None makes that an error.

    Raises:
        InputError: the file is missing, cannot be read, is no JSON or too deeply nested, or holds something other than an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if default is None:
            raise InputError(f"{path.name} is missing") from None
        return default
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path.name} cannot be read: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path.name} must hold a JSON object, not a {type(value).__name__}")
    return value
