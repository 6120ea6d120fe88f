"""The rows of ``bench --chapter caulking``, at a tiny size: what is divided by what, shown and written."""

import json

import pytest

from perturbjax.bench import caulks
from perturbjax.bench.values import shape
from perturbjax.cli import main

SMALL = caulks.Sizes(4, 4, 2, 3, 2, 2, shape(64, 16, 1, 16, 1, 1, True), 2, 1, 8, 1)


def test_rows_are_shown_and_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(caulks, "SIZES", SMALL)
    assert main(["bench", "--chapter", "caulking", "--rounds", "1", "--out", str(tmp_path)]) == 0
    cells, steps, one_base = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert cells["rounds"] == pytest.approx([cells["seconds"]["cells"][0] / cells["seconds"]["grid"][0]])
    assert steps["rounds"] == pytest.approx([2 * steps["seconds"]["steps"][0] / steps["seconds"]["grid"][0]])
    assert one_base["rounds"] == pytest.approx([one_base["seconds"]["plain"][0] / one_base["seconds"]["caulks"][0]])
    shown = capsys.readouterr().out.splitlines()
    assert "aim at least 20.00" in shown[0] and "aim at least 0.90" in shown[2]


def test_settings_of_the_other_chapter_are_refused(capsys):
    assert main(["bench", "--chapter", "caulking", "--noise", "gaussian"]) == 2
    assert "--noise: chapter caulking brings its own shapes" in capsys.readouterr().err
