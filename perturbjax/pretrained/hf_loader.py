"""Hugging Face model directories: config.json and safetensors, in one file or in shards named by an index."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from perturbjax.errors import InputError
from perturbjax.models.config import DecoderConfig, param_shapes
from perturbjax.pretrained.chat_template import one_line
from perturbjax.pretrained.hf_config import decoder_config
from perturbjax.pretrained.model import Model
from perturbjax.pretrained.params import LAYERS, ReadPart, assemble, defer
from perturbjax.pretrained.tokenizer_sources import read_json, tokenizer_from_directory

HF_NAMES = {
    "embed/embedding": "model.embed_tokens.weight",
    "layers/attention_norm/scale": "model.layers.{}.input_layernorm.weight",
    "layers/attention/q/kernel": "model.layers.{}.self_attn.q_proj.weight",
    "layers/attention/k/kernel": "model.layers.{}.self_attn.k_proj.weight",
    "layers/attention/v/kernel": "model.layers.{}.self_attn.v_proj.weight",
    "layers/attention/o/kernel": "model.layers.{}.self_attn.o_proj.weight",
    "layers/attention/q/bias": "model.layers.{}.self_attn.q_proj.bias",
    "layers/attention/k/bias": "model.layers.{}.self_attn.k_proj.bias",
    "layers/attention/v/bias": "model.layers.{}.self_attn.v_proj.bias",
    "layers/mlp_norm/scale": "model.layers.{}.post_attention_layernorm.weight",
    "layers/mlp/gate/kernel": "model.layers.{}.mlp.gate_proj.weight",
    "layers/mlp/up/kernel": "model.layers.{}.mlp.up_proj.weight",
    "layers/mlp/down/kernel": "model.layers.{}.mlp.down_proj.weight",
    "norm/scale": "model.norm.weight",
    "head/kernel": "lm_head.weight",
}
"""Path in the parameter tree -> Hugging Face name; {} is the layer. Kernels are (out, in) there."""

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = ("BF16", "F16", "F32", "F64")
# Buffers of old checkpoints: recomputed, never weights.
_RECOMPUTED = ".rotary_emb.inv_freq"


class _Open(NamedTuple):
    """A safetensors file by name, and its handle."""

    file: str
    handle: Any


def load_directory(directory: Path, dtype: str, where: str, name: str | None = None, stored: bool = False) -> Model:
    """Reads a directory as transformers' ``save_pretrained`` writes it.

    Args:
        directory: holds config.json, tokenizer.json and safetensors.
        dtype: ``float32`` or ``bfloat16``, what the parameters are kept in.
        where: names the directory in errors, e.g. ``--model DIR``.
        name: the model's name; the directory's own when None.
        stored: leave the parameters in their files (``StoredLeaf``); what is read of them later is all that is read.

    Raises:
        InputError: a missing, cut-off or damaged file, missing or mis-shaped tensors, or an unsupported architecture or option.
    """
    raw = read_json(directory / "config.json", where)
    config = decoder_config(raw, f"{where}: config.json")
    with _tensors(directory, where) as tensors:
        params = _params(config, tensors, dtype, where, directory if stored else None)
        kinds = sorted({tensors[tensor].handle.get_slice(tensor).get_dtype() for tensor in tensors})
    tokenizer = tokenizer_from_directory(directory, raw, where)
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(f"{where}: tokenizer.json has {tokenizer.vocab_size} tokens but the embedding {config.vocab_size} rows")
    name = name or directory.resolve().name
    source = f"Hugging Face model {name}, {'/'.join(kinds)} safetensors, not quantised, held in {dtype}"
    return Model(name=name, source=source, config=config, params=params, tokenizer=tokenizer, hf_config=raw)


def _params(config: DecoderConfig, tensors: Mapping[str, _Open], dtype: str, where: str, stored: Path | None) -> dict[str, Any]:
    """All of them, read from the open files; with ``stored``, the directory, checked by their headers and left there."""
    if config.num_layers > len(tensors):
        raise InputError(f"{where}: config.json asks for {config.num_layers} layers but there are only {len(tensors)} tensors")
    expected = {
        HF_NAMES[path].format(layer): path
        for path in param_shapes(config)
        for layer in (range(config.num_layers) if path.startswith(LAYERS) else (0,))
    }
    missing = sorted(expected.keys() - tensors.keys())
    # A tied model may store its head as well; transformers ignores it too.
    ignored = {name for name in tensors if name.endswith(_RECOMPUTED)} | ({HF_NAMES["head/kernel"]} if config.tied_head else set())
    extra = sorted(tensors.keys() - expected.keys() - ignored)
    for names, what in ((missing, "missing from the safetensors"), (extra, "not part of a plain decoder, so the model is not supported")):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise InputError(f"{where}: tensors {', '.join(names[:3])}{more} are {what}")

    for name, path in expected.items():
        header = tensors[name].handle.get_slice(name)
        if (kind := header.get_dtype()) not in _FLOATS:
            raise InputError(f"{where}: tensor {name} is {kind}; supported are {', '.join(_FLOATS)}")
        if stored is not None and tuple(header.get_shape()) != (wanted := _file_shape(config, path)):
            raise InputError(f"{where}: tensor {name} has shape {tuple(header.get_shape())} where the configuration asks for {wanted}")

    def read(path: str, layer: int | None) -> np.ndarray:
        name = HF_NAMES[path].format(layer)
        tensor = tensors[name].handle.get_tensor(name)
        return tensor.T if path.endswith("kernel") else tensor

    if stored is not None:
        return defer(config, dtype, _reader_of_parts(stored, {name: tensors[name].file for name in expected}))
    try:
        return assemble(config, dtype, read)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _file_shape(config: DecoderConfig, path: str) -> tuple[int, ...]:
    shape = param_shapes(config)[path]
    shape = shape[1:] if path.startswith(LAYERS) else shape
    return shape[::-1] if path.endswith("kernel") else shape


def _reader_of_parts(directory: Path, files: Mapping[str, str]) -> ReadPart:
    def read(path: str, layer: int | None, index: tuple[slice, ...]) -> np.ndarray:
        name = HF_NAMES[path].format(layer)
        try:
            with safe_open(directory / files[name], framework="numpy") as file:
                part = file.get_slice(name)[index[::-1] if path.endswith("kernel") else index]
        except (SafetensorError, OSError) as error:
            raise InputError(f"{directory / files[name]}: tensor {name} cannot be read any more ({one_line(error)})") from error
        return part.T if path.endswith("kernel") else part

    return read


@contextmanager
def _tensors(directory: Path, where: str) -> Iterator[dict[str, _Open]]:
    """Tensor name -> the open file that holds it."""
    if (directory / SINGLE).is_file():
        files = [SINGLE]
        weight_map = None
    elif (directory / INDEX).is_file():
        weight_map = read_json(directory / INDEX, where).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{where}: {INDEX} has no weight_map")
        files = sorted({str(file) for file in weight_map.values()})
        if outside := [file for file in files if Path(file).name != file]:
            raise InputError(f"{where}: {INDEX} names {outside[0]!r}, which is not a file name in the directory")
    else:
        pickled = sorted(path.name for path in directory.iterdir() if path.suffix in (".bin", ".pt", ".pth"))
        reason = f"; {pickled[0]} is a pickle, which can run any code and is never read: convert it to safetensors" if pickled else ""
        raise InputError(f"{where}: neither {SINGLE} nor {INDEX} is there{reason}")
    tensors: dict[str, _Open] = {}
    with ExitStack() as stack:
        for file in files:
            try:
                # The library checks the header against the file's length before it maps anything.
                handle = stack.enter_context(safe_open(directory / file, framework="numpy"))
            except FileNotFoundError as error:
                raise InputError(f"{where}: {file}, which {INDEX} names, is missing") from error
            except (SafetensorError, OSError) as error:
                raise InputError(f"{where}: {file} is cut off or no safetensors file ({one_line(error)}); download it again") from error
            tensors |= dict.fromkeys(handle.keys(), _Open(file, handle))
        if weight_map is not None and (absent := sorted(weight_map.keys() - tensors.keys())):
            raise InputError(f"{where}: tensor {absent[0]}, which {INDEX} names, is in none of the shards")
        yield tensors
