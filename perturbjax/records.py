"""JSON to frozen dataclasses and back: the one checker of every JSON record that perturbjax reads.

A record's fields and their type annotations are its schema. The types are ``int``, ``float``, ``str``, ``bool``, ``None``, ``Path``,
``Literal``, unions, ``tuple[X, ...]``, ``tuple[X, Y]``, ``dict[str, X]`` and other dataclasses.
"""

import contextlib
import dataclasses
import functools
import json
import math
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeGuard, TypeVar, Union, get_args, get_origin, get_type_hints

from perturbjax.errors import InputError

T = TypeVar("T")

_LIMIT = 2**63
_UNIONS = (Union, types.UnionType)
_SCALARS = {int: "an integer", float: "a finite number", str: "text", bool: "true or false", type(None): "null", Path: "a path"}
_type_hints = functools.cache(get_type_hints)  # a file of questions is thousands of equal records


def from_json(cls: type[T], value: Any, where: str) -> T:
    """The record that a JSON value says.

    The value must be an object with the fields of the dataclass and no others, each of its annotated type. A field that is missing takes
    its default, so that a file written before the field existed can be read. Integers lie between -2**63 and 2**63 and are accepted where
    a float is wanted; NaN and infinities are refused; lists become tuples.

    Args:
        cls: a dataclass; the ``ValueError`` that its ``__post_init__`` raises is reported like any other defect.
        value: as ``json.loads`` returns it.
        where: what the message begins with, a file or a flag and its line.

    Raises:
        InputError: one line, ``WHERE: FIELD VALUE: WHAT is required``, the value cut to 80 characters.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Point:
    ...     x: float
    ...     labels: tuple[str, ...]
    >>> from_json(Point, {"x": 1, "labels": ["a"]}, "points.json")
    Point(x=1.0, labels=('a',))
    >>> from_json(Point, {"x": True, "labels": []}, "points.json")
    Traceback (most recent call last):
        ...
    perturbjax.errors.InputError: points.json: x true: a finite number is required
    """
    return _read(cls, value, where, "")


def to_json(value: Any) -> Any:
    """The JSON value of a record: dataclasses and mappings as objects, tuples and lists as lists, paths as text."""
    if dataclasses.is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def read_json_lines(path: Path, where: str) -> list[tuple[str, Any]]:
    """(WHERE: line NUMBER, value) of every line of a file that is not empty, the value as ``json.loads`` returns it.

    Raises:
        InputError: the file cannot be read, or a line is not UTF-8 text or not JSON; the line is named.
    """
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"{where}: the file cannot be read ({error}); give the path of a .jsonl file") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{where}: line {line}: not UTF-8 text; save the file as UTF-8") from error
    rows = []
    # Not splitlines(): a JSON string may hold U+2028 and its like as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append((f"{where}: line {number}", json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where}: line {number}: not valid JSON ({error}); each line must be one JSON object") from None
    return rows


def refuse(where: str, field: str, value: Any, required: str) -> NoReturn:
    """Raise the ``InputError`` of one field, for requirements that a type cannot say."""
    try:
        shown = json.dumps(value)[:80]
    except RecursionError:
        shown = "nested too deeply"
    raise InputError(f"{where}: {' '.join(part for part in (field, shown) if part)}: {required}")


def _read(kind: Any, value: Any, where: str, field: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in _UNIONS:
        return _read_union(kind, value, where, field)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _read_fields(kind, value, where, field)
    if origin is tuple and isinstance(value, list):
        kinds = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        if len(kinds) == len(value):
            return tuple(_read(k, item, where, f"{field}[{i}]") for i, (k, item) in enumerate(zip(kinds, value, strict=True)))
    if origin is dict and isinstance(value, dict):
        return {key: _read(arguments[1], item, where, f"{field}.{_shown(key)}") for key, item in value.items()}
    if origin is Literal and any(type(value) is type(choice) and value == choice for choice in arguments):
        return value
    # By exact type: True is no integer.
    if kind is float and (_is_integer(value) or (type(value) is float and math.isfinite(value))):
        return float(value)
    if _is_integer(value) if kind is int else kind in (str, bool, type(None)) and type(value) is kind:
        return value
    if kind is Path and type(value) is str:
        return Path(value)
    refuse(where, field, value, f"{_describe(kind)} is required")


def _is_integer(value: Any) -> TypeGuard[int]:
    return type(value) is int and -_LIMIT < value < _LIMIT


def _read_union(kind: Any, value: Any, where: str, field: str) -> Any:
    for option in get_args(kind):
        # Of a record or null, what is wrong inside the record says more than that it is neither.
        if (isinstance(value, dict) and dataclasses.is_dataclass(option)) or (isinstance(value, list) and get_origin(option) is tuple):
            return _read(option, value, where, field)
        with contextlib.suppress(InputError):
            return _read(option, value, where, field)
    refuse(where, field, value, f"{_describe(kind)} is required")


def _read_fields(cls: Any, value: dict[str, Any], where: str, field: str) -> Any:
    prefix = f"{field}." if field else ""
    names = [f.name for f in dataclasses.fields(cls)]
    for f in dataclasses.fields(cls):
        if f.name not in value and f.default is f.default_factory is dataclasses.MISSING:
            raise InputError(f"{where}: {prefix}{f.name} is missing")
    for name in value:
        if name not in names:
            raise InputError(f"{where}: {prefix}{_shown(name)} is an unknown field; one of {', '.join(names)} is required")
    hints = _type_hints(cls)
    fields = {name: _read(hints[name], value[name], where, prefix + name) for name in names if name in value}
    try:
        return cls(**fields)
    except ValueError as error:
        raise InputError(f"{where}: {prefix}{error}") from None


def _shown(key: str) -> str:
    return (key if key.isprintable() else json.dumps(key))[:80]


def _describe(kind: Any) -> str:
    if kind in _SCALARS:
        return _SCALARS[kind]
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    if get_origin(kind) in _UNIONS:
        return " or ".join(map(_describe, get_args(kind)))
    if get_origin(kind) is tuple:
        of = get_args(kind)
        return "a list" if of[1:] == (...,) else f"a list of {len(of)}"
    if get_origin(kind) is dict or dataclasses.is_dataclass(kind):
        return "an object"
    raise TypeError(f"records: the type {kind} of a field is not one that a record can hold")
