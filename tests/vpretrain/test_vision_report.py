"""Results of an experiment on images: differences, verdicts, the table and the page."""

import json
from dataclasses import replace

import numpy as np
import pytest

from perturbjax.errors import InputError
from perturbjax.train.problem import Look
from perturbjax.vpretrain.vision_report import headline, write_vision_report
from perturbjax.vpretrain.vision_results import (
    VISION_ARMS,
    VISION_START,
    VisionArm,
    VisionResults,
    read_vision_results,
    vision_table,
    write_vision_results,
)

UPDATES = tuple({"step": float(step), "predicted": step / 9, "predicted_alone": 0.1, "realized": step / 10} for step in range(4))


def looks(last):
    return tuple(
        Look(step, {}, 0.0, 0.0, {"loss": 1.0, "segmentation": 1 / (step + 1), "depth": 0.2}, 0, 2.0 * step, None, UPDATES if step else ())
        for step in range(0, last + 1, 2)
    )


def made(gains, seeds=4):
    """Arms whose IoU and depth are better than those of step 0 by so much, and a little of each seed's own."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(seeds):
        arms = {VISION_START: VisionArm(0.1, 0.9, 0.5, 0.3, looks=looks(0))}
        for arm in VISION_ARMS:
            gain = gains.get(arm, 0.0) + rng.normal(0, 0.005)
            designed = {"r": 0.5, "r_alone": 0.1, "on_figures": 0.3} if arm in ("value", "random direction") else {}
            arms[arm] = VisionArm(0.1, 0.9, 0.5 + gain, 0.3 - gain, **designed, seconds=9.0, looks=looks(6)[1:])
        found.append(arms)
    return VisionResults("scenes", "python vision.py", 0.3, {"steps": 6}, 0, tuple(found))


def test_differences_are_paired_and_above_zero_where_better():
    results = made({"value": 0.1})
    for figure, sign in (("miou", 1), ("depth", -1)):
        each = sign * (results.values("value", figure) - results.values("plain", figure))
        found = results.difference("value", "plain", figure)
        assert found.mean == pytest.approx(each.mean()) and found.wins == 4 and found.verdict == "helped"
        assert found.half == pytest.approx(3.182446 * each.std(ddof=1) / 2)  # t of 3 degrees of freedom
    assert results.difference("plain", "value", "depth").verdict == "hurt"
    assert made({}, seeds=1).difference("value", "plain", "miou").half is None


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ({"value": 0.1}, "helped"),
        ({"value": -0.1}, "hurt"),
        ({}, "no clear effect"),
        ({"value": 0.1, "random masks": 0.1}, "no clear effect"),
    ],
)
def test_the_value_is_graded_beside_random_masks(gains, verdict):
    found = headline(made(gains))
    assert found.verdict == verdict and "random masks" in found.title
    as_well = any("random direction did as well" in sentence for sentence in found.sentences)
    assert as_well == ("value" not in gains or gains["value"] < 0)
    assert any(sentence.startswith("In 4 of 4 seeds the designer hardly chose") for sentence in found.sentences)


def test_the_table_names_arms_and_counts_seeds():
    table = vision_table(made({"value": 0.1}))
    assert table.startswith("4 seeds") and "value - random masks" in table and "4/4" in table


def test_the_page_is_the_same_twice_and_shows_its_pictures(tmp_path):
    write_vision_results(tmp_path / "results.json", made({"value": 0.1}))
    report = write_vision_report(tmp_path)
    page = report.read_bytes()
    assert page.count(b"data:image/png") == 3 and b"Designed masks did better than random masks" in page
    assert write_vision_report(tmp_path).read_bytes() == page


def test_controls_alone_have_a_page_too(tmp_path):
    results = made({})
    results = replace(results, seeds=tuple({arm: seed[arm] for arm in (VISION_START, "plain")} for seed in results.seeds))
    write_vision_results(tmp_path / "results.json", results)
    assert b"No designer followed the value" in write_vision_report(tmp_path).read_bytes()


def test_trainings_without_looks_have_a_page_without_curves(tmp_path):
    results = made({})
    bare = tuple({name: replace(arm, looks=()) for name, arm in seed.items()} for seed in results.seeds)
    write_vision_results(tmp_path / "results.json", replace(results, seeds=bare))
    page = write_vision_report(tmp_path).read_bytes()
    assert b"data:image/png" not in page and b"<h2>Learning</h2>" not in page and b"<h3>Mind</h3>" in page


def test_damaged_results_are_named(tmp_path):
    write_vision_results(tmp_path / "results.json", made({}))
    content = json.loads((tmp_path / "results.json").read_text())
    content["seeds"][1].pop("plain")
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="the same arms of each, step 0 among them, are required"):
        read_vision_results(tmp_path / "results.json")
