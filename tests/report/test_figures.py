"""Numbers in words, labels beside lines, entries as typed records and as a table."""

import numpy as np
import pytest

from perturbjax.records import from_json, to_json
from perturbjax.report import Comparison, compared_entry, comparison, entry
from perturbjax.report.figure import move_apart
from perturbjax.report.intervals import paired_bootstrap, sign_test, wilson
from perturbjax.report.schema import ComparedEntry
from perturbjax.report.table import WIDTH, entry_lines
from perturbjax.report.words import points, rate


def test_words():
    assert [points(x) for x in (0.0586, -0.01, 0.0, -0.0001, 1.0)] == ["+5.9", "-1.0", "0.0", "0.0", "+100.0"]
    assert [rate(x) for x in (None, 0.5312, 12.34, 1234.5, 123456.0)] == ["not measured", "0.531", "12.3", "1,234", "123,456"]


def test_labels_are_spread_and_stay_near():
    apart = move_apart(np.array([0.1, 0.5, 0.51, 0.52, 0.9]), 0.05)
    assert (np.diff(apart) >= 0.05 - 1e-9).all()
    np.testing.assert_allclose(apart, [0.1, 0.46, 0.51, 0.56, 0.9])


SCORES, BASE = np.array([1, 1, 1, 0, 1, 1], np.float32), np.array([1, 0, 0, 1, 1, 0], np.float32)


def test_a_compared_entry_is_flat_and_survives_json():
    figures = entry(SCORES, np.ones(6), 60, 7)
    compared = compared_entry(figures, SCORES, BASE, 3)
    low, high = paired_bootstrap(SCORES, BASE, 3)
    gained, lost, p_value = sign_test(SCORES, BASE)
    assert to_json(compared) == {
        "n": 6,
        "accuracy": pytest.approx(5 / 6),
        "interval": list(wilson(5, 6)),
        "lenient_accuracy": 1.0,
        "tokens": 60,
        "search_tokens": 7,
        "difference": pytest.approx(2 / 6),
        "difference_interval": [low, high],
        "gained": gained,
        "lost": lost,
        "p_value": p_value,
    }
    assert from_json(ComparedEntry, to_json(compared), "x") == compared
    assert comparison(SCORES, BASE, 3) == Comparison(
        difference=compared.difference, difference_interval=(low, high), gained=gained, lost=lost, p_value=p_value
    )


def test_the_table_leaves_the_difference_of_the_base_empty():
    figures = entry(BASE, BASE, 1_234_567)
    lines = entry_lines([("base", figures), ("other", compared_entry(figures, SCORES, BASE, 0))], lenient=True)
    assert len({len(line) for line in lines}) == 1 and len(lines[0]) <= WIDTH
    assert lines[2].split() == ["base", "50.0", "%", "18.8", "to", "81.2", "1,234,567", "50.0", "%"]
    assert "+33.3" in lines[3]
