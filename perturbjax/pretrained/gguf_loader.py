"""GGUF files: metadata -> ``DecoderConfig``, quantised tensors -> parameters in the layout of ``param_shapes``."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import dequantize

from perturbjax.errors import InputError
from perturbjax.models.config import SUPPORTED_ARCHITECTURES, DecoderConfig
from perturbjax.pretrained.chat_template import one_line
from perturbjax.pretrained.hf_config import hf_config
from perturbjax.pretrained.model import Model
from perturbjax.pretrained.params import LAYERS, assemble, defer
from perturbjax.pretrained.tokenizer_sources import tokenizer_from_gguf

# Path in the parameter tree -> tensor name; {} is the layer.
_NAMES = {
    "embed/embedding": "token_embd.weight",
    "layers/attention_norm/scale": "blk.{}.attn_norm.weight",
    "layers/attention/q/kernel": "blk.{}.attn_q.weight",
    "layers/attention/k/kernel": "blk.{}.attn_k.weight",
    "layers/attention/v/kernel": "blk.{}.attn_v.weight",
    "layers/attention/o/kernel": "blk.{}.attn_output.weight",
    "layers/attention/q/bias": "blk.{}.attn_q.bias",
    "layers/attention/k/bias": "blk.{}.attn_k.bias",
    "layers/attention/v/bias": "blk.{}.attn_v.bias",
    "layers/mlp_norm/scale": "blk.{}.ffn_norm.weight",
    "layers/mlp/gate/kernel": "blk.{}.ffn_gate.weight",
    "layers/mlp/up/kernel": "blk.{}.ffn_up.weight",
    "layers/mlp/down/kernel": "blk.{}.ffn_down.weight",
    "norm/scale": "output_norm.weight",
    "head/kernel": "output.weight",
}
_ROPE_FREQS = "rope_freqs.weight"

# Two copies of one tied matrix differ by the rounding of the coarser one; an untied head is another matrix, further away than its own norm.
_FINE_BITS, _FINE_LIMIT, _COARSE_LIMIT = 8.0, 0.02, 0.5


def load_gguf(path: Path, dtype: str, where: str, name: str | None = None, stored: bool = False) -> Model:
    """Reads a GGUF file of the llama or qwen2 architecture.

    Args:
        path: the file.
        dtype: ``float32`` or ``bfloat16``, what the parameters are kept in.
        where: names the file in errors, e.g. ``--model x.gguf``.
        name: the model's name; the file's own, without ending, when None.
        stored: leave the parameters in the file (``StoredLeaf``); a part is then read by dequantising its whole tensor on the host.

    Raises:
        InputError: not a GGUF file, cut off, missing tensors, or something the decoder does not implement.
    """
    reader, metadata = _open(path, where)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config, head = _config(metadata, tensors, where)
    names = _NAMES | ({"embed/embedding": "output.weight"} if head == "stored twice" else {})

    def read(param: str, layer: int | None) -> np.ndarray:
        tensor = _dequantised(tensors, names[param].format(layer), where)
        if config.architecture == "llama" and param in ("layers/attention/q/kernel", "layers/attention/k/kernel"):
            heads = config.num_heads if "/q/" in param else config.num_kv_heads
            if tensor.shape[0] != heads * config.head_dim:
                raise InputError(f"{names[param].format(layer)} has {tensor.shape[0]} rows, not {heads} heads of {config.head_dim}")
            tensor = _unpermuted(tensor, heads)
        # Files keep (out, in); only the embedding is used as it lies.
        return tensor.T if param.endswith("kernel") else tensor

    try:
        params = defer(config, dtype, lambda param, layer, index: read(param, layer)[index]) if stored else assemble(config, dtype, read)
    except InputError as error:
        message = str(error)
        raise InputError(message if message.startswith(where) else f"{where}: {message}") from error
    tokenizer = tokenizer_from_gguf(metadata, where)
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(f"{where}: {tokenizer.vocab_size} tokens but an embedding of {config.vocab_size} rows")
    return Model(
        name=name or path.stem,
        source=f"GGUF file {path.name}, quantisation {_quantisation(metadata, reader)}, held in {dtype}",
        config=config,
        params=params,
        tokenizer=tokenizer,
        hf_config=hf_config(config, tokenizer.stop_ids, metadata.get("tokenizer.ggml.bos_token_id"), tokenizer.pad_id),
    )


class _BoundedReader(gguf.GGUFReader):
    """``GGUFReader`` slices past the end of a cut-off file without noticing, and can loop for ever on what it then reads."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> np.ndarray:
        end = offset + int(count) * np.dtype(dtype).itemsize
        if end > len(self.data):
            raise EOFError(f"cut off: {end} bytes are needed and the file has {len(self.data)}")
        return super()._get(offset, dtype, count, override_order)


def _open(path: Path, where: str) -> tuple[gguf.GGUFReader, dict[str, Any]]:
    """The reader, and the metadata as Python values."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise InputError(f"{where}: cannot be read: {error.strerror}") from error
    if magic != b"GGUF":
        raise InputError(f"{where}: not a GGUF file (it starts with {magic!r}, not b'GGUF')")
    try:
        reader = _BoundedReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except EOFError as error:
        raise InputError(f"{where}: the GGUF file is {error}; download it again") from error
    except (ValueError, KeyError, IndexError, OverflowError) as error:
        raise InputError(f"{where}: damaged GGUF file: {one_line(error)}") from error
    if reader.byte_order != "I":
        raise InputError(f"{where}: GGUF files of the other byte order are not supported")
    return reader, metadata


def _config(metadata: Mapping[str, Any], tensors: Mapping[str, gguf.ReaderTensor], where: str) -> tuple[DecoderConfig, str]:
    """The configuration, and how the head is stored: ``"own"``, ``"tied"`` or ``"stored twice"``."""
    architecture = metadata.get("general.architecture")
    if architecture not in SUPPORTED_ARCHITECTURES:
        raise InputError(f"{where}: architecture {architecture!r} is not supported; supported are {', '.join(SUPPORTED_ARCHITECTURES)}")

    def number(key: str, default: float | None = None) -> float:
        value = metadata.get(f"{architecture}.{key}", default)
        if value is None:
            raise InputError(f"{where}: metadata {architecture}.{key} is missing")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            shown = "a list, one value a layer," if isinstance(value, list) else repr(value)
            raise InputError(f"{where}: metadata {architecture}.{key} is {shown} which is not supported; one positive number is required")
        return value

    def whole(key: str, default: int | None = None) -> int:
        if (value := number(key, default)) != int(value):
            raise InputError(f"{where}: metadata {architecture}.{key} is {value}; a whole number is required")
        return int(value)

    hidden, heads = whole("embedding_length"), whole("attention.head_count")
    kv_heads, layers = whole("attention.head_count_kv", heads), whole("block_count")
    head_dim = whole("attention.key_length", hidden // heads)
    if heads % kv_heads or head_dim % 2:
        raise InputError(f"{where}: {heads} heads, {kv_heads} key-value heads, head size {head_dim} do not divide as a decoder needs")
    if layers > len(tensors):
        raise InputError(f"{where}: metadata {architecture}.block_count is {layers} but there are only {len(tensors)} tensors")
    _refuse_unsupported(metadata, architecture, head_dim, where)
    qkv_bias = architecture == "qwen2"
    expected = {
        name.format(layer)
        for param, name in _NAMES.items()
        for layer in (range(layers) if param.startswith(LAYERS) else (0,))
        if (qkv_bias or not param.endswith("bias")) and param != "head/kernel"
    }
    missing, extra = sorted(expected - tensors.keys()), sorted(tensors.keys() - expected - {"output.weight", _ROPE_FREQS})
    if missing:
        raise InputError(f"{where}: {_some(missing)} missing")
    if extra:
        raise InputError(f"{where}: {_some(extra)} not part of a plain {architecture} decoder, so the model is not supported")
    head = "tied" if "output.weight" not in tensors else "stored twice" if _same_matrix(tensors, where) else "own"
    config = DecoderConfig(
        architecture=architecture,
        vocab_size=int(tensors["token_embd.weight"].shape[-1]),
        hidden_size=hidden,
        intermediate_size=whole("feed_forward_length"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rope_theta=float(number("rope.freq_base", 10000.0)),
        rope_factors=_rope_factors(tensors, head_dim // 2, where),
        norm_eps=_shortest(number("attention.layer_norm_rms_epsilon")),
        tied_head=head != "own",
        qkv_bias=qkv_bias,
        max_positions=whole("context_length"),
    )
    return config, head


def _rope_factors(tensors: Mapping[str, gguf.ReaderTensor], count: int, where: str) -> tuple[float, ...] | None:
    if _ROPE_FREQS not in tensors:
        return None
    values = _dequantised(tensors, _ROPE_FREQS, where)
    if values.shape != (count,) or not (np.isfinite(values) & (values > 0)).all():
        raise InputError(f"{where}: {_ROPE_FREQS} must hold {count} positive numbers")
    return tuple(float(value) for value in values)


def _refuse_unsupported(metadata: Mapping[str, Any], architecture: str, head_dim: int, where: str) -> None:
    plain = {
        "expert_count": 0,
        "attention.sliding_window": 0,
        "attention.causal": True,
        "attention.value_length": head_dim,
        "rope.dimension_count": head_dim,
        "rope.scaling.type": "none",
    }
    for key, required in plain.items():
        value = metadata.get(f"{architecture}.{key}", required)
        if value != required:
            raise InputError(f"{where}: metadata {architecture}.{key} is {value!r} which is not supported; required: {required!r}")


def _same_matrix(tensors: Mapping[str, gguf.ReaderTensor], where: str) -> bool:
    """Whether ``output.weight`` is the embedding stored a second time (some Qwen files do so, at another precision)."""
    pair = tensors["token_embd.weight"], tensors["output.weight"]
    if pair[0].tensor_type == pair[1].tensor_type:
        return np.array_equal(pair[0].data, pair[1].data)
    embedding, head = (_dequantised(tensors, tensor.name, where) for tensor in pair)
    if embedding.shape != head.shape:
        return False
    bits = min(8 * tensor.n_bytes / tensor.n_elements for tensor in pair)
    limit = _FINE_LIMIT if bits >= _FINE_BITS else _COARSE_LIMIT
    return bool(np.linalg.norm(embedding - head) < limit * np.linalg.norm(head))


def _dequantised(tensors: Mapping[str, gguf.ReaderTensor], name: str, where: str) -> np.ndarray:
    """float32 in the file's order, (out, in) for matrices."""
    tensor = tensors[name]
    try:
        return np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
    except (NotImplementedError, ValueError) as error:
        raise InputError(f"{where}: tensor {name} of type {tensor.tensor_type.name} cannot be dequantised: {one_line(error)}") from error


def _unpermuted(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Rows from the interleaved rotary order that llama-architecture files keep to the half-split order of Hugging Face."""
    rows, columns = matrix.shape
    return matrix.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _quantisation(metadata: Mapping[str, Any], reader: gguf.GGUFReader) -> str:
    try:
        return gguf.LlamaFileType(metadata["general.file_type"]).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except (KeyError, ValueError):
        return Counter(tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1).most_common(1)[0][0]


def _shortest(value: float) -> float:
    """The shortest decimal that rounds to the same float32: 1e-05 rather than 9.99999974e-06."""
    return float(str(np.float32(value)))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"tensor{'s' if len(names) > 1 else ''} {', '.join(names[:3])}{more} {'are' if len(names) > 1 else 'is'}"
