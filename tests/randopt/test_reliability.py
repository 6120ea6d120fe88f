"""Reliability on matrices whose truth is known, against correlations with other examples and against another formula."""

import numpy as np
import pytest
from racing_matrices import relatives

from perturbjax.errors import InputError
from perturbjax.randopt.preflight import FirstLook, Preflight
from perturbjax.randopt.racing import Race
from perturbjax.randopt.reliability import ENOUGH, Reliability, advice, reliability
from perturbjax.randopt.table import ScoreTable


def estimate(scores: np.ndarray, examples: int) -> Reliability:
    """There must be one."""
    found = reliability(scores, examples)
    assert found is not None
    return found


def made(rng: np.random.Generator, size: int, examples: int, skill: float, right_or_wrong: bool) -> np.ndarray:
    """Scores of candidates whose standard deviation of skill is ``skill``, on examples of unequal difficulty."""
    mean = skill * rng.standard_normal((size, 1)) + rng.normal(0.5, 0.2, examples)
    if right_or_wrong:
        return (rng.random((size, examples)) < np.clip(mean, 0, 1)).astype(np.float32)
    return (mean + 0.4 * rng.standard_normal((size, examples))).astype(np.float32)


def test_it_is_cronbach_s_alpha_on_the_examples_asked():
    scores = made(np.random.default_rng(0), 40, 16, 0.2, True)
    found = estimate(scores, 16)
    alpha = 16 / 15 * (1 - scores.var(axis=0, ddof=1, dtype=np.float64).sum() / scores.sum(axis=1, dtype=np.float64).var(ddof=1))
    assert found.value == pytest.approx(alpha, rel=1e-6)
    # Spearman and Brown: four times the examples.
    assert estimate(scores, 64).value == pytest.approx(4 * alpha / (1 + 3 * alpha), rel=1e-6)
    low, high = found.interval
    assert 0 <= low < found.value < high <= 1


@pytest.mark.parametrize("right_or_wrong", [False, True])
@pytest.mark.parametrize("skill", [0.05, 0.15])
def test_it_is_the_correlation_with_scores_on_other_examples(skill, right_or_wrong):
    scores = made(np.random.default_rng(1), 20_000, 2 * 32, skill, right_or_wrong)
    found = estimate(scores[:, ::2], 32)
    repeated = np.corrcoef(scores[:, ::2].mean(axis=1), scores[:, 1::2].mean(axis=1))[0, 1]
    assert found.value == pytest.approx(repeated, abs=0.02)
    low, high = found.interval
    assert low < found.value < high and high - low < 0.03


@pytest.mark.parametrize("skill", [0.0, 0.05, 0.2])
@pytest.mark.parametrize(("size", "asked", "examples"), [(32, 16, 64), (32, 25, 200)])
def test_the_interval_holds_the_truth_in_95_of_100_searches(skill, size, asked, examples):
    rng, draws = np.random.default_rng([size, int(100 * skill)]), 400
    truth = estimate(made(rng, 4000, 1000, skill, True), examples).value if skill else 0.0
    found = [estimate(made(rng, size, asked, skill, True), examples) for _ in range(draws)]
    held = np.mean([each.interval[0] <= truth <= each.interval[1] for each in found])
    above = [np.mean([each.enough for each in found]), np.mean([each.interval[0] >= ENOUGH for each in found])]
    print(
        f"{size} x {asked} for {examples}, truth {truth:.2f}: held {held:.3f}; at {ENOUGH} or above {above[0]:.3f}, interval {above[1]:.3f}"
    )
    assert held >= 0.95 - 4 * (0.95 * 0.05 / draws) ** 0.5


def test_candidates_that_differ_by_nothing_or_by_chance_alone_cannot_be_ranked():
    same = estimate(np.tile([1, 0, 1, 1.0], (8, 1)), 64)
    assert (same.value, same.interval, same.needed, same.enough) == (0.0, (0.0, 0.0), None, False)
    opposite = estimate(np.array([[1, 0], [0, 1.0]] * 4), 64)  # means are equal, answers are not
    assert opposite.value == 0.0 and opposite.needed is None and "differ by no more than chance" in advice(opposite)
    apart = estimate(np.repeat(np.arange(8.0)[:, None], 4, axis=1) / 8, 64)
    assert (apart.value, apart.interval, apart.enough) == (1.0, (1.0, 1.0), True)
    assert reliability(np.ones((1, 8)), 64) is None and reliability(np.ones((8, 1)), 64) is None


def test_as_many_examples_as_it_says_are_enough():
    scores = made(np.random.default_rng(2), 64, 16, 0.06, True)
    found = estimate(scores, 4)
    assert not found.enough
    assert found.needed is not None
    assert estimate(scores, found.needed).value >= ENOUGH > estimate(scores, found.needed - 1).value
    assert f"about {found.needed} search questions would give 0.3" in advice(found) and "\n" not in advice(found)


def test_the_first_look_asks_for_a_few_hundred_scores_of_the_first_round():
    asked = {(5000, 200): 32, (5000, 16): 32, (256, 8): 64, (48, 64): 32, (20, 64): 20, (1, 1): 1}
    looks = {size: FirstLook(Race("halving", *size, top_k=1)) for size in asked}
    assert {size: look.candidates for size, look in looks.items()} == asked
    look, scores = looks[48, 64], np.full((48, 64), np.nan, np.float32)
    scores[:32, :16] = made(np.random.default_rng(0), 32, 16, 0.2, True)
    assert look.found(scores) == estimate(scores[:32, :16], 64)
    scores[32:] = 1  # later candidates do not count
    assert look.found(scores) == estimate(scores[:32, :16], 64)
    scores[31, 15] = np.nan
    assert look.found(scores) is None


def test_what_a_search_says_of_its_first_scores_and_when_it_stops():
    race = Race("off", 40, 16, 4)
    skills = {0.3: "reliability 0.", 0.12: "so few scores do not show yet", 0.0: "perturbjax: warning: this search cannot rank"}
    for skill, words in skills.items():
        table, said = ScoreTable.empty(race), []
        look = Preflight(race, False, said.append)
        look(table)
        assert not said  # nothing is scored yet
        table.scores[:32] = made(np.random.default_rng(0), 32, 16, skill, True)
        look(table)
        look(table)
        assert len(said) == 1 and words in said[0], said
        assert ("so few" in said[0]) == (skill == 0.12)
    with pytest.raises(InputError, match=r"^`require_reliability`: this search cannot rank .* resume without it$"):
        Preflight(race, True, said.append)(table)


def test_relatives_of_a_base_are_reliable_in_proportion_to_their_skill():
    few, many = (estimate(relatives(np.random.default_rng(0), 256, 128, changes), 128) for changes in (4, 64))
    assert few.value < many.value
