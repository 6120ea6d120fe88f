"""Files of arrays and of columns: what is no such file, or holds others, is one line."""

import os
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from perturbjax.errors import InputError
from perturbjax.runs.files import MOST_ROWS, read_arrays, read_columns

SHAPES = {"a/kernel": (2, 3), "b": (2,)}
ARRAYS = {path: np.ones(shape, np.float32) for path, shape in SHAPES.items()}
SCHEMA = pa.schema([pa.field("name", pa.string(), nullable=False), pa.field("n", pa.int64(), nullable=False), pa.field("x", pa.float64())])
COLUMNS = {"name": ["a", "b"], "n": [1, 2], "x": [0.5, None]}
NOT_FILES = {
    "link": lambda file: file.symlink_to(file),
    "folder": lambda file: file.mkdir(),
    "fifo": os.mkfifo,
    "device": lambda file: file.symlink_to("/dev/zero"),
    "empty": lambda file: file.touch(),
    "junk": lambda file: file.write_bytes(b"PAR1" + b"\xff" * 100 + b"PAR1"),
    "missing": lambda file: None,
}


@pytest.mark.parametrize("kind", NOT_FILES)
def test_what_is_no_such_file_is_refused(kind, tmp_path):
    NOT_FILES[kind](tmp_path / "file")
    for read in (lambda file: read_arrays(file, SHAPES, "restore it"), lambda file: read_columns(file, SCHEMA, "restore it")):
        with pytest.raises(InputError, match=r"cannot be read .*; restore it") as error:
            read(tmp_path / "file")
        assert "\n" not in str(error.value) and len(str(error.value)) < 700


def test_arrays_are_read_as_a_tree(tmp_path):
    save_file(ARRAYS, tmp_path / "file")
    tree = read_arrays(tmp_path / "file", SHAPES, "restore it")
    np.testing.assert_array_equal(tree["a"]["kernel"], ARRAYS["a/kernel"])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"b": None}, "b is missing"),
        ({"c\x1b": np.ones(1, np.float32)}, "c\x1b is none of its arrays"),
        ({"a/kernel/x": np.ones(1, np.float32)}, "a/kernel/x is none of its arrays"),
        ({"b": np.ones((2, 1), np.float32)}, "b is float32 (2, 1): float32 (2,) is required"),
        ({"b": np.ones(2, np.float64)}, "b is float64 (2,): float32 (2,) is required"),
        ({"b": np.array([1, np.nan], np.float32)}, "b holds numbers that are not finite"),
    ],
)
def test_other_arrays_are_refused(changed, said, tmp_path):
    save_file({path: array for path, array in (ARRAYS | changed).items() if array is not None}, tmp_path / "file")
    with pytest.raises(InputError, match=re.escape(f"cannot be read ({said}); restore it")):
        read_arrays(tmp_path / "file", SHAPES, "restore it")


def test_columns_are_read_in_their_types_and_others_are_left_alone(tmp_path):
    pq.write_table(
        pa.table({"other": [[1], [2]], "n": pa.array([1, 2], pa.int8()), "x": [0.5, None], "name": ["a", "b"]}), tmp_path / "file"
    )
    assert read_columns(tmp_path / "file", SCHEMA, "restore it").to_pydict() == COLUMNS


@pytest.mark.parametrize(
    "changed", [{"x": None}, {"n": [1, None]}, {"n": ["x", "y"]}, {"x": ["x", "y"]}, {"name": [["a"], ["b"]]}, {"name": [b"\xff", b"a"]}]
)
def test_other_columns_are_refused(changed, tmp_path):
    pq.write_table(pa.table({name: values for name, values in (COLUMNS | changed).items() if values is not None}), tmp_path / "file")
    with pytest.raises(InputError, match=r"cannot be read .*; restore it"):
        read_columns(tmp_path / "file", SCHEMA, "restore it")


def test_a_small_file_of_many_rows_is_refused(tmp_path):
    rows = pa.DictionaryArray.from_arrays(pa.array(np.zeros(MOST_ROWS + 1, np.int8)), ["a"])
    pq.write_table(pa.table({"name": rows}), tmp_path / "file")
    assert (tmp_path / "file").stat().st_size < 2**20
    with pytest.raises(InputError, match=f"{MOST_ROWS + 1} rows, more than {MOST_ROWS}"):
        read_columns(tmp_path / "file", SCHEMA, "restore it")
