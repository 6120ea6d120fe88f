"""Whole files or none: everything a run directory holds is written beside its place and moved there; metrics.jsonl grows line by line."""

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from perturbjax.cluster import on_main
from perturbjax.errors import InputError, first_line
from perturbjax.records import open_regular, parse_json, read_text
from perturbjax.tree import nest

if TYPE_CHECKING:
    import pyarrow as pa

MOST_ROWS = 2**26
"""Rows of a parquet file at most: a small file can say that it has any number."""
TEMPORARY_SUFFIX = ".tmp"
"""Names that end so are leftovers of a killed write: never read, overwritten by the next write of the same file."""


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Call ``write`` on a temporary file beside ``path``, flush it to the disk, and rename it to ``path``.

    A reader, and a process started after a kill, sees the old content or the new, never a part. On failure the temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}{TEMPORARY_SUFFIX}")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory to fill, which appears at ``path`` (not there yet, or empty) when the block has ended, and not at all if it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=TEMPORARY_SUFFIX, dir=path.parent) as temporary:
        filled = Path(temporary) / path.name
        filled.mkdir()
        yield filled
        os.replace(filled, path)


def write_fault(directory: Path) -> str | None:
    """Why a directory, made where it is not there, cannot be written to; None if it can."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return None
    except OSError as error:
        return f"cannot be written ({error.strerror or error})"


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON, atomically. NaN and infinities are refused: they are not JSON."""
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: the file cannot be read, is too large, is not JSON (NaN is none), or is not an object.
    """
    try:
        content = parse_json(read_text(path), finite=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path}: damaged, not JSON ({error}); restore the file, or start anew in another --out") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: damaged, a JSON object is required; restore the file, or start anew in another --out")
    return content


def read_columns(path: Path, schema: "pa.Schema", again: str) -> "pa.Table":
    """Columns of a parquet file, of their types, without gaps where the schema says so.

    Args:
        path: a regular file.
        schema: the columns; others are not read.
        again: how the file is made anew, for the message.

    Raises:
        InputError: the file is missing, damaged or too large, or its columns are others.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open_regular(path) as raw, pq.ParquetFile(raw) as file:
            if file.metadata.num_rows > MOST_ROWS:
                raise ValueError(f"{file.metadata.num_rows} rows, more than {MOST_ROWS}")
            table = file.read(schema.names).select(schema.names).cast(schema)
        table.validate(full=True)
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read ({first_line(error)}); {again}") from error
    return table


def read_arrays(path: Path, shapes: Mapping[str, tuple[int, ...]], again: str) -> dict[str, Any]:
    """The float32 arrays of a safetensors file.

    Args:
        path: a regular file.
        shapes: path of each array in the tree -> its shape.
        again: what to do about another file, for the message.

    Returns:
        Nested dicts of numpy arrays.

    Raises:
        InputError: the file is missing or damaged, or its arrays are others.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        with open_regular(path) as file:
            arrays = load(file.read())
        if others := sorted(set(arrays) ^ set(shapes)):
            raise ValueError(f"{others[0]} is {'missing' if others[0] in shapes else 'none of its arrays'}")
        for name, array in arrays.items():
            if array.shape != shapes[name] or array.dtype != np.float32:
                raise ValueError(f"{name} is {array.dtype} {array.shape}: float32 {shapes[name]} is required")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} holds numbers that are not finite")
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({first_line(error)}); {again}") from error
    return nest(arrays)


class MetricsLog:
    """Appends one JSON line per committed chunk. All processes call the methods together.

    The line of a chunk is written just before the chunk is committed. A kill between the two leaves a line too many, never one too few;
    ``rewind`` removes it, so no chunk is ever reported twice.
    """

    def __init__(self, path: Path):
        self.path = path

    def rewind(self, step: int) -> None:
        """Keeps the whole lines of chunks 1 to ``step``; drops later and torn ones."""

        def on_disk() -> None:
            lines = self.path.read_bytes().splitlines() if self.path.exists() else []
            committed = [raw for raw in lines if _chunk(raw) <= step]
            write_atomically(self.path, lambda file: file.writelines(raw + b"\n" for raw in committed))

        on_main(on_disk)

    def append(self, line: dict[str, Any]) -> None:
        def on_disk() -> None:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")

        on_main(on_disk)


def _chunk(raw: bytes) -> float:
    """The number of the chunk of a line, infinite where the line is torn."""
    try:
        chunk = parse_json(raw.decode())["chunk"]
    except (ValueError, KeyError, TypeError):
        return math.inf
    return chunk if isinstance(chunk, int) else math.inf
