"""The reader of JSON files that every source of a model shares."""

from pathlib import Path
from typing import Any

from perturbjax.errors import InputError, one_line
from perturbjax.records import parse_json, read_text


def read_json(path: Path, default: dict[str, Any] | None = None) -> dict[str, Any]:
    """The JSON object in one of a model's files.

    Args:
        path: the file.
        default: what to return when there is no such file; None makes that an error.

    Raises:
        InputError: the file is missing, cannot be read, is too large or no JSON, or holds something other than an object.
    """
    try:
        value = parse_json(read_text(path))
    except FileNotFoundError:
        if default is None:
            raise InputError(f"{path.name} is missing") from None
        return default
    except (OSError, ValueError) as error:
        raise InputError(f"{path.name} cannot be read: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path.name} must hold a JSON object, not a {type(value).__name__}")
    return value
