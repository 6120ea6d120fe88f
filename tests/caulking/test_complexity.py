"""Required samples and laws, against synthetic errors whose answers are known."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import isotonic_regression

from perturbjax import InputError
from perturbjax.caulking.cells import Measured, read_cells, write_cells
from perturbjax.caulking.complexity import Surface, n_required, non_increasing, sample_complexity, source_slope, surfaces
from perturbjax.caulking.laws import FloorLaw, ProductLaw, compare_laws
from perturbjax.caulking.results import base_alone, make_curves, make_slopes
from perturbjax.caulking.surface_table import required_lines, surface_lines

SOURCES, SAMPLES = (256.0, 1024.0, 4096.0), (16, 32, 64, 128, 256, 512, 1024)


def cells(errors, method="lora", sources=SOURCES, samples=SAMPLES):
    """Cells of errors (Q, N, S); norms grow with n and are lower for a better source."""
    numbered = itertools.product(enumerate(sources), enumerate(samples), range(errors.shape[2]))
    return [Measured(method, m, n, s, float(errors[q, i, s]), 0.0, math.log2(n) / (q + 1), 0.0) for (q, m), (i, n), s in numbered]


def test_isotonic_regression_is_scipys():
    values = np.random.default_rng(0).normal(size=(40, 7))
    np.testing.assert_allclose(non_increasing(values), [isotonic_regression(row, increasing=False).x for row in values], atol=1e-12)


def test_required_samples_of_a_power_law_are_exact_on_the_grid_and_near_between():
    # E = c / sqrt(n): n_req(e) = (c / e)^2; linear interpolation in log n of a convex curve asks for a little more.
    errors = np.array([8.0, 4.0, 2.0])[:, None, None] / np.sqrt(SAMPLES)[None, :, None] * np.ones(3)
    found = sample_complexity(cells(errors), 0.25)["lora"]
    assert [found[m].samples for m in SOURCES] == pytest.approx([1024, 256, 64])
    assert all(each.interval == pytest.approx((each.samples, each.samples)) and each.reached == 1 for each in found.values())
    assert found[4096.0].norm == pytest.approx(6 / 3)
    for level in (0.3, 0.4):
        found = sample_complexity(cells(errors), level)["lora"]
        for c, m in zip((8.0, 4.0, 2.0), SOURCES, strict=True):
            assert (c / level) ** 2 <= found[m].samples <= 1.05 * (c / level) ** 2


def test_an_error_that_is_not_reached_is_said_and_not_dropped():
    errors = np.array([8.0, 4.0, 0.4])[:, None, None] / np.sqrt(SAMPLES)[None, :, None] * np.ones(2)
    found = sample_complexity(cells(errors), 0.2)["lora"]
    assert found[256.0].censored == "above" and found[256.0].words == "more than 1,024" and math.isnan(found[256.0].norm)
    assert found[1024.0].censored == "no" and found[1024.0].samples == pytest.approx(405, abs=6)
    assert found[4096.0].censored == "below" and found[4096.0].words == "at most 16"
    with pytest.raises(InputError, match="`cells`: none are given"):
        sample_complexity([], 0.2)
    with pytest.raises(InputError, match=r"`error` 0.001: no cells reach it on average, the lowest of one is 0.0125"):
        sample_complexity(cells(errors), 0.001)


def test_limits_are_where_the_interval_of_the_mean_error_leaves_the_error():
    # Of many n, each seed's error read off its own line, scipy's interval of their mean.
    rng = np.random.default_rng(1)
    errors = 2 / np.sqrt(SAMPLES)[:, None] * np.exp(rng.normal(0, 0.3, (1, 4)) + rng.normal(0, 0.05, (7, 4)))
    assert (np.diff(errors.mean(axis=1)) < 0).all()
    found = sample_complexity(cells(errors[None], sources=(1.0,)), 0.2)["lora"][1.0]
    n = np.geomspace(16, 1024, 4001)
    each = np.array([np.interp(np.log(n), np.log(SAMPLES), row) for row in errors.T])
    low, high = stats.t.interval(0.95, 3, each.mean(axis=0), stats.sem(each))
    expected = n[np.argmax(low <= 0.2)], n[np.argmax(high <= 0.2)]
    assert found.interval == pytest.approx(expected, rel=0.01) and expected[0] < found.samples < expected[1] < 1024
    assert found.reached == np.mean([n_required(row, SAMPLES, 0.2) <= 1024 for row in errors.T])


def held(level, seeds, shared, rng, grids=1000):
    """Percent of the grids of a known law whose interval holds the truth; errors are off by 25 % a seed, a part of it at all n alike."""
    law, truth = 0.05 + (6 / np.array(SAMPLES)) ** 0.8, 6 / (level - 0.05) ** (1 / 0.8)
    off = shared**0.5 * rng.normal(0, 0.25, (grids, 1, seeds)) + (1 - shared) ** 0.5 * rng.normal(0, 0.25, (grids, len(SAMPLES), seeds))
    errors = law[None, :, None] * np.exp(off - 0.25**2 / 2)
    surface = Surface(tuple(map(float, range(grids))), SAMPLES, tuple(range(seeds)), errors, np.ones_like(errors))
    limits = [each.interval for each in surface.required(level).values()]
    return 100 * np.mean([min(low, SAMPLES[-1]) <= truth <= high for low, high in limits])  # more than 1,024: it may be any above


def test_how_often_the_interval_holds_the_truth():
    # 64 of 16 to 1,024 samples, 396, which the interval often cannot tell from more than 1,024, and 1,897, which the grid does not have.
    rng = np.random.default_rng(0)
    found = {level: [held(level, seeds, shared, rng) for seeds in (3, 5, 10) for shared in (0, 0.64)] for level in (0.2, 0.085, 0.06)}
    assert np.min(found[0.2] + found[0.085]) > 93 and np.max(found[0.2] + found[0.085]) < 98.5  # 94 to 98 %, as the page says
    assert np.min(found[0.06]) > 98


def test_a_seed_that_diverged_reaches_nothing():
    errors = np.full((1, 7, 2), 0.1)
    errors[0, :, 1] = np.nan
    with pytest.raises(InputError, match="no cells reach it"):
        sample_complexity(cells(errors, sources=(1.0,)), 0.2)
    errors[0, 2:, 1] = 0.1
    assert sample_complexity(cells(errors, sources=(1.0,)), 0.2)["lora"][1.0].samples == pytest.approx(64)


def test_what_follows_an_infinite_or_huge_error_is_not_taken_for_zero():
    for first in (np.inf, 1e30):
        np.testing.assert_array_equal(non_increasing(np.array([first, 0.6, 0.5])), [first, 0.6, 0.5])
    np.testing.assert_array_equal(non_increasing(np.array([0.7, np.inf, 0.6])), [np.inf, np.inf, 0.6])
    errors = np.full((1, 7, 5), 0.6)
    errors[0, 0, 0] = np.nan
    with pytest.raises(InputError, match=r"`error` 0.05: no cells reach it"):
        sample_complexity(cells(errors, sources=(1.0,)), 0.05)


def test_an_error_that_is_just_reached_is_reached():
    # 0.2 of float32 is above 1 - 0.8 of float64.
    just = [Measured("lora", 1.0, n, s, float(np.float32(e)), 0.0, 1.0, 1.0) for n, e in ((16, 0.3), (32, 0.2)) for s in range(3)]
    assert sample_complexity(just, 1 - 0.8)["lora"][1.0].samples == pytest.approx(32)


def test_the_smallest_number_of_samples_is_a_limit_whatever_its_logarithm():
    # exp(log(n)) is above n for these.
    for least in (3, 10, 48):
        found = sample_complexity(cells(np.full((1, 2, 2), 0.1), sources=(1.0,), samples=(least, 64)), 0.2)["lora"][1.0]
        assert (found.samples, found.censored, found.words) == (least, "below", f"at most {least}")


def test_a_limit_that_the_seeds_do_not_agree_on_has_its_interval():
    errors = np.array([[[0.1, 0.1, 0.5], [0.1, 0.1, 0.1]], [[0.4, 0.4, 0.4], [0.4, 0.1, 0.4]]])
    found = sample_complexity(cells(errors, sources=(1.0, 2.0), samples=(16, 32)), 0.25)["lora"]
    assert found[1.0].words == "at most 16 [16, 28]" and found[2.0].words == "more than 32 [19, more]"


def test_a_seed_that_diverged_makes_the_limits_infinite():
    errors = np.full((1, 3, 5), 0.3)
    errors[0, 0, 0], errors[0, 1] = np.inf, np.inf
    limits = surfaces(cells(errors, sources=(1.0,), samples=(8, 16, 32)))["lora"].interval()
    assert limits[0].tolist() == [[np.inf, np.inf], [np.inf, np.inf], [0.3, 0.3]]


def test_cells_that_are_missing_or_doubled_are_refused():
    some = cells(np.full((3, 7, 2), 0.1))
    with pytest.raises(InputError, match=r"lora, quality 256\.0, n 16, seed 1 is there 0 times"):
        surfaces([some[0], *some[2:]])
    with pytest.raises(InputError, match="is there 2 times"):
        surfaces([*some, some[3]])


def test_the_slope_is_that_of_the_law():
    # n_req = (c / e)^2 with c = source^0.35: slope 0.7.
    sources = {256.0: [0.4, 0.4], 1024.0: [0.1, 0.1], 4096.0: [0.025, 0.025]}
    c = np.array([values[0] ** 0.35 for values in sources.values()])
    surface = surfaces(cells(2 * c[:, None, None] / np.sqrt(SAMPLES)[None, :, None] * np.ones(2)))["lora"]
    value, (low, high), used = source_slope(surface, sources, 0.1)
    assert used == 3 and low == pytest.approx(value) == high
    assert value == pytest.approx(0.7, abs=0.02)


def test_the_interval_of_a_slope_is_the_jackknifes():
    rng = np.random.default_rng(2)
    sources = {m: list(0.4 * 256 / m * np.exp(rng.normal(0, 0.2, 4))) for m in SOURCES}
    errors = 2 * np.array([0.7, 0.4, 0.3])[:, None, None] / np.sqrt(SAMPLES)[None, :, None] * np.exp(rng.normal(0, 0.1, (3, 7, 4)))

    def of(kept):
        required = [n_required(row[:, kept].mean(axis=1), SAMPLES, 0.1) for row in errors]
        return np.polyfit(np.log([np.mean(np.array(each)[kept]) for each in sources.values()]), np.log(required), 1)[0]

    without = np.array([of([seed for seed in range(4) if seed != left]) for left in range(4)])
    half = stats.t.ppf(0.975, 3) * (3 / 4 * ((without - without.mean()) ** 2).sum()) ** 0.5
    value, (low, high), used = source_slope(surfaces(cells(errors))["lora"], sources, 0.1)
    assert used == 3 and (value, low, high) == pytest.approx((of([0, 1, 2, 3]), value - half, value + half)) and half > 0.01


def test_a_base_whose_required_samples_lie_outside_the_grid_is_no_point_of_the_slope():
    bases = [base_alone(quality, error, 100) for quality, error in ((0.0, 0.1), (0.1, 0.2), (0.2, 0.4))]
    errors = np.array([[0.1, 0.1, 0.1], [0.3, 0.15, 0.1], [0.4, 0.3, 0.15]])[..., None].repeat(2, axis=2)
    (slope,) = make_slopes(cells(errors, sources=(0.0, 0.1, 0.2), samples=(8, 16, 32)), bases, (0.8,), 100)
    assert slope.bases == 2 and slope.slope == pytest.approx(1)  # twice the examples for twice the error
    assert make_slopes(cells(errors[:2], sources=(0.0, 0.1), samples=(8, 16, 32)), bases[:2], (0.8,), 100) == ()


@pytest.mark.parametrize(
    "law", [FloorLaw((0.3, 0.1, 0.03), (100.0, 50.0, 30.0), 0.8), ProductLaw(20.0, 0.01, 0.6, 0.7)], ids=lambda law: type(law).__name__
)
def test_a_law_is_found_again_and_wins_on_held_out_cells(law):
    means = law(SAMPLES) if isinstance(law, FloorLaw) else law(SOURCES, SAMPLES)
    found = compare_laws(means, SOURCES, SAMPLES)
    assert found.constant_held_out > 0.1
    assert found.product is not None and found.product_held_out is not None
    if isinstance(law, FloorLaw):
        assert found.floor.exponent == pytest.approx(0.8, rel=1e-3) and found.floor.floors == pytest.approx(law.floors, rel=1e-3)
        assert found.floor_held_out < 1e-3 < found.product_held_out
    else:
        assert (found.product.alpha, found.product.beta) == (pytest.approx(0.6, rel=1e-3), pytest.approx(0.7, rel=1e-3))
        assert found.product_held_out < 1e-3


def test_qualities_that_are_no_sizes_have_no_product_law():
    found = compare_laws(FloorLaw((0.1, 0.2), (10.0, 20.0), 1.0)(SAMPLES), (0.0, 1e-3), SAMPLES)
    assert found.product is None and found.floor_held_out < 1e-3
    assert compare_laws(ProductLaw(20.0, 0.01, 0.6, 0.7)(SOURCES[:2], SAMPLES), SOURCES[:2], SAMPLES).product is None


def test_a_law_that_says_no_more_than_a_constant_has_no_exponent():
    means = 0.5 + np.random.default_rng(3).normal(0, 0.01, (1, 7))
    for errors, shown in ((means, False), (FloorLaw((0.1,), (4.0,), 0.8)(SAMPLES), True)):
        (curve,), (held_out,) = make_curves(cells(errors[..., None].repeat(2, axis=2), sources=(0.0,)), (0.8,))
        assert held_out.shown == shown == (curve.exponent is not None) and held_out.method == "lora"
        assert curve.exponent is None or curve.exponent == pytest.approx(0.8, rel=1e-3)


def test_qualities_that_look_alike_have_names_of_their_own():
    names = [Measured("lora", quality, 8, 0, 0, 0, 0, 0).name for quality in (0.0, 4096.0, 1e-3, 0.1234567, 0.12345671)]
    assert names == ["lora-q0-n8-s0", "lora-q4096-n8-s0", "lora-q0.001-n8-s0", "lora-q0.1234567-n8-s0", "lora-q0.12345671-n8-s0"]


def test_cells_are_read_as_written(tmp_path):
    some = [*cells(np.full((3, 7, 2), 0.5)), Measured("scratch", None, 16, 0, math.nan, 0.0, 0.5, 1.0)]
    write_cells(tmp_path / "cells.parquet", some)
    again = read_cells(tmp_path / "cells.parquet")
    assert [vars(cell) | {"error": 0, "norm": 0} for cell in again] == [vars(cell) | {"error": 0, "norm": 0} for cell in some]
    np.testing.assert_allclose([cell.norm for cell in again], [cell.norm for cell in some], rtol=1e-6)
    (tmp_path / "cells.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="cannot be read"):
        read_cells(tmp_path / "cells.parquet")


def test_lines_of_a_grid():
    grid = cells(np.array([[0.5, 0.4], [0.3, 0.1]])[..., None] * np.ones(2), sources=(16.0, 64.0), samples=(8, 16))
    (surface,) = surfaces(grid).values()
    title, head, first, second = surface_lines("lora: error", surface, {16.0: [0.2, 0.4], 64.0: [0.1, 0.1]})
    assert title == "lora: error, mean over 2 seeds [95 %]" and head.split() == ["m", "source", "n", "=", "8", "n", "=", "16"]
    assert first.split()[:3] == ["16", "0.300", "0.500"] and second.split()[:3] == ["64", "0.100", "0.300"]
    above, found = required_lines("lora", sample_complexity(grid, 0.2)["lora"])
    assert above.split() == ["lora", "m", "=", "16", "more", "than", "16"] and found.startswith("lora     m = 64") and "norm" in found


def test_one_number_of_samples_has_no_slope():
    bases = [base_alone(quality, error, 100) for quality, error in ((0.0, 0.2), (0.1, 0.4))]
    errors = np.array([[0.25, 0.1], [0.3, 0.15]])[:, :, None].repeat(2, axis=2)
    both = cells(errors, sources=(0.0, 0.1), samples=(8, 16))
    assert len(make_slopes(both, bases, (0.8,), 100)) == 1
    assert make_slopes([cell for cell in both if cell.samples == 16], bases, (0.8,), 100) == ()


def test_a_curve_with_a_seed_that_diverged_has_an_interval():
    cells = [Measured("lora", 0.0, n, seed, np.inf if seed == 0 else 0.25, 1.0, 1.0, 1.0) for n in (4, 8) for seed in (0, 1)]
    (curve,), held_out = make_curves(cells, (0.3,))
    assert held_out == ()  # two numbers of examples are too few for a law
    assert [point.error for point in curve.points] == [0.625, 0.625] and curve.needed[0].censored == "above"
    assert all(point.interval == (0.0, 1.0) for point in curve.points)  # two seeds say next to nothing
