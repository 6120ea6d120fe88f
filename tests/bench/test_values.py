"""The rows of ``bench --chapter ivl``, on models of a few thousand weights: what is divided by what, shown and written."""

import json
import math

import pytest

from perturbjax.bench import values
from perturbjax.bench.values import Sizes, shape
from perturbjax.cli import main

BASE = shape(64, 16, 2, 16, 1, 1, True)
TINY = Sizes(
    base=BASE, value=shape(64, 16, 1, 16, 1, 1, False), rows=1, prompt=4, new=3, batch=2, tokens=8, queries=4,
    map_base=BASE, map_value=shape(40, 16, 1, 16, 1, 1, True), map_rows=2, columns=16,
)  # fmt: skip


def test_rows_are_shown_and_written_as_they_come(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(values, "SIZES", TINY)
    assert main(["bench", "--chapter", "ivl", "--rounds", "3", "--out", str(tmp_path)]) == 0
    bench = json.loads((tmp_path / "bench.json").read_text())
    decoding, training, mapping = bench["rows"]
    assert bench["header"]["versions"]["jax"] and bench["header"]["shapes"]["rows"] == 1 and bench["header"]["devices"]
    for row in bench["rows"]:
        assert len(row["rounds"]) == len(row["cpu_rounds"]) == 3 and row["compile_s"] > 0
        assert row["ratio"] == sorted(row["rounds"])[1]
    for number, (both, base, value) in enumerate(zip(*(decoding["seconds"][name] for name in ("both", "base", "value")), strict=True)):
        assert decoding["rounds"][number] == pytest.approx((base + value) / both)
    for row, above, below in ((training, "value", "plain"), (mapping, "map", "step")):
        pairs = zip(row["seconds"][above], row["seconds"][below], strict=True)
        assert row["rounds"] == pytest.approx([one / other for one, other in pairs]) and all(map(math.isfinite, row["rounds"]))
    shown = capsys.readouterr().out.splitlines()
    labels = ["combined decoding", "training step", "vocabulary map", "PyTorch"]
    assert [line.strip()[: len(label)] for line, label in zip(shown, labels, strict=False)] == labels
    assert "aim at least 0.95" in shown[0] and "aim at most 1.10" in shown[1] and "aim at most 0.05" in shown[2]
    assert "not measured" in shown[3]


@pytest.mark.parametrize("arguments", [["--model", "nope"], ["--noise", "gaussian"], ["--no-generation"], ["--in-flight", "2"]])
def test_settings_of_the_other_chapter_are_refused(arguments, capsys):
    assert main(["bench", "--chapter", "ivl", *arguments]) == 2
    flag = "--generation" if arguments[0] == "--no-generation" else arguments[0]
    assert f"{flag}: chapter ivl brings its own shapes and does not read it; leave it out" in capsys.readouterr().err
