"""``value/`` of a run: the weights of the value network, and a record of what it is and which base it was trained beside."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from perturbjax.errors import InputError
from perturbjax.ivl.value import Connection, Outputs, ValueConfig
from perturbjax.models.config import DecoderConfig
from perturbjax.pretrained.families import FAMILIES
from perturbjax.records import from_json, refuse, to_json
from perturbjax.runs.files import read_arrays, read_json, write_atomically, write_json
from perturbjax.tree import fingerprint, leaf_paths

WEIGHTS, RECORD = "value.safetensors", "value.json"


@dataclass(frozen=True)
class ValueRecord:
    """The JSON beside the weights.

    Attributes:
        version: of this format.
        connection: of the value network to a base.
        decoder: its sizes.
        fingerprint: of its weights.
        base: name of the base that it was trained beside, for people.
        base_fingerprint: of that base's weights.
        vocabulary: of that base's tokenizer (``tokens.TokenTable.vocabulary``).
        outputs: what its logits are of.
    """

    version: Literal[1]
    connection: Connection
    decoder: DecoderConfig
    fingerprint: str
    base: str
    base_fingerprint: str
    vocabulary: str
    outputs: Outputs = "tokens"

    @property
    def config(self) -> ValueConfig:
        return ValueConfig(self.decoder, self.connection, self.outputs)


def save_value(folder: Path, config: ValueConfig, params: Any, base: str, base_fingerprint: str, vocabulary: str) -> None:
    """Writes both files. A kill between them leaves a pair that ``load_value`` refuses."""
    from safetensors.numpy import save

    arrays = {path: np.asarray(leaf, np.float32) for path, leaf in leaf_paths(params).items()}
    folder.mkdir(exist_ok=True)
    write_atomically(folder / WEIGHTS, lambda file: file.write(save(arrays)))
    record = ValueRecord(1, config.connection, config.decoder, fingerprint(arrays), base, base_fingerprint, vocabulary, config.outputs)
    write_json(folder / RECORD, to_json(record))


def load_value(folder: Path) -> tuple[ValueRecord, dict[str, Any]]:
    """The record, and the parameters as nested dicts of float32 numpy arrays.

    Raises:
        InputError: a file is missing or damaged, or they do not belong together.
    """
    if not (folder / RECORD).is_file():
        raise InputError(f"{folder}: no value network there, the training has not finished; continue it with `resume`")
    record = from_json(ValueRecord, read_json(folder / RECORD), str(folder / RECORD))
    if record.decoder.architecture not in FAMILIES:
        refuse(str(folder / RECORD), "decoder.architecture", record.decoder.architecture, f"one of {', '.join(FAMILIES)} is required")
    params = read_arrays(folder / WEIGHTS, record.config.shapes, "restore the file, or train anew in another `out`")
    if fingerprint(params) != record.fingerprint:
        raise InputError(f"{folder / WEIGHTS}: not the weights that {RECORD} belongs to; restore the files, or train anew in another `out`")
    return record, params
