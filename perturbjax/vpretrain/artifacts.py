"""``designer/`` of a run: the designer's weights, and a record of what it is and which vocabulary it speaks. The learner lies in ``model/``
as a Hugging Face directory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from perturbjax.errors import InputError
from perturbjax.pretrained.tokenizer import Tokenizer
from perturbjax.records import from_json, to_json
from perturbjax.runs.files import read_arrays, read_json, write_atomically, write_json
from perturbjax.tree import digest, fingerprint, leaf_paths
from perturbjax.vpretrain.designer import TopKDesigner

WEIGHTS, RECORD = "designer.safetensors", "designer.json"


@dataclass(frozen=True)
class DesignerRecord:
    """The JSON beside the weights: the designer's shape, a fingerprint of its weights, and one of the tokenizer whose tokens it reads."""

    version: Literal[1]
    designer: TopKDesigner
    fingerprint: str
    vocabulary: str


def vocabulary_of(tokenizer: Tokenizer) -> str:
    """What a tokenizer is known by: ``sha256:...`` of its tokenizer.json."""
    return digest(tokenizer.to_files()["tokenizer.json"])


def save_designer(folder: Path, designer: TopKDesigner, params: Any, vocabulary: str) -> None:
    """Writes both files. A kill between them leaves a pair that ``load_designer`` refuses."""
    from safetensors.numpy import save

    arrays = {path: np.asarray(leaf, np.float32) for path, leaf in leaf_paths(params).items()}
    folder.mkdir(exist_ok=True)
    write_atomically(folder / WEIGHTS, lambda file: file.write(save(arrays)))
    write_json(folder / RECORD, to_json(DesignerRecord(1, designer, fingerprint(arrays), vocabulary)))


def load_designer(folder: Path, designer: TopKDesigner, vocabulary: str) -> dict[str, Any]:
    """The parameters of a designer of this shape, as nested dicts of float32 numpy arrays.

    Raises:
        InputError: a file is missing or damaged, or the designer has another shape or speaks another tokenizer's tokens.
    """
    if not (folder / RECORD).is_file():
        raise InputError(f"`designer` {folder.parent}: no designer there; give the directory of a finished run of vpretrain")
    record = from_json(DesignerRecord, read_json(folder / RECORD), str(folder / RECORD))
    if record.vocabulary != vocabulary:
        raise InputError(f"`designer` {folder.parent}: it speaks another tokenizer's tokens; give one of a run with this model's tokenizer")
    if record.designer != designer:
        named = {"hidden": "`designer_hidden`", "layers": "`designer_layers`", "sees_log_probs": "`designer_log_probs`"}
        named |= {name: f"`{name}`" for name in ("candidates", "alpha_max")}
        pairs = [(named.get(name, name), value, vars(record.designer)[name]) for name, value in vars(designer).items()]
        found = "; ".join(f"{name} {mine}, it has {its}" for name, mine, its in pairs if mine != its)
        raise InputError(f"`designer` {folder.parent}: {found}; give its settings")
    params = read_arrays(folder / WEIGHTS, designer.shapes, "restore the file")
    if fingerprint(params) != record.fingerprint:
        raise InputError(f"{folder / WEIGHTS}: not the weights that {RECORD} belongs to; restore the files")
    return params
