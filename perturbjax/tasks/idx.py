"""IDX files, the format of MNIST and of the data sets that follow it."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from perturbjax.errors import InputError

_BYTES = 8
"""Type of the numbers, as the third byte of a file says it: unsigned bytes, which images and labels are."""


def read_idx(path: Path) -> np.ndarray:
    """The array of bytes of a compressed IDX file, of as many axes as it says.

    Raises:
        InputError: the file cannot be read, or is no such file.
    """
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: a gzip file of images or labels is required ({error})") from None
    dims = content[3] if len(content) >= 4 and content[:3] == bytes([0, 0, _BYTES]) else 0
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", dims, offset=4)) if dims and len(content) >= 4 + 4 * dims else ()
    if not shape or len(content) != 4 + 4 * dims + int(np.prod(shape, dtype=np.int64)):
        raise InputError(f"{path}: no IDX file of bytes, or cut short")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dims).reshape(shape)
