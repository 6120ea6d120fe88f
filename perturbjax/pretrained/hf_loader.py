"""Hugging Face model directories: config.json and safetensors, in one file or in shards named by an index."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from perturbjax.errors import InputError, one_line
from perturbjax.models.config import DecoderConfig, param_shapes
from perturbjax.pretrained.families import FAMILIES
from perturbjax.pretrained.files import read_json
from perturbjax.pretrained.hf_config import decoder_config
from perturbjax.pretrained.model import Model
from perturbjax.pretrained.params import ReadPart, assemble, check_names, defer, stacked, tensor_names, transposed_kernel
from perturbjax.pretrained.tokenizer_sources import tokenizer_from_directory

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = ("BF16", "F16", "F32", "F64")
# Buffers of old checkpoints: recomputed, never weights.
_RECOMPUTED = ".rotary_emb.inv_freq"


class _Open(NamedTuple):
    """A safetensors file by name, and its handle."""

    file: str
    handle: Any


def load_directory(directory: Path, dtype: str, name: str, stored: bool = False) -> Model:
    """Reads a directory as transformers' ``save_pretrained`` writes it.

    Args:
        directory: holds config.json, tokenizer.json and safetensors.
        dtype: ``float32`` or ``bfloat16``, what the parameters are kept in.
        name: the model's name.
        stored: leave the parameters in their files (``StoredLeaf``); slicing one reads that slice only.

    Raises:
        InputError: a missing, cut-off or damaged file, missing or mis-shaped tensors, or an unsupported architecture or option.
    """
    raw = read_json(directory / "config.json")
    config = decoder_config(raw)
    with _tensors(directory) as tensors:
        params = _params(config, tensors, dtype, directory if stored else None)
        kinds = sorted({tensors[tensor].handle.get_slice(tensor).get_dtype() for tensor in tensors})
    tokenizer = tokenizer_from_directory(directory, raw, name)
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(f"tokenizer.json has {tokenizer.vocab_size} tokens but the embedding {config.vocab_size} rows")
    source = f"Hugging Face model {name}, {'/'.join(kinds)} safetensors, not quantized, held in {dtype}"
    return Model(name=name, source=source, config=config, params=params, tokenizer=tokenizer, hf_config=raw)


def _params(config: DecoderConfig, tensors: Mapping[str, _Open], dtype: str, stored: Path | None) -> dict[str, Any]:
    """The parameters as arrays; with ``stored``, the model's directory, as leaves whose shapes and dtypes have been checked."""
    if config.num_layers * max(1, config.num_experts) > len(tensors):
        experts = f" of {config.num_experts} experts" if config.num_experts else ""
        raise InputError(f"config.json asks for {config.num_layers} layers{experts} but there are only {len(tensors)} tensors")
    names = {path: tensor.hf for path, tensor in FAMILIES[config.architecture].tensors.items()}
    expected = tensor_names(config, names)
    # A tied model may store its head as well; transformers ignores it too.
    ignored = {names["head/kernel"]} if config.tied_head else set()
    check_names(config, expected, {name for name in tensors if name not in ignored and not name.endswith(_RECOMPUTED)})

    for name, path in expected.items():
        header = tensors[name].handle.get_slice(name)
        if (kind := header.get_dtype()) not in _FLOATS:
            raise InputError(f"tensor {name} is {kind}; supported are {', '.join(_FLOATS)}")
        if stored is not None and tuple(header.get_shape()) != (wanted := _file_shape(config, path, names[path])):
            raise InputError(f"tensor {name} has shape {tuple(header.get_shape())} where the configuration asks for {wanted}")

    def read(path: str, place: tuple[int, ...]) -> np.ndarray:
        name = names[path].format(*place)
        return transposed_kernel(path, tensors[name].handle.get_tensor(name))

    if stored is None:
        return assemble(config, dtype, names, read)
    return defer(config, dtype, names, _reader_of_parts(stored, names, {name: tensors[name].file for name in expected}), stored)


def _file_shape(config: DecoderConfig, path: str, name: str) -> tuple[int, ...]:
    shape = param_shapes(config)[path][stacked(name) :]
    return shape[::-1] if path.endswith("kernel") else shape


def _reader_of_parts(directory: Path, names: Mapping[str, str], files: Mapping[str, str]) -> ReadPart:
    def read(path: str, place: tuple[int, ...], index: tuple[slice, ...]) -> np.ndarray:
        name = names[path].format(*place)
        try:
            with safe_open(directory / files[name], framework="numpy") as file:
                part = file.get_slice(name)[index[::-1] if path.endswith("kernel") else index]
        except (SafetensorError, OSError) as error:
            raise InputError(f"{files[name]}: tensor {name} cannot be read any more ({one_line(error)})") from error
        return transposed_kernel(path, part)

    return read


@contextmanager
def _tensors(directory: Path) -> Iterator[dict[str, _Open]]:
    """Tensor name -> the open file that holds it."""
    if (directory / SINGLE).is_file():
        files = [SINGLE]
        weight_map = None
    elif (directory / INDEX).is_file():
        weight_map = read_json(directory / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{INDEX} has no weight_map")
        files = sorted({str(file) for file in weight_map.values()})
        if outside := [file for file in files if Path(file).name != file]:
            raise InputError(f"{INDEX} names {outside[0]!r}, which is not a file name in the directory")
    else:
        pickled = sorted(path.name for path in directory.iterdir() if path.suffix in (".bin", ".pt", ".pth"))
        reason = f"; {pickled[0]} is a pickle, which can run any code and is never read: convert it to safetensors" if pickled else ""
        raise InputError(f"neither {SINGLE} nor {INDEX} is there{reason}")
    tensors: dict[str, _Open] = {}
    with ExitStack() as stack:
        for file in files:
            try:
                # The library checks the header against the file's length before it maps anything.
                handle = stack.enter_context(safe_open(directory / file, framework="numpy"))
            except FileNotFoundError as error:
                raise InputError(f"{file}, which {INDEX} names, is missing") from error
            except (SafetensorError, OSError) as error:
                raise InputError(f"{file} is cut off or no safetensors file ({one_line(error)}); download it again") from error
            tensors |= dict.fromkeys(handle.keys(), _Open(file, handle))
        if weight_map is not None and (absent := sorted(weight_map.keys() - tensors.keys())):
            raise InputError(f"tensor {absent[0]}, which {INDEX} names, is in none of the shards")
        yield tensors
