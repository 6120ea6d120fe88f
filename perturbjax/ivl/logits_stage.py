"""The stage of a run that writes the bases' logits, before training: which of them, where, whether there is room, with which errors."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jax.sharding import Mesh

from perturbjax.cluster import on_main
from perturbjax.errors import InputError
from perturbjax.ivl.logits_files import LogitsFiles
from perturbjax.ivl.logits_format import LogitsFormat
from perturbjax.ivl.logits_writing import write_missing
from perturbjax.ivl.results import StoredLogits
from perturbjax.ivl.setup import Packed, Parts
from perturbjax.records import from_json, to_json
from perturbjax.report.words import size
from perturbjax.runs.console import Progress

SHARD_EXTRA, BLOCK_EXTRA = 1 << 17, 1.001
"""What ArrayRecord adds at most: bytes of a shard, and a factor of what it holds."""


@dataclass(frozen=True)
class BaseLogits:
    """The logits of ``Parts.models[model]`` on the training or the validation rows."""

    model: int
    rows: Literal["training", "validation"]
    files: LogitsFiles


def bases_logits(parts: Parts, packed: Packed, folder: Path) -> tuple[BaseLogits, ...]:
    """Of each base that is trained on the training rows', then the validation rows' of the one that is validated with; empty where the
    bases are run in every step. Nothing is read or written yet."""
    bases = parts.config.bases
    if bases.logits == "live":
        return ()
    fingerprints = [parts.fingerprint, *parts.identity["other_fingerprints"]]

    def one(number: int, which: Literal["training", "validation"]) -> BaseLogits:
        model, rows = parts.models[number], packed.rows if which == "training" else packed.validation
        form, place = LogitsFormat(model.config.vocab_size, bases.kept), folder / f"{number}-{which}"
        return BaseLogits(number, which, LogitsFiles(place, form, rows, model.name, fingerprints[number], parts.vocabulary))

    trained = [one(number, "training") for number in range(1 + len(bases.also))]
    return *trained, one(len(parts.models) - 1 if bases.held_out else 0, "validation")


def check_room(logits: Sequence[BaseLogits], note: Callable[[str], None]) -> None:
    """Says how much is to be written and where, before it is; on process 0.

    Raises:
        InputError: the disk has too little room, or what is there is damaged or of other logits.
    """
    left, positions = 0, 0
    for files in [each.files for each in logits]:
        counts = files.learned.sum(axis=1)
        missing = files.missing()
        learned = sum(int(counts[number]) for shard in missing for number in files.rows_of(shard))
        left += round(learned * files.form.nbytes * BLOCK_EXTRA) + len(missing) * SHARD_EXTRA
        positions += learned
    if not left:
        return
    folder = logits[0].files.folder.parent
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if left > free:
        k = logits[0].files.form.k
        fewer = "use `logits` top_k" if k is None else f"lower `logits_k` {k}"
        what = f"up to {size(left)} in {folder}, where {size(free)} are free"
        raise InputError(f"`logits` {'whole' if k is None else 'top_k'}: the base's logits at {positions:,} positions take {what}; {fewer}")
    note(f"logits of the base at {positions:,} positions: at most {size(left)} in {folder}, {size(free)} are free")


def write_logits(parts: Parts, logits: Sequence[BaseLogits], mesh: Mesh, progress: Progress) -> tuple[StoredLogits, ...]:
    """Writes what is not there yet, with one base on the devices at a time; returns what is stored, with its errors."""
    found = []
    for each in logits:
        model, files = parts.models[each.model], each.files
        with progress.bar(f"logits of {model.name}, {each.rows}", len(files.rows), unit="row") as bar:
            write_missing(files, model.config, model.params, mesh, bar.update)
        summary = on_main(lambda files=files, which=each.rows: to_json(files.summary(which)))
        found.append(from_json(StoredLogits, summary, str(files.folder)))
    return tuple(found)
