"""Vocabulary maps on disk: the arrays in one file, and beside them a record of what they belong to."""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from perturbjax.errors import InputError
from perturbjax.ivl import byte_head
from perturbjax.ivl.map_statistics import MapStatistics
from perturbjax.ivl.tokens import token_table
from perturbjax.ivl.vocabulary import Kind, VocabularyMap
from perturbjax.records import from_json, open_regular, to_json
from perturbjax.runs.files import read_json, write_atomically, write_json

if TYPE_CHECKING:
    from perturbjax.pretrained.tokenizer import Tokenizer

ARRAYS, RECORD = "vocabulary_map.npz", "vocabulary_map.json"
"""The two files of a map."""

_NAMES = ("indices", "weights", "exact", "valid")
_FIX = "build the map anew"


@dataclass(frozen=True)
class MapRecord:
    """The JSON beside the arrays.

    Attributes:
        version: of this format.
        kind: of the map.
        value_fingerprint: what the map calls so.
        base_fingerprint: likewise.
        arrays_sha256: hex digest of the file of arrays.
        statistics: of the map, if they were known when it was saved.
    """

    version: Literal[1]
    kind: Kind
    value_fingerprint: str
    base_fingerprint: str
    arrays_sha256: str
    statistics: MapStatistics | None


def save_map(vocabulary_map: VocabularyMap, folder: Path, statistics: MapStatistics | None = None) -> None:
    """Write a map into a folder that exists. A kill between the two files leaves a pair that ``load_map`` refuses."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: getattr(vocabulary_map, name) for name in _NAMES})
    data = buffer.getvalue()
    record = MapRecord(
        version=1,
        kind=vocabulary_map.kind,
        value_fingerprint=vocabulary_map.value_fingerprint,
        base_fingerprint=vocabulary_map.base_fingerprint,
        arrays_sha256=hashlib.sha256(data).hexdigest(),
        statistics=statistics,
    )
    write_atomically(folder / ARRAYS, lambda file: file.write(data))
    write_json(folder / RECORD, to_json(record))


def load_map(folder: Path, value: Tokenizer | None, base: Tokenizer) -> tuple[VocabularyMap, MapStatistics | None]:
    """Read a map for two tokenizers.

    Args:
        folder: where ``save_map`` wrote it.
        value: the value network's tokenizer; None for a byte head.
        base: the base's.

    Returns:
        (the map, its statistics if they were saved).

    Raises:
        InputError: one line; a file is missing or damaged, or the map was built for other tokenizers.
    """
    where = str(folder / RECORD)
    record = from_json(MapRecord, read_json(folder / RECORD), where)
    path = folder / ARRAYS
    try:
        with open_regular(path) as file:
            data = file.read()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {_FIX}") from error
    if hashlib.sha256(data).hexdigest() != record.arrays_sha256:
        raise InputError(f"{path}: damaged, its checksum is not the one in {RECORD}; {_FIX}")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            if sorted(file.files) != sorted(_NAMES):
                raise ValueError(f"arrays {', '.join(file.files)}: {', '.join(_NAMES)} are required")
            arrays = {name: file[name] for name in _NAMES}
        loaded = VocabularyMap(record.kind, **arrays, value_fingerprint=record.value_fingerprint, base_fingerprint=record.base_fingerprint)
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: damaged ({' '.join(str(error).split())[:200]}); {_FIX}") from error
    if (value is None) != (record.kind == "byte"):
        given = "no tokenizer" if value is None else "a tokenizer"
        raise InputError(f"{where}: kind {record.kind}: {given} of the value network was given; only a byte head has none: {_FIX}")
    try:
        loaded.check(_fingerprint(value, record.kind), _fingerprint(base, record.kind))
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    return loaded, record.statistics


def _fingerprint(tokenizer: Tokenizer | None, kind: Kind) -> str:
    if tokenizer is None:
        return byte_head.FINGERPRINT
    table = token_table(tokenizer)
    return table.vocabulary if kind == "identity" else table.fingerprint
