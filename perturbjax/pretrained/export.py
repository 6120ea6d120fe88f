"""Parameters -> a Hugging Face directory that transformers and ``load_model`` read."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from perturbjax.errors import InputError
from perturbjax.models.config import DecoderConfig, param_shapes
from perturbjax.pretrained.families import FAMILIES
from perturbjax.pretrained.hf_config import decoder_config, same_factors
from perturbjax.pretrained.hf_loader import INDEX, SINGLE
from perturbjax.pretrained.model import Model
from perturbjax.pretrained.params import DTYPES, stacked, transposed_kernel
from perturbjax.tree import leaf_paths

SHARD_BYTES = 4 * 2**30
"""Largest safetensors file written, unless one tensor alone is larger."""


def export_safetensors(model: Model, params: Mapping[str, Any], out_dir: str | os.PathLike[str], *, shard_bytes: int = SHARD_BYTES) -> Path:
    """Writes ``params`` in place of the model's own as a Hugging Face model directory.

    config.json, generation_config.json, safetensors (sharded with an index above ``shard_bytes``), tokenizer.json, and
    tokenizer_config.json with the chat template. Values keep the dtype of ``params``, float32 or bfloat16, bit for bit. The directory
    appears whole or not at all.

    Args:
        model: where the shape, the tokenizer and the configuration come from.
        params: nested dicts of arrays (numpy or jax) laid out as ``param_shapes(model.config)``.
        out_dir: a directory that does not exist yet, or is empty.
        shard_bytes: largest file of weights, in bytes.

    Returns:
        The directory.

    Raises:
        InputError: the directory holds something, or config.json cannot express the model's rotary factors.
        ValueError: params of another layout, or of a dtype that is neither float32 nor bfloat16.
    """
    out = Path(out_dir)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"out_dir {str(out)!r}: exists and is not an empty directory; give a new one")
    if not same_factors(decoder_config(model.hf_config).rope_factors, model.config.rope_factors):
        reason = "its rotary factors are not those of a released Llama 3.x, and config.json has no other way to state them"
        raise InputError(f"model {model.name!r}: cannot be exported: {reason}")
    arrays = _checked(model, params)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    except OSError as error:
        raise InputError(f"out_dir {str(out)!r}: cannot be created: {error.strerror}") from error
    try:
        _write_weights(partial, model.config, arrays, shard_bytes)
        dtype = str(next(iter(arrays.values())).dtype)
        # transformers 5 reads "dtype", older ones "torch_dtype".
        config = {key: value for key, value in model.hf_config.items() if key != "dtype"} | {"torch_dtype": dtype}
        _write_json(partial / "config.json", config)
        generation = {"eos_token_id": list(model.tokenizer.stop_ids), "pad_token_id": model.tokenizer.pad_id}
        _write_json(partial / "generation_config.json", generation)
        files = model.tokenizer.to_files()
        (partial / "tokenizer.json").write_text(files["tokenizer.json"], encoding="utf-8")
        _write_json(partial / "tokenizer_config.json", files["tokenizer_config.json"])
        _make_readable(partial)
        # Renaming over an empty directory is atomic, and fails if it has been filled meanwhile.
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return out


def _checked(model: Model, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    arrays = {path: np.asarray(leaf) for path, leaf in leaf_paths(params).items()}
    shapes = {path: array.shape for path, array in arrays.items()}
    expected = param_shapes(model.config)
    if shapes != expected:
        path = min(path for path in shapes.keys() | expected.keys() if shapes.get(path) != expected.get(path))
        raise ValueError(f"params: {path} is {shapes.get(path)} where model {model.name!r} has {expected.get(path)}")
    dtypes = {array.dtype for array in arrays.values()}
    if len(dtypes) != 1 or not dtypes <= set(DTYPES.values()):
        raise ValueError(f"params: must all be one of {', '.join(DTYPES)}, got {', '.join(sorted(map(str, dtypes)))}")
    return arrays


def hf_tensors(config: DecoderConfig, params: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of all layers by their Hugging Face names, as views in the orientation of the files."""
    names = FAMILIES[config.architecture].tensors
    for path, array in leaf_paths(params).items():
        array = np.asarray(array)
        for place in np.ndindex(array.shape[: stacked(names[path].hf)]):
            yield names[path].hf.format(*place), transposed_kernel(path, array[place])


def _write_weights(folder: Path, config: DecoderConfig, arrays: Mapping[str, np.ndarray], shard_bytes: int) -> None:
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, tensor in hf_tensors(config, arrays):
        if size + tensor.nbytes > shard_bytes and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    files = [SINGLE] if len(shards) == 1 else [f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors" for index in range(len(shards))]
    for file, shard in zip(files, shards, strict=True):
        # The views are copied to contiguous arrays one shard at a time. transformers requires "pt" in the metadata.
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in shard.items()}, folder / file, metadata={"format": "pt"})
    if len(shards) > 1:
        weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        total = sum(array.nbytes for array in arrays.values())
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _make_readable(folder: Path) -> None:
    # Temporary directories and safetensors files are made for their owner alone; what is exported follows the user's umask.
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
    for path in folder.iterdir():
        path.chmod(0o666 & ~mask)
