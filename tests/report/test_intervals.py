"""Intervals against published tables, scipy, exact coverage and naive resampling; and the figures as words, labels beside lines,
entries as typed records and as a table."""

import numpy as np
import pytest
from scipy import stats

from perturbjax.records import from_json, to_json
from perturbjax.report import Comparison, compared_entry, comparison, entry
from perturbjax.report.accounting import paired_bootstrap, sign_test, student_half, wilson
from perturbjax.report.figure import move_apart
from perturbjax.report.schema import ComparedEntry
from perturbjax.report.words import WIDTH, entry_lines, points, rate


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_the_table_of_newcombe_1998(successes, n, low, high):
    # R. G. Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17 (1998), table I, method 3.
    assert wilson(successes, n) == pytest.approx((low, high), abs=5.1e-5)


def test_students_interval_of_a_mean_is_scipys():
    for n in (2, 3, 10):
        values = np.random.default_rng(n).normal(size=(4, n))
        low, high = stats.t.interval(0.95, n - 1, values.mean(axis=-1), stats.sem(values, axis=-1))
        np.testing.assert_allclose(student_half(values), (high - low) / 2)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("n", [1, 7, 256])
def test_wilson_equals_scipy(n, confidence):
    for successes in {0, 1, n // 2, n}:
        expected = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
        low, high = wilson(successes, n, confidence)
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
        assert 0 <= low <= successes / n <= high <= 1


@pytest.mark.parametrize("n", [32, 64, 256])
def test_wilson_covers_the_truth_in_95_of_100(n):
    intervals = np.array([wilson(k, n) for k in range(n + 1)])
    coverage = []
    for p in np.linspace(0.02, 0.98, 97):
        inside = (intervals[:, 0] <= p) & (p <= intervals[:, 1])
        coverage.append(stats.binom.pmf(np.arange(n + 1), n, p)[inside].sum())
    assert np.mean(coverage) == pytest.approx(0.95, abs=0.01)
    assert np.min(coverage) > 0.87  # its known dips; the Wald interval falls to 0.5 here


def test_wilson_of_fractional_scores_is_on_the_safe_side():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        scores = rng.beta(2, 1, 80)
        low, high = wilson(float(scores.sum()), 80)
        covered += low <= 2 / 3 <= high
    assert covered >= 285


@pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5), (0, 0), (float("nan"), 5)])
def test_wilson_refuses_what_is_no_share(successes, n):
    with pytest.raises(ValueError, match="required"):
        wilson(successes, n)


def paired_scores(n, seed, gain=0.05):
    rng = np.random.default_rng(seed)
    base = rng.random(n) < 0.6
    flip = rng.random(n) < 0.2
    other = np.where(flip, rng.random(n) < 0.6 + gain / 0.2, base)
    return other.astype(float), base.astype(float)


def test_bootstrap_equals_resampling_rows():
    scores, base = paired_scores(150, 1)
    rng = np.random.default_rng(5)
    rows = rng.integers(0, 150, (20_000, 150))
    naive = np.quantile((scores - base)[rows].mean(axis=1), [0.025, 0.975])
    np.testing.assert_allclose(paired_bootstrap(scores, base, seed=0, resamples=20_000), naive, atol=1.01 / 150)  # one step of the grid


def test_bootstrap_agrees_with_the_normal_approximation_at_large_n():
    scores, base = paired_scores(5000, 2)
    difference = scores - base
    half = 1.959964 * difference.std(ddof=1) / np.sqrt(5000)
    low, high = paired_bootstrap(scores, base, seed=0)
    assert (low, high) == pytest.approx((difference.mean() - half, difference.mean() + half), abs=0.05 * half)


def test_bootstrap_covers_the_truth_in_95_of_100():
    truth = 0.05
    covered = sum(
        low <= truth <= high for low, high in (paired_bootstrap(*paired_scores(250, s), seed=s, resamples=1000) for s in range(400))
    )
    assert 0.91 <= covered / 400 <= 0.985  # 0.95 within three standard errors, and the percentile interval's known shortfall


def test_pairing_narrows_the_interval():
    scores, base = paired_scores(400, 3)
    low, high = paired_bootstrap(scores, base, 0)
    shuffled_low, shuffled_high = paired_bootstrap(scores, np.random.default_rng(0).permutation(base), 0)
    assert high - low < 0.75 * (shuffled_high - shuffled_low)


def test_bootstrap_is_seeded_and_antisymmetric():
    rng = np.random.default_rng(4)
    scores, base = rng.random(100), rng.random(100)
    low, high = paired_bootstrap(scores, base, 7)
    assert (low, high) == paired_bootstrap(scores, base, 7)
    assert (low, high) != paired_bootstrap(scores, base, 8)
    assert paired_bootstrap(base, scores, 7) == pytest.approx((-high, -low), abs=0.05 * (high - low))
    assert paired_bootstrap(base, base, 7) == (0.0, 0.0)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (4, 0), (0, 4), (16, 6), (7, 7), (300, 250)])
def test_sign_test_equals_scipy(gained, lost):
    scores = np.array([1.0] * gained + [0.0] * lost + [1.0] * 5)
    base = np.array([0.0] * gained + [1.0] * lost + [1.0] * 5)
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    found = sign_test(scores, base)
    assert found[:2] == (gained, lost) and found[2] == pytest.approx(expected, rel=1e-9)


def test_shapes_must_agree():
    for other in (np.zeros(3), np.zeros((4, 1)), np.zeros(0)):
        with pytest.raises(ValueError, match="equal, non-empty"):
            paired_bootstrap(np.zeros(4), other, 0)


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
