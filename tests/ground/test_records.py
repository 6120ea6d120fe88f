"""JSON to typed records and back: what fits is kept exactly, what does not is named in one line."""

import dataclasses
import json
import os
import resource
import time
from pathlib import Path
from typing import Literal

import pytest

from perturbjax.errors import InputError
from perturbjax.records import LONGEST, from_json, parse_json, read_json_lines, read_text, refuse, to_json


@dataclasses.dataclass(frozen=True)
class Inner:
    share: float
    kind: Literal["a", "b"]

    def __post_init__(self):
        if self.share < 0:
            raise ValueError(f"share {self.share}: must not be negative")


@dataclasses.dataclass(frozen=True)
class Outer:
    count: int
    flag: bool
    name: str
    note: str | None
    sigma: str | float
    answer: str | int | float
    sizes: tuple[int, ...]
    interval: tuple[float, float]
    by_name: dict[str, Inner]
    inner: Inner
    other: Inner | None
    few: tuple[int, ...] | None
    out: Path | None = None


GOOD = {
    "count": 3,
    "flag": True,
    "name": "x",
    "note": None,
    "sigma": "all",
    "answer": 7,
    "sizes": [1, 2],
    "interval": [0, 0.5],
    "by_name": {"k": {"share": 1, "kind": "b"}},
    "inner": {"share": 0.25, "kind": "a"},
    "other": None,
    "few": None,
    "out": "runs/x",
}


def test_a_record_survives_json():
    record = from_json(Outer, GOOD, "f")
    assert record == Outer(
        3, True, "x", None, "all", 7, (1, 2), (0.0, 0.5), {"k": Inner(1.0, "b")}, Inner(0.25, "a"), None, None, Path("runs/x")
    )
    assert type(record.answer) is int and type(record.interval[0]) is float
    assert from_json(Outer, json.loads(json.dumps(to_json(record))), "f") == record


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["count"], True, "f: count true: an integer is required"),
        (["count"], 1.0, "f: count 1.0: an integer is required"),
        (["count"], "1", 'f: count "1": an integer is required'),
        (["count"], None, "f: count null: an integer is required"),
        (["count"], 2**63, "f: count 9223372036854775808: an integer is required"),
        (["count"], 10**400, f"f: count 1{'0' * 79}: an integer is required"),
        (["flag"], 1, "f: flag 1: true or false is required"),
        (["name"], 5, "f: name 5: text is required"),
        (["note"], [], "f: note []: text or null is required"),
        (["sigma"], True, "f: sigma true: text or a finite number is required"),
        (["answer"], {}, "f: answer {}: text or an integer or a finite number is required"),
        (["sizes"], {"a": 1}, 'f: sizes {"a": 1}: a list is required'),
        (["sizes"], [1, 2.5], "f: sizes[1] 2.5: an integer is required"),
        (["interval"], [1.0], "f: interval [1.0]: a list of 2 is required"),
        (["interval"], [1.0, float("nan")], "f: interval[1] NaN: a finite number is required"),
        (["interval"], [float("-inf"), 1.0], "f: interval[0] -Infinity: a finite number is required"),
        (["interval"], [1.0, 10**400], f"f: interval[1] 1{'0' * 79}: a finite number is required"),
        (["by_name"], [], "f: by_name []: an object is required"),
        (["by_name", "k", "kind"], "c", 'f: by_name.k.kind "c": a or b is required'),
        (["inner"], 5, "f: inner 5: an object is required"),
        (["inner", "share"], "high", 'f: inner.share "high": a finite number is required'),
        (["inner", "share"], -1, "f: inner.share -1.0: must not be negative"),
        (["inner", "more"], 1, "f: inner.more is an unknown field; one of share, kind is required"),
        (["other"], {"share": 1}, "f: other.kind is missing"),
        (["other"], 5, "f: other 5: an object or null is required"),
        (["few"], [1, None], "f: few[1] null: an integer is required"),
        (["out"], 5, "f: out 5: a path or null is required"),
        (["by_name", "two\nlines"], 5, r'f: by_name."two\nlines" 5: an object is required'),
        (["two\nlines"], 5, rf'f: "two\nlines" is an unknown field; one of {", ".join(GOOD)} is required'),
        (["x" * 500], 1, f"f: {'x' * 80} is an unknown field; one of {', '.join(GOOD)} is required"),
    ],
)
def test_the_field_its_value_and_what_is_required_are_named(path, value, message):
    content = json.loads(json.dumps(GOOD))
    *head, last = path
    place = content
    for key in head:
        place = place[key]
    place[last] = value
    with pytest.raises(InputError) as error:
        from_json(Outer, content, "f")
    assert str(error.value) == message


@pytest.mark.parametrize("name", GOOD)
def test_a_missing_field_takes_its_default_if_it_has_one(name):
    content = {key: value for key, value in GOOD.items() if key != name}
    if name == "out":
        assert from_json(Outer, content, "f").out is None
    else:
        with pytest.raises(InputError, match=f"^f: {name} is missing$"):
            from_json(Outer, content, "f")


@pytest.mark.parametrize("value", [None, [], 5, "x", float("nan")])
def test_what_is_no_object_is_refused(value):
    with pytest.raises(InputError, match=r"^f: \S+: an object is required$"):
        from_json(Inner, value, "f")


def test_values_are_cut_and_lines_stay_one():
    with pytest.raises(InputError) as error:
        refuse("f", "text", "line\n" * 100, "something shorter is required")
    shown = ('"' + r"line\n" * 100)[:80]
    assert str(error.value) == f"f: text {shown}: something shorter is required"


def test_a_type_that_json_cannot_hold_is_a_mistake_of_the_program():
    @dataclasses.dataclass(frozen=True)
    class Bad:
        x: set[int]

    with pytest.raises(TypeError, match="not one that a record can hold"):
        from_json(Bad, {"x": []}, "f")


def hostile_files(folder: Path) -> dict[str, Path]:
    """Name -> a file that must not be read as if it were a small text."""
    loop, big, wide = folder / "loop", folder / "big", folder / "wide"
    loop.symlink_to(loop)
    with open(big, "wb") as file:
        file.truncate(2**40)  # sparse: 1 TiB without an end of line
    wide.write_bytes(b"[" + b"[]," * (LONGEST // 3) + b"[]]")
    os.mkfifo(folder / "fifo")
    texts = {"deep": "[" * 10_000 + "]" * 10_000, "digits": "1" * 50_000, "surrogate": r'"\ud800"', "latin": '"\xff"', "cut": '{"a'}
    for name, text in texts.items():
        (folder / name).write_bytes(text.encode("latin-1"))
    return {
        **{name: folder / name for name in ("loop", "big", "wide", "fifo", *texts)},
        "folder": folder,
        "device": Path("/dev/zero"),
        "nul": Path("nul\0"),
        "absent": folder / "absent",
    }


def test_files_that_are_no_small_json_are_one_line_and_take_no_time_and_memory(tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, path in hostile_files(tmp_path).items():
        start = time.perf_counter()
        with pytest.raises(InputError, match=r"\A[^\n]{1,400}\Z"):
            read_json_lines(path, "f")
        with pytest.raises((OSError, ValueError)):
            parse_json(read_text(path))
        assert time.perf_counter() - start < 2, name
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19  # KiB


def test_lines_are_read_as_they_stand(tmp_path):
    (tmp_path / "f").write_bytes(b'\xef\xbb\xbf{"a": "x\xe2\x80\xa8y"}\r\n\n \t\n5\n[NaN, 1e400]')
    rows = read_json_lines(tmp_path / "f", "f")
    assert str(rows) == str([("f: line 1", {"a": "x\u2028y"}), ("f: line 4", 5), ("f: line 5", [float("nan"), float("inf")])])
