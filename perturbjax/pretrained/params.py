"""The parameter tree of a decoder as nested dicts: numpy arrays filled layer by layer, or leaves that stay in their file."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from perturbjax.errors import InputError
from perturbjax.models.config import DecoderConfig, param_shapes
from perturbjax.tree import nest

DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
"""The dtypes that parameters are kept in, by name."""


def tensor_names(config: DecoderConfig, names: Mapping[str, str]) -> dict[str, str]:
    """Tensor name -> path of its parameter, for all tensors that a model of this shape consists of.

    Args:
        config: the shape of the model.
        names: path -> tensor name, ``{}`` being the layer, and a second one the expert.
    """
    shapes = param_shapes(config)
    return {names[path].format(*place): path for path in shapes for place in np.ndindex(shapes[path][: stacked(names[path])])}


def stacked(name: str) -> int:
    """How many leading axes of a parameter are stacked from tensors of their own: 0, 1 (layers) or 2 (layers and experts)."""
    return name.count("{}")


def check_names(config: DecoderConfig, expected: Collection[str], found: Collection[str]) -> None:
    """Checks that a file holds the tensors that its configuration asks for, and no others.

    Raises:
        InputError: some are missing, or there are others (they would change what the model computes).
    """
    for names, what in (
        (sorted(set(expected) - set(found)), "missing"),
        (sorted(set(found) - set(expected)), f"not part of a plain {config.architecture} decoder, so the model is not supported"),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            noun, verb = ("tensor", "is") if len(names) == 1 else ("tensors", "are")
            raise InputError(f"{noun} {', '.join(names[:3])}{more} {verb} {what}")


def transposed_kernel(path: str, tensor: np.ndarray) -> np.ndarray:
    """A view of a tensor in the other orientation: kernels are (in, out) here and (out, in) in both file formats."""
    return tensor.swapaxes(-1, -2) if path.endswith("kernel") else tensor


def assemble(
    config: DecoderConfig, dtype: str, names: Mapping[str, str], read: Callable[[str, tuple[int, ...]], np.ndarray]
) -> dict[str, Any]:
    """Fills the tree of ``param_shapes(config)`` one tensor at a time, so that at most one float32 tensor is alive beside the result.

    Args:
        config: the shape of the model.
        dtype: a key of ``DTYPES``; values are rounded to it once.
        names: path -> tensor name, as for ``tensor_names``.
        read: (path, place in the stack) -> that tensor in the layout of ``param_shapes`` without the stacked axes, any float dtype.

    Raises:
        InputError: a tensor has another shape, or holds NaN or infinity (a damaged file).
    """
    flat: dict[str, np.ndarray] = {}
    for path, shape in param_shapes(config).items():
        count, out = stacked(names[path]), None
        for place in np.ndindex(shape[:count]):
            tensor = _checked(read(path, place), shape[count:], _of(path, place))
            # A damaged file can claim any size: nothing is allocated before a tensor of that size has been seen.
            out = np.empty(shape, DTYPES[dtype]) if out is None else out
            out[place] = tensor
        assert out is not None
        flat[path] = out
    return nest(flat)


ReadPart = Callable[[str, tuple[int, ...], tuple[slice, ...]], np.ndarray]
"""(path, place in the stack, index) -> that part of that tensor."""


class StoredLeaf:
    """A parameter that is still in its file: it has the shape and dtype of an array, and slicing it reads that slice only.

    Args:
        path: of the parameter.
        shape: of the whole parameter.
        count: how many leading axes are stacked.
        dtype: a key of ``DTYPES``; values are rounded to it once.
        read: (path, place in the stack, index) -> that part of that tensor, without the stacked axes, any float dtype.
        source: the file or directory, for errors.
    """

    def __init__(self, path: str, shape: tuple[int, ...], count: int, dtype: str, read: ReadPart, source: Path):
        self.path, self.shape, self.dtype, self._count, self._read, self._source = path, shape, DTYPES[dtype], count, read, source

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        """The part at ``index``, one slice of step 1 a dim, read now.

        Raises:
            InputError: it holds NaN or infinity, or cannot be read.
        """
        index = tuple(slice(*part.indices(size)[:2]) for part, size in zip(index, self.shape, strict=True))
        out = np.empty([part.stop - part.start for part in index], self.dtype)
        try:
            for row in np.ndindex(out.shape[: self._count]):
                place = tuple(part.start + at for part, at in zip(index, row, strict=False))
                part = self._read(self.path, place, index[self._count :])
                out[row] = _checked(part, out.shape[self._count :], _of(self.path, place))
        except InputError as error:
            raise InputError(f"{self._source}: {error}") from error
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of it, read now."""
        whole = self[tuple(slice(0, size) for size in self.shape)]
        return whole if dtype is None else whole.astype(dtype)


def defer(config: DecoderConfig, dtype: str, names: Mapping[str, str], read: ReadPart, source: Path) -> dict[str, Any]:
    """The tree that ``assemble`` fills, with a ``StoredLeaf`` in place of every array: for processes that need only parts of it."""
    shapes = param_shapes(config)
    return nest({path: StoredLeaf(path, shape, stacked(names[path]), dtype, read, source) for path, shape in shapes.items()})


def _of(path: str, place: tuple[int, ...]) -> str:
    return " ".join([path, *(f"of {what} {at}" for what, at in zip(("layer", "expert"), place, strict=False))])


def _checked(tensor: np.ndarray, shape: tuple[int, ...], what: str) -> np.ndarray:
    if tensor.shape != shape:
        raise InputError(f"{what} has shape {tensor.shape} where the configuration asks for {shape}")
    if not np.isfinite(tensor).all():
        raise InputError(f"{what} holds NaN or infinity, so the file is damaged")
    return tensor
