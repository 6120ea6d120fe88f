"""The parameter tree of a decoder as plain nested dicts: of numpy arrays, built layer by layer, or of leaves still in their file."""

from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from perturbjax.errors import InputError
from perturbjax.models.config import DecoderConfig, param_shapes

DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
"""The dtypes that parameters are kept in, by the name that ``--dtype`` takes."""

LAYERS = "layers/"
"""Paths below this prefix are stacked along a leading axis of length L."""


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts -> ``{"a/b/c": leaf}``, in the order of the dicts."""
    flat: dict[str, Any] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}/{rest}": leaf for rest, leaf in flatten(value).items()}
        else:
            flat[key] = value
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of ``flatten``."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def assemble(config: DecoderConfig, dtype: str, read: Callable[[str, int | None], np.ndarray]) -> dict[str, Any]:
    """Fills the tree of ``param_shapes(config)`` one tensor at a time, so that at most one float32 tensor is alive beside the result.

    Args:
        config: the shape of the model.
        dtype: a key of ``DTYPES``; values are rounded to it once.
        read: (path, layer or None) -> that tensor in the layout of ``param_shapes`` without the L axis, any float dtype.

    Raises:
        InputError: a tensor has another shape, or holds NaN or infinity (a damaged file).
    """
    flat: dict[str, np.ndarray] = {}
    for path, shape in param_shapes(config).items():
        if path.startswith(LAYERS):
            # A damaged file can claim any size: nothing is allocated before a tensor of that size has been seen.
            first = _checked(read(path, 0), shape[1:], f"{path} of layer 0")
            out = np.empty(shape, DTYPES[dtype])
            out[0] = first
            for layer in range(1, config.num_layers):
                out[layer] = _checked(read(path, layer), shape[1:], f"{path} of layer {layer}")
        else:
            out = np.array(_checked(read(path, None), shape, path), DTYPES[dtype])
        flat[path] = out
    return nest(flat)


ReadPart = Callable[[str, int | None, tuple[slice, ...]], np.ndarray]
"""(path, layer or None, index) -> that part of that tensor."""


class StoredLeaf:
    """A parameter that is still in its file: it has an array's shape and dtype, and slicing it reads what was asked for and no more.

    Args:
        path: of the parameter.
        shape: of the whole parameter, stacked over layers.
        dtype: a key of ``DTYPES``; values are rounded to it once.
        read: (path, layer or None, index) -> that part of that tensor, without the L axis, any float dtype.
    """

    def __init__(self, path: str, shape: tuple[int, ...], dtype: str, read: ReadPart):
        self.path, self.shape, self.dtype, self._read = path, shape, DTYPES[dtype], read

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        """The part at ``index``, one slice a dim, read now.

        Raises:
            InputError: it holds NaN or infinity, or cannot be read.
        """
        index = tuple(slice(*part.indices(size)[:2]) for part, size in zip(index, self.shape, strict=True))
        out = np.empty([part.stop - part.start for part in index], self.dtype)
        if not self.path.startswith(LAYERS):
            out[...] = _checked(self._read(self.path, None, index), out.shape, self.path)
            return out
        for place, layer in enumerate(range(index[0].start, index[0].stop)):
            out[place] = _checked(self._read(self.path, layer, index[1:]), out.shape[1:], f"{self.path} of layer {layer}")
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of it, read now."""
        whole = self[tuple(slice(0, size) for size in self.shape)]
        return whole if dtype is None else whole.astype(dtype)


def defer(config: DecoderConfig, dtype: str, read: ReadPart) -> dict[str, Any]:
    """The tree of ``param_shapes(config)`` with every leaf still in its file: what ``assemble`` makes, for those who need only parts."""
    return nest({path: StoredLeaf(path, shape, dtype, read) for path, shape in param_shapes(config).items()})


def _checked(tensor: np.ndarray, shape: tuple[int, ...], what: str) -> np.ndarray:
    if tensor.shape != shape:
        raise InputError(f"{what} has shape {tensor.shape} where the configuration asks for {shape}")
    if not np.isfinite(tensor).all():
        raise InputError(f"{what} holds NaN or infinity, so the file is damaged")
    return tensor
