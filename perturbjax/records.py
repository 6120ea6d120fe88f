"""JSON to frozen dataclasses and back: the one checker of every JSON record that perturbjax reads.

A record's fields and their type annotations are its schema. The types are ``int``, ``float``, ``str``, ``bool``, ``None``, ``Path``,
``Literal``, unions, ``tuple[X, ...]``, ``tuple[X, Y]``, ``dict[str, X]`` and other dataclasses.
"""

import contextlib
import dataclasses
import errno
import functools
import json
import math
import os
import stat
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn, TypeGuard, TypeVar, Union, get_args, get_origin, get_type_hints

from perturbjax.errors import InputError

T = TypeVar("T")

LONGEST = 2**24
"""Bytes of the largest JSON file, and of the longest line of a file of lines, that is read: parsed, they take up to 25 times as many."""

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


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file to be read, and nothing else: a FIFO would wait, a device might never end.

    Raises:
        OSError: it is no regular file, or cannot be opened.
        ValueError: a NUL in the path.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_text(path: Path) -> str:
    """The UTF-8 text of a regular file of at most ``LONGEST`` bytes.

    Raises:
        OSError, ValueError: it cannot be read, is longer, or is not UTF-8.
    """
    with open_regular(path) as file:
        data = file.read(LONGEST + 1)
    if len(data) > LONGEST:
        raise ValueError(f"more than {LONGEST} bytes")
    return data.decode("utf-8")


def parse_json(text: str, finite: bool = False) -> Any:
    """As ``json.loads``; a ``ValueError`` is also what could not be written again: nested too deeply, or half of a surrogate pair, or, if
    ``finite``, NaN and infinities."""
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False, allow_nan=not finite).encode()
        return value
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair is not a character") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json_lines(path: Path, where: str) -> list[tuple[str, Any]]:
    """(WHERE: line NUMBER, value) of every line of a file that is not empty, the value as ``json.loads`` returns it.

    Raises:
        InputError: the file cannot be read, or a line is too long, not UTF-8 text or not JSON; the line is named.
    """
    rows = []
    for number, line in enumerate(_lines(path, where), start=1):
        place = f"{where}: line {number}"
        if len(line) > LONGEST:
            raise InputError(f"{place}: more than {LONGEST} bytes; divide it into several")
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{place}: not UTF-8 text; save the file as UTF-8") from error
        if text.strip():
            try:
                rows.append((place, parse_json(text)))
            except ValueError as error:
                raise InputError(f"{place}: not valid JSON ({error}); each line must be one JSON object") from None
    return rows


def _lines(path: Path, where: str) -> Iterator[bytes]:
    """The lines of a file; one that is too long is not read to its end."""
    try:
        with open_regular(path) as file:
            # Not splitlines(): a JSON string may hold U+2028 and its like as they are.
            while line := file.readline(LONGEST + 1):
                yield line
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"{where}: the file cannot be read ({error}); give the path of a .jsonl file") from error


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
