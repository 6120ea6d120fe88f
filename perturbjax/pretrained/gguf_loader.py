"""GGUF files: metadata -> ``DecoderConfig``, quantized tensors -> parameters in the layout of ``param_shapes``."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import dequantize

from perturbjax.errors import InputError, one_line
from perturbjax.models.config import DecoderConfig, SlidingWindow
from perturbjax.pretrained.families import FAMILIES, Family
from perturbjax.pretrained.hf_config import hf_config
from perturbjax.pretrained.model import Model
from perturbjax.pretrained.params import assemble, check_names, defer, tensor_names, transposed_kernel
from perturbjax.pretrained.tokenizer_sources import tokenizer_from_gguf

_Tensors = Mapping[str, gguf.ReaderTensor]

_EMBEDDING, _HEAD = "embed/embedding", "head/kernel"
_ROPE_FREQS = "rope_freqs.weight"

# Two copies of one tied matrix differ by the rounding of the coarser one; an untied head is another matrix, further away than its own norm.
_FINE_BITS, _FINE_LIMIT, _COARSE_LIMIT = 8.0, 0.02, 0.5


def load_gguf(path: Path, dtype: str, name: str, stored: bool = False) -> Model:
    """Reads a GGUF file of one of ``FAMILIES``.

    Args:
        path: the file.
        dtype: ``float32`` or ``bfloat16``, what the parameters are kept in.
        name: the model's name.
        stored: leave the parameters in the file (``StoredLeaf``); a slice is then read by dequantizing its whole tensor on the host.

    Raises:
        InputError: not a GGUF file, cut off, missing tensors, or something the decoder does not implement.
    """
    reader, metadata = _open(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config, names = _config(metadata, tensors)
    query_key = {"layers/attention/q/kernel": config.num_heads, "layers/attention/k/kernel": config.num_kv_heads}
    permuted = query_key if FAMILIES[config.architecture].gguf_permutes_qk else {}

    def read(param: str, place: tuple[int, ...]) -> np.ndarray:
        tensor_name = names[param].format(*place)
        tensor = _dequantized(tensors[tensor_name])
        if (heads := permuted.get(param)) is not None:
            if tensor.shape[0] != heads * config.head_dim:
                raise InputError(f"{tensor_name} has {tensor.shape[0]} rows, not {heads} heads of {config.head_dim}")
            tensor = _unpermuted(tensor, heads)
        # llama.cpp multiplies by what the file holds, so the offset is in it.
        if config.norm_offset and param.endswith("norm/scale"):
            tensor = tensor - np.float32(config.norm_offset)
        return transposed_kernel(param, tensor)

    def read_part(param: str, place: tuple[int, ...], index: tuple[slice, ...]) -> np.ndarray:
        return read(param, place)[index]

    params = defer(config, dtype, names, read_part, path) if stored else assemble(config, dtype, names, read)
    tokenizer = tokenizer_from_gguf(metadata, name)
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(f"{tokenizer.vocab_size} tokens but an embedding of {config.vocab_size} rows")
    return Model(
        name=name,
        source=f"GGUF file {path.name}, quantization {_quantization(metadata, reader)}, held in {dtype}",
        config=config,
        params=params,
        tokenizer=tokenizer,
        hf_config=hf_config(config, tokenizer.stop_ids, metadata.get("tokenizer.ggml.bos_token_id"), tokenizer.pad_id),
    )


class _BoundedReader(gguf.GGUFReader):
    """``GGUFReader`` slices past the end of a cut-off file without noticing, and can loop for ever on what it then reads. Its arrays are of
    the class of its memory map, too, which costs time with each of the 100,000 strings of a vocabulary."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> np.ndarray:
        end = offset + int(count) * np.dtype(dtype).itemsize
        if end > len(self.data):
            raise EOFError(f"cut off: {end} bytes are needed and the file has {len(self.data)}")
        return np.frombuffer(self.data, np.dtype(dtype).newbyteorder(override_order or self.byte_order), int(count), int(offset))


def _open(path: Path) -> tuple[gguf.GGUFReader, dict[str, Any]]:
    """The reader, and the metadata as Python values."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}") from error
    if magic != b"GGUF":
        raise InputError(f"not a GGUF file (it starts with {magic!r}, not b'GGUF')")
    try:
        reader = _BoundedReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except EOFError as error:
        raise InputError(f"the GGUF file is {error}; download it again") from error
    except (ValueError, KeyError, IndexError, OverflowError) as error:
        raise InputError(f"damaged GGUF file: {one_line(error)}") from error
    if reader.byte_order != "I":
        raise InputError("GGUF files of the other byte order are not supported")
    return reader, metadata


def _config(metadata: Mapping[str, Any], tensors: _Tensors) -> tuple[DecoderConfig, dict[str, str]]:
    """The configuration, checked against the tensors, and path -> the name of the tensor to read for it."""
    architecture = metadata.get("general.architecture")
    family = FAMILIES.get(architecture) if isinstance(architecture, str) else None
    if family is None:
        raise InputError(f"architecture {architecture!r} is not supported; supported are {', '.join(FAMILIES)}")
    names = {path: tensor.gguf for path, tensor in family.tensors.items()}
    numbers = _Numbers(metadata, family.name)
    hidden, heads = numbers.whole("embedding_length"), numbers.whole("attention.head_count")
    kv_heads, layers = numbers.whole("attention.head_count_kv", heads), numbers.whole("block_count")
    head_dim = numbers.whole("attention.key_length", hidden // heads)
    if heads % kv_heads or head_dim % 2:
        raise InputError(f"{heads} heads, {kv_heads} key-value heads, head size {head_dim} do not divide as a decoder needs")
    if layers > len(tensors):
        raise InputError(f"metadata {family.name}.block_count is {layers} but there are only {len(tensors)} tensors")
    _refuse_unsupported(metadata, family, head_dim)
    if names[_EMBEDDING] not in tensors:
        raise InputError(f"tensor {names[_EMBEDDING]} is missing")
    config = DecoderConfig(
        architecture=family.name,
        vocab_size=int(tensors[names[_EMBEDDING]].shape[-1]),
        hidden_size=hidden,
        intermediate_size=numbers.whole("feed_forward_length"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rope_theta=float(numbers.positive("rope.freq_base", 10000.0)),
        rope_factors=_rope_factors(tensors, numbers, head_dim // 2),
        # The shortest decimal that rounds to the same float32: 1e-05 rather than 9.99999974e-06.
        norm_eps=float(str(np.float32(numbers.positive("attention.layer_norm_rms_epsilon")))),
        tied_head=names[_HEAD] not in tensors,
        max_positions=numbers.whole("context_length"),
        window=_window(numbers, family),
        **family.decoder,
    )
    config = replace(config, **{field: numbers.whole(names.gguf) for field, names in family.numbers.items() if names.gguf is not None})
    config = family.gguf_completes(config)
    check_names(config, tensor_names(config, names), tensors.keys() - {_ROPE_FREQS})
    if not config.tied_head and _same_matrix(tensors[names[_EMBEDDING]], tensors[names[_HEAD]]):
        # The copy under the head's name is the one that llama.cpp multiplies with.
        return replace(config, tied_head=True), names | {_EMBEDDING: names[_HEAD]}
    return config, names


class _Numbers:
    """The positive numbers in the metadata of one architecture."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str) -> None:
        self._metadata, self._architecture = metadata, architecture

    def get(self, key: str) -> Any:
        return self._metadata.get(f"{self._architecture}.{key}")

    def positive(self, key: str, default: float | None = None) -> float:
        key = f"{self._architecture}.{key}"
        value = self._metadata.get(key, default)
        if value is None:
            raise InputError(f"metadata {key} is missing")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            shown = "a list, one value a layer," if isinstance(value, list) else repr(value)
            raise InputError(f"metadata {key} is {shown} which is not supported; one positive number is required")
        return value

    def whole(self, key: str, default: int | None = None) -> int:
        if (value := self.positive(key, default)) != int(value):
            raise InputError(f"metadata {self._architecture}.{key} is {value}; a whole number is required")
        return int(value)


def _window(numbers: _Numbers, family: Family) -> SlidingWindow | None:
    if (default := family.window) is None:
        return None
    size, every = numbers.whole("attention.sliding_window", default.size), numbers.whole("attention.sliding_window_pattern", default.every)
    window = SlidingWindow(size, every, float(numbers.positive("rope.freq_base_swa", default.rope_theta)))
    return window if every > 1 else None


def _rope_factors(tensors: _Tensors, numbers: _Numbers, count: int) -> tuple[float, ...] | None:
    if numbers.get("rope.scaling.type") == "linear":
        return (float(numbers.positive("rope.scaling.factor")),) * count
    if _ROPE_FREQS not in tensors:
        return None
    values = _dequantized(tensors[_ROPE_FREQS])
    if values.shape != (count,) or not (np.isfinite(values) & (values > 0)).all():
        raise InputError(f"{_ROPE_FREQS} must hold {count} positive numbers")
    return tuple(float(value) for value in values)


def _refuse_unsupported(metadata: Mapping[str, Any], family: Family, head_dim: int) -> None:
    plain: dict[str, tuple[Any, ...]] = {
        "expert_count": (0,),
        "attention.causal": (True,),
        "attention.value_length": (head_dim,),
        "rope.dimension_count": (head_dim,),
        "rope.scaling.type": ("none", "linear"),
    }
    if family.window is None:
        plain["attention.sliding_window"] = (0,)
    for key, supported in plain.items():
        value = metadata.get(f"{family.name}.{key}", supported[0])
        if key not in (names.gguf for names in family.numbers.values()) and value not in supported:
            shown = " or ".join(map(repr, supported))
            raise InputError(f"metadata {family.name}.{key} is {value!r} which is not supported; required: {shown}")


def _same_matrix(embedding: gguf.ReaderTensor, head: gguf.ReaderTensor) -> bool:
    """Whether the head is the embedding stored a second time (some Qwen files do so, at another precision)."""
    if embedding.tensor_type == head.tensor_type:
        return np.array_equal(embedding.data, head.data)
    left, right = _dequantized(embedding), _dequantized(head)
    if left.shape != right.shape:
        return False
    bits = min(8 * tensor.n_bytes / tensor.n_elements for tensor in (embedding, head))
    limit = _FINE_LIMIT if bits >= _FINE_BITS else _COARSE_LIMIT
    return bool(np.linalg.norm(left - right) < limit * np.linalg.norm(right))


def _dequantized(tensor: gguf.ReaderTensor) -> np.ndarray:
    """float32 in the file's order, (out, in) for matrices."""
    try:
        return np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
    except (NotImplementedError, ValueError) as error:
        raise InputError(f"tensor {tensor.name} of type {tensor.tensor_type.name} cannot be dequantized: {one_line(error)}") from error


def _unpermuted(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Rows from the interleaved rotary order that llama-architecture files keep to the half-split order of Hugging Face."""
    rows, columns = matrix.shape
    return matrix.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _quantization(metadata: Mapping[str, Any], reader: gguf.GGUFReader) -> str:
    try:
        return gguf.LlamaFileType(metadata["general.file_type"]).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except (KeyError, ValueError):
        return Counter(tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1).most_common(1)[0][0]
