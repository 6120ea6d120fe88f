"""A base's logits at the learned positions of packed rows, in ArrayRecord files: what lies where, which of it is there, and reading it.

    RUN/logits/0-training/manifest.json                    what the logits are of
                          rows-00000.array_record          a record a row, then one that says what the shard is

A record is the arrays of ``LogitsFormat`` one after the other, each of the row's learned positions. A shard is written beside its place and
renamed when it is whole, so a kill costs the shards in flight. ArrayRecord has a checksum of every record. The last record of a shard holds
the digest of the manifest, so that no file of another folder is taken for one of this.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from perturbjax.errors import InputError
from perturbjax.ivl.logits_format import DTYPE, LogitsFormat
from perturbjax.ivl.results import StoredLogits
from perturbjax.records import from_json, parse_json, to_json
from perturbjax.runs.files import TEMPORARY_SUFFIX, read_json, write_json
from perturbjax.train.rows import Rows
from perturbjax.tree import digest, fingerprint

SHARD_BYTES = 1 << 28
"""Most bytes of a shard, unless a row has more."""
OPEN_SHARDS = 64
"""Shards that are open for reading at a time."""


@dataclass(frozen=True)
class Manifest:
    """What logits are of, and how they are stored.

    Attributes:
        version: of this format.
        base: name of the base, for people; ``base_fingerprint`` of its weights, ``vocabulary`` of its tokenizer.
        rows: fingerprint of the packed rows; ``count`` of them.
        positions: learned ones.
        vocab_size, k, dtype: as in ``LogitsFormat``.
        shard_rows: rows of a shard; the last may have fewer.
    """

    version: Literal[1]
    base: str
    base_fingerprint: str
    vocabulary: str
    rows: str
    count: int
    positions: int
    vocab_size: int
    k: int | None
    dtype: str
    shard_rows: int


@dataclass(frozen=True)
class ShardRecord:
    """The last record of a shard: what it is, and the errors of what it holds.

    Attributes:
        manifest: digest of the manifest.
        shard: its number.
        positions: learned ones of its rows.
        kl: sum over them, in nats, of the divergence of what is stored from what the base said.
        label_error: the largest absolute error of a label's log-probability.
    """

    manifest: str
    shard: int
    positions: int
    kl: float
    label_error: float


class LogitsFiles:
    """The logits of one base at the learned positions of some rows.

    Args:
        folder: of the files. Nothing is made or read before a method is called.
        form: what is stored of each position.
        rows: packed; position q of row n is learned where its weight is above 0.
        base: name of the base; ``base_fingerprint`` of its weights, ``vocabulary`` of its tokenizer.
    """

    def __init__(self, folder: Path, form: LogitsFormat, rows: Rows, base: str, base_fingerprint: str, vocabulary: str):
        self.folder, self.form, self.rows = folder, form, rows
        self.learned = rows.arrays["weights"] > 0
        counts = self.learned.sum(axis=1)
        shard_rows = max(1, SHARD_BYTES // max(1, int(counts.max()) * form.nbytes))
        self.manifest = Manifest(
            1, base, base_fingerprint, vocabulary, fingerprint(rows.arrays), len(rows), int(counts.sum()),
            form.vocab_size, form.k, DTYPE, min(shard_rows, len(rows)),
        )  # fmt: skip
        self.digest = digest(to_json(self.manifest))
        self._reader = functools.lru_cache(OPEN_SHARDS)(self._open)

    @property
    def nbytes(self) -> int:
        """Of all rows; what ArrayRecord adds, a few thousandths, is not counted."""
        return self.manifest.positions * self.form.nbytes

    @property
    def shards(self) -> int:
        return -(-len(self.rows) // self.manifest.shard_rows)

    def rows_of(self, shard: int) -> range:
        """Numbers of the rows of a shard."""
        first = shard * self.manifest.shard_rows
        return range(first, min(first + self.manifest.shard_rows, len(self.rows)))

    def path(self, shard: int) -> Path:
        return self.folder / f"rows-{shard:05d}.array_record"

    def missing(self) -> list[int]:
        """Numbers of the shards that are still to be written.

        Raises:
            InputError: a file that is there is damaged, or belongs to other logits.
        """
        if not self.folder.exists():
            return list(range(self.shards))
        path = self.folder / "manifest.json"
        try:
            if path.exists() or any(not each.name.endswith(TEMPORARY_SUFFIX) for each in self.folder.iterdir()):
                found, wanted = read_json(path), to_json(self.manifest)
                if other := [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]:
                    raise InputError(f"{path}: holds the logits of another run (other {', '.join(other)})")
        except InputError as error:
            raise self._refused(str(error)) from error
        absent = [shard for shard in range(self.shards) if not self.path(shard).exists()]
        for shard in sorted(set(range(self.shards)) - set(absent)):
            self.record(shard)
        return absent

    def prepare(self) -> None:
        """Makes the folder and its manifest, before anything is written into it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "manifest.json", to_json(self.manifest))

    def record(self, shard: int) -> ShardRecord:
        """The last record of a shard.

        Raises:
            InputError: the shard is damaged, or not of these logits.
        """
        content = self._read(shard, len(self.rows_of(shard)))
        try:
            found = from_json(ShardRecord, parse_json(content.decode()), str(self.path(shard)))
        except (InputError, ValueError) as error:
            raise self._refused(f"{self.path(shard)}: its last record cannot be read ({error})") from error
        if (found.manifest, found.shard) != (self.digest, shard):
            raise self._refused(f"{self.path(shard)}: is not part of these logits")
        return found

    def summary(self, which: Literal["training", "validation"]) -> StoredLogits:
        """What is stored, and how far it is from what the base said, over all positions."""
        records, manifest = [self.record(shard) for shard in range(self.shards)], self.manifest
        kl, worst = sum(each.kl for each in records) / manifest.positions, max(each.label_error for each in records)
        nbytes = sum(self.path(shard).stat().st_size for shard in range(self.shards))
        return StoredLogits(manifest.base, which, manifest.k, manifest.positions, nbytes, kl, worst)

    def __call__(self, numbers: np.ndarray, held: np.ndarray) -> dict[str, np.ndarray]:
        """What is stored of some rows, name -> (B, Q, ...), zeros where nothing is learned: ``train.problem.RowArrays``.

        Args:
            numbers: of the rows, (B,).
            held: bool (B,), which of them this process needs; the others are zeros, and not read.
        """
        leading = len(numbers), self.learned.shape[1]
        arrays = {name: np.zeros((*leading, *shape), dtype) for name, (shape, dtype) in self.form.arrays.items()}
        for place in np.flatnonzero(held):
            number = int(numbers[place])
            shard, column = divmod(number, self.manifest.shard_rows)
            content, learned, start = self._read(shard, column), self.learned[number], 0
            if len(content) != int(learned.sum()) * self.form.nbytes:
                raise self._refused(f"{self.path(shard)}: row {number} has {len(content)} bytes")
            for name, (shape, dtype) in self.form.arrays.items():
                part = np.frombuffer(content, dtype, int(learned.sum()) * int(np.prod(shape)), start)
                arrays[name][place, learned] = part.reshape(-1, *shape)
                start += part.nbytes
        return arrays

    def _open(self, shard: int) -> Any:
        from array_record.python.array_record_module import ArrayRecordReader

        path = self.path(shard)
        if not path.is_file():
            raise self._refused(f"{path}: is missing")
        try:
            reader = ArrayRecordReader(str(path), "readahead_buffer_size:0")
            records = reader.num_records()
        except (RuntimeError, ValueError) as error:
            raise self._refused(f"{path}: cannot be read ({first_line(error)})") from error
        if records != (wanted := len(self.rows_of(shard)) + 1):
            raise self._refused(f"{path}: damaged or cut off, it has {records} records of {wanted}")
        return reader

    def _read(self, shard: int, record: int) -> bytes:
        reader = self._reader(shard)
        try:
            return reader.read([record])[0]
        except (RuntimeError, ValueError, IndexError) as error:
            raise self._refused(f"{self.path(shard)}: damaged ({first_line(error)})") from error

    def _refused(self, reason: str) -> InputError:
        return InputError(f"{reason}; delete {self.folder} and continue with `resume`: its logits are then written again")


def first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
