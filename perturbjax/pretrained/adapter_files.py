"""LoRA adapters as PEFT keeps them: ``adapter_config.json`` and ``adapter_model.safetensors``, written and read.

The format is described in PEFT's developer guide, "PEFT checkpoint format": for each adapted ``nn.Linear`` NAME of the model the file holds
``base_model.model.NAME.lora_A.weight`` (r, in) and ``base_model.model.NAME.lora_B.weight`` (out, r), and y = x W + (lora_alpha / r) B A x.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from perturbjax.errors import InputError
from perturbjax.models.adapters import LoRA
from perturbjax.models.config import param_shapes
from perturbjax.pretrained.families import FAMILIES
from perturbjax.pretrained.files import one_line, read_json
from perturbjax.pretrained.model import Model
from perturbjax.pretrained.params import DTYPES, stacked
from perturbjax.tree import fingerprint, leaf_paths, nest

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_BASE = "base_fingerprint"
"""Key in the metadata of the safetensors file: which base it is. PEFT does not read it."""
_SAID = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "lora_dropout": 0.0,
    "modules_to_save": None,
    "use_dora": False,
    "use_rslora": False,
}
_READ = {"r", "lora_alpha", "use_rslora", "target_modules", "peft_type", "task_type", "bias", "init_lora_weights"}
"""Keys of adapter_config.json that are read."""
_IDLE = {
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "lora_dropout",
    "peft_version",
    "exclude_modules",
    "megatron_core",
    "qalora_group_size",
    "ensure_weight_tying",
}
"""Keys that say nothing about what the finished adapter computes, or only where another key asks for something. Every other key must be
empty: it changes what is computed in a way that is not supported."""


def write_adapter(lora: LoRA, trained: Any, model: Model, folder: Path) -> Path:
    """Writes an adapter of a model's base.

    Args:
        lora: the adapter.
        trained: its factors.
        model: the base, named and fingerprinted in the files.
        folder: a directory that does not exist yet, or is empty.

    Raises:
        InputError: the directory holds something.
        ValueError: factors of a leaf that is no matrix of the decoder's layers or its head.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"out_dir {str(folder)!r}: exists and is not an empty directory; give a new one")
    flat = {path: np.asarray(leaf, np.float32) for path, leaf in leaf_paths(trained).items()}
    tensors, modules = {}, set()
    for path in (path[:-2] for path in flat if path.endswith("/a")):
        names = _modules(model, path)
        modules.add(names[0].rpartition(".")[2])
        for letter in ("a", "b"):
            stack = flat[f"{path}/{letter}"]
            for name, factor in zip(names, stack if path.startswith("layers/") else stack[None], strict=True):
                tensors[_tensor(name, letter)] = np.ascontiguousarray(factor.T)
    alpha = int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha
    config = _SAID | {"base_model_name_or_path": model.name, "r": lora.rank, "lora_alpha": alpha, "target_modules": sorted(modules)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(save(tensors, {"format": "pt", _BASE: _base_fingerprint(model)}))
    # Last: without it a directory is no adapter.
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return folder


def read_adapter(folder: Path, model: Model) -> tuple[LoRA, dict[str, Any]]:
    """Reads an adapter for a model: its settings, and its factors as nested dicts of float32 numpy arrays.

    Raises:
        InputError: a file is missing or damaged; the adapter asks for something that is not supported, which is named; or it is one of
            another base, by its fingerprint or its shapes.
    """
    where = f"adapter '{folder}'"
    if not folder.is_dir():
        raise InputError(f"{where}: no such directory; give one with {CONFIG} and {WEIGHTS}")
    try:
        config = read_json(folder / CONFIG)
        rank, alpha = _settings(config)
        metadata, tensors = _tensors(folder)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    if _BASE in metadata and metadata[_BASE] != _base_fingerprint(model):
        raise InputError(f"{where}: it was trained on another base than {model.name} (the weights differ); give that one")
    flat: dict[str, np.ndarray] = {}
    left = dict(tensors)
    for path, shape in param_shapes(model.config).items():
        names = _modules(model, path) if path in adapted_matrices(model) else []
        if not any(_tensor(name, "a") in tensors for name in names):
            continue
        for letter, want in (("a", (rank, shape[-2])), ("b", (shape[-1], rank))):
            stack = []
            for name in (_tensor(name, letter) for name in names):
                factor = left.pop(name, None)
                if factor is None:
                    raise InputError(f"{where}: {name} is missing; adapters of some layers alone are not supported")
                if factor.shape != want:
                    raise InputError(f"{where}: {name} has shape {factor.shape} where rank {rank} and {model.name} ask for {want}")
                if not np.isfinite(factor).all():
                    raise InputError(f"{where}: {name} holds NaN or infinity; the file is damaged, copy it again")
                stack.append(np.asarray(factor, np.float32).T)
            flat[f"{path}/{letter}"] = np.stack(stack) if path.startswith("layers/") else np.ascontiguousarray(stack[0])
    if left or not flat:
        what = f"{min(left)} belongs to no matrix of {model.name}" if left else "there are no LoRA factors"
        raise InputError(f"{where}: {what}; give an adapter of this base")
    rules = tuple(f"^{re.escape(path[:-2])}$" for path in flat if path.endswith("/a"))
    return LoRA(rank, alpha, rules), nest(flat)


def _base_fingerprint(model: Model) -> str:
    """Of the base's weights rounded to bfloat16: the same whether it was loaded in float32 or in bfloat16."""
    return fingerprint({path: np.asarray(leaf).astype(DTYPES["bfloat16"]) for path, leaf in leaf_paths(model.params).items()})


def _modules(model: Model, path: str) -> list[str]:
    """The modules of transformers that a kernel is, one a layer."""
    matrices = adapted_matrices(model)
    if path not in matrices:
        raise ValueError(f"trained: {path} is no matrix of a decoder that PEFT has a name for")
    name = matrices[path].removesuffix(".weight")
    return [name.format(layer) for layer in range(model.config.num_layers if stacked(name) else 1)]


def adapted_matrices(model: Model) -> dict[str, str]:
    """Path -> tensor name of every kernel that PEFT adapts: not those of experts, which are one parameter in transformers."""
    tensors = FAMILIES[model.config.architecture].tensors
    return {path: names.hf for path, names in tensors.items() if path.endswith("/kernel") and stacked(names.hf) < 2}


def _tensor(module: str, letter: str) -> str:
    return f"{_PREFIX}{module}.lora_{letter.upper()}.weight"


def _settings(config: Mapping[str, Any]) -> tuple[int, float]:
    """Rank and alpha, once everything else is known to be nothing special."""

    def refuse(key: str, required: str) -> None:
        raise InputError(f"{CONFIG}: {key} {json.dumps(config.get(key))}: {required}")

    if config.get("peft_type") != "LORA":
        refuse("peft_type", '"LORA" is required')
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        refuse("task_type", '"CAUSAL_LM" is required')
    if config.get("bias") not in (None, "none"):
        refuse("bias", '"none" is required, trained biases are not supported')
    start = config.get("init_lora_weights")
    if not (start is None or isinstance(start, bool) or start == "gaussian"):
        refuse("init_lora_weights", "true, false or gaussian is required: others may change the base's weights too")
    for key in sorted(config.keys() - _READ - _IDLE):
        if config[key]:
            refuse(key, "is not supported; give a plain LoRA adapter, or merge it into its base with the peft package")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        refuse("r", "a positive integer is required")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        refuse("lora_alpha", "a number above 0 is required")
    assert isinstance(rank, int) and isinstance(alpha, int | float)
    # rsLoRA (arXiv 2312.03732) divides by the root of the rank: the same adapter with another alpha.
    return rank, alpha * math.sqrt(rank) if config.get("use_rslora") else float(alpha)


def _tensors(folder: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        reason = "; adapter_model.bin is a pickle, which can run any code and is never read: convert it to safetensors" if pickled else ""
        raise InputError(f"{WEIGHTS} is missing{reason}")
    try:
        with safe_open(folder / WEIGHTS, framework="numpy") as file:
            return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise InputError(f"{WEIGHTS} is cut off or no safetensors file ({one_line(error)}); copy it again") from error
