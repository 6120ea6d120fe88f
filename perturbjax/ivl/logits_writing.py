"""Running a base once over packed rows, to write its logits at the learned positions to files.

Every device along "data" makes the rows of one shard at a time, and the process that has this device writes them. So all processes work,
none has more than a pass of logits in memory, and a shard holds the same rows on every mesh.
"""

import contextlib
import functools
import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from perturbjax import sharding
from perturbjax.cluster import gather, on_main
from perturbjax.ivl.logits_files import LogitsFiles, ShardRecord, first_line
from perturbjax.ivl.logits_format import LogitsFormat
from perturbjax.models.config import DecoderConfig
from perturbjax.records import to_json
from perturbjax.runs.files import TEMPORARY_SUFFIX
from perturbjax.sharding import DATA, OVER_DATA
from perturbjax.train.language import LOGIT_ROWS, hidden_at_queries, map_over_queries
from perturbjax.train.placement import put_params

_OPTIONS = "group_size:1,uncompressed"
"""Of ArrayRecord: a record is read alone. Compression saves little of log-probabilities, and files without it have a known size."""


def write_missing(
    files: LogitsFiles, base: DecoderConfig, params: Any, mesh: Mesh, on_rows: Callable[[int], None] = lambda done: None
) -> None:
    """Writes the shards that are not there; all processes of a run call this together. The base is on the devices until it returns.

    Args:
        files: where to, of which rows.
        base: shape of the base.
        params: its parameters, numpy arrays or ``StoredLeaf``.
        mesh: (data, model).
        on_rows: told how many rows are written, those that were there included.

    Raises:
        InputError: what is there is damaged, or of other logits.
        OSError: a file could not be written.
        FloatingPointError: the base's logits are not finite.
    """
    missing: list[int] = on_main(files.missing)
    done = len(files.rows) - sum(len(files.rows_of(shard)) for shard in missing)
    on_rows(done)
    if not missing:
        return
    on_main(files.prepare)
    layout = base.partition(mesh.shape[sharding.MODEL])
    arrays = put_params(params, mesh, layout.dims(base) if layout else {})
    run = _program(base, files.form, mesh)
    devices = mesh.shape[DATA]
    mine = [place for place, device in enumerate(mesh.devices[:, 0]) if device.process_index == jax.process_index()]
    pass_rows = min(max(1, LOGIT_ROWS // files.learned.shape[1]), files.manifest.shard_rows)
    for first in range(0, len(missing), devices):
        shards = missing[first : first + devices]
        # A device without a shard makes rows that nobody takes.
        rows = [files.rows_of(shard) for shard in shards] + [files.rows_of(shards[-1])] * (devices - len(shards))
        with contextlib.ExitStack() as stack:
            writers = {place: stack.enter_context(ShardWriter(files, shards[place])) for place in mine if place < len(shards)}
            for start in range(0, max(map(len, rows)), pass_rows):
                numbers = np.asarray([[its[min(start + i, len(its) - 1)] for i in range(pass_rows)] for its in rows])
                found = run(arrays, sharding.put_over_data(files.rows.batch(numbers.ravel()), mesh))
                for place, writer in writers.items():
                    its = _of_device(found, place, devices)
                    for row, number in enumerate(rows[place][start : start + pass_rows]):
                        writer.add(number, {name: array[row] for name, array in its.items()})
        # Nobody goes on before all shards are in their places.
        gather(np.int32(0))
        on_rows(done := done + sum(len(files.rows_of(shard)) for shard in shards))


@functools.cache
def _program(base: DecoderConfig, form: LogitsFormat, mesh: Mesh) -> Any:
    """(params, packed rows) -> the arrays of the format, "kl" and "label_error": (B, Q, ...), B sharded over "data"."""

    def some(decoder: Any, hidden: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        z = decoder.logits(hidden)
        stored = form.encode(z)
        kl, label_error = form.errors(z, stored, labels)
        return stored | {"kl": kl, "label_error": label_error}

    def run(params: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        decoder = base.build(params)
        return map_over_queries(functools.partial(some, decoder), mesh.shape[DATA], hidden_at_queries(decoder, batch), batch["labels"])

    return jax.jit(run, out_shardings=NamedSharding(mesh, OVER_DATA))


def _of_device(arrays: dict[str, jax.Array], place: int, devices: int) -> dict[str, np.ndarray]:
    """The rows of one place along "data", which a device of this process holds."""

    def one(array: jax.Array) -> np.ndarray:
        first = place * array.shape[0] // devices
        return np.asarray(next(shard.data for shard in array.addressable_shards if (shard.index[0].start or 0) == first))

    return {name: one(array) for name, array in arrays.items()}


class ShardWriter:
    """Writes one shard beside its place, and moves it there at the end of its ``with`` block unless that fails; rows come in order."""

    def __init__(self, files: LogitsFiles, shard: int):
        from array_record.python.array_record_module import ArrayRecordWriter

        self._files, self._path, self._record = files, files.path(shard), ShardRecord(files.digest, shard, 0, 0.0, 0.0)
        self._temporary = self._path.with_name(f".{self._path.name}{TEMPORARY_SUFFIX}")
        self._writer: Any = ArrayRecordWriter(str(self._temporary), _OPTIONS)

    def add(self, number: int, found: dict[str, np.ndarray]) -> None:
        """One row: what ``_program`` gives for it, of leading (Q,).

        Raises:
            OSError: it could not be written (a full disk), which the end of the block may raise too.
            FloatingPointError: the errors are not finite.
        """
        learned = {name: array[self._files.learned[number]] for name, array in found.items()}
        kl, worst = float(learned["kl"].sum(dtype=np.float64)), float(learned["label_error"].max(initial=0))
        if not math.isfinite(kl + worst):
            raise FloatingPointError(f"the logits of {self._files.manifest.base} are not finite in row {number}")
        done = self._record
        self._record = replace(
            done, positions=done.positions + len(learned["kl"]), kl=done.kl + kl, label_error=max(done.label_error, worst)
        )
        self._do(lambda: self._writer.write(b"".join(learned[name].tobytes() for name in self._files.form.arrays)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is None:
                self._do(lambda: self._writer.write(json.dumps(to_json(self._record)).encode()))
                self._do(self._writer.close)
                with open(self._temporary, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(self._temporary, self._path)
        finally:
            self._temporary.unlink(missing_ok=True)

    def _do(self, act: Callable[[], Any]) -> None:
        try:
            act()
        except RuntimeError as error:
            raise OSError(f"{self._path}: cannot be written ({first_line(error)})") from error
