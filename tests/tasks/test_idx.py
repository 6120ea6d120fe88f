"""IDX files: images and labels of MNIST's format."""

import gzip

import numpy as np
import pytest

from perturbjax.errors import InputError
from perturbjax.tasks.idx import read_idx


def idx(array, shape=None):
    return bytes((0, 0, 8, array.ndim)) + np.array(shape or array.shape, ">u4").tobytes() + array.tobytes()


IMAGES = np.random.default_rng(0).integers(0, 256, (3, 4, 5), np.uint8)


@pytest.mark.parametrize("array", [IMAGES, IMAGES[:, 0, 0]])
def test_what_was_written_is_read(tmp_path, array):
    (tmp_path / "a.gz").write_bytes(gzip.compress(idx(array)))
    np.testing.assert_array_equal(read_idx(tmp_path / "a.gz"), array)


# The content of a file, and what is said of it. Named: a gzip file holds its time, and all processes call tests the same.
REFUSED = {
    "not zipped": (idx(IMAGES), "a gzip file"),
    "zip cut short": (gzip.compress(idx(IMAGES))[:-20], "a gzip file"),
    "a byte less": (gzip.compress(idx(IMAGES)[:-1]), "cut short"),
    "more than memory": (gzip.compress(idx(IMAGES, (2**32 - 1,) * 3)), "cut short"),
    "bytes after it": (gzip.compress(idx(IMAGES) + b"more"), "cut short"),
    "header cut short": (gzip.compress(b"\0\0\x08\x03\0\0"), "no IDX file"),
    "empty": (gzip.compress(b""), "no IDX file"),
    "another format": (gzip.compress(b"PK\x03\x04 something else"), "no IDX file"),
    "no file": (None, "a gzip file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_files_are_refused(tmp_path, name):
    content, said = REFUSED[name]
    if content is not None:
        (tmp_path / "a.gz").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_idx(tmp_path / "a.gz")
    assert said in str(caught.value) and "\n" not in str(caught.value)
