"""IDX files, the format of MNIST and of the data sets that follow it."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from perturbjax.errors import InputError

LARGEST = 2**31
"""Bytes of the largest array that is read: a small compressed file can claim, and hold, any number."""
_BYTES = 8
"""Type of the numbers, as the third byte of a file says it: unsigned bytes, which images and labels are."""


def read_idx(path: Path) -> np.ndarray:
    """The array of bytes of a compressed IDX file, of as many axes as it says.

    Raises:
        InputError: the file cannot be read, or is no such file.
    """
    try:
        with gzip.open(path) as file:
            start = file.read(4)
            dims = start[3] if len(start) == 4 and start[:3] == bytes([0, 0, _BYTES]) else 0
            sizes = file.read(4 * dims)
            shape = tuple(map(int, np.frombuffer(sizes, ">u4"))) if dims and len(sizes) == 4 * dims else ()
            count = math.prod(shape) if shape else LARGEST + 1
            content = file.read(count + 1) if count <= LARGEST else b""
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: a gzip file of images or labels is required ({error})") from None
    if len(content) != count:
        raise InputError(f"{path}: no IDX file of bytes, cut short, or of more than {LARGEST} bytes")
    return np.frombuffer(content, np.uint8).reshape(shape)
