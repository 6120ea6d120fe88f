"""What a reader is told of a grid: title, verdict, sentences, caveats, table, page; from cells whose answers are known."""

from types import SimpleNamespace

import numpy as np
import pytest

from perturbjax.caulking import Config, Data, Grid
from perturbjax.caulking.caveats import caveats
from perturbjax.caulking.cells import Measured
from perturbjax.caulking.headline import headline
from perturbjax.caulking.plan import missing_classes
from perturbjax.caulking.plots import plot_curves, plot_needed
from perturbjax.caulking.results import VERSION, Results, base_alone, make_curves, make_slopes
from perturbjax.caulking.results_table import results_table
from perturbjax.report import Source

SAMPLES = (8, 16, 32, 64)


def results(errors, bases, n=100, accuracies=(0.8,), diverged=0):
    """Of errors: (method, sigma) -> (N, S)."""
    cells = [
        Measured(method, sigma, samples, seed, float(error), 0.1, 1.0, 1.0)
        for (method, sigma), table in errors.items()
        for samples, row in zip(SAMPLES, table, strict=False)
        for seed, error in enumerate(row)
    ]
    alone = tuple(base_alone(sigma, error, n) for sigma, error in bases.items())
    curves, held_out = make_curves(cells, accuracies)
    seeds = len(next(iter(errors.values()))[0])
    slopes = make_slopes(cells, alone, accuracies, n)
    trained = {method: 10 for method, _ in errors}
    source = Source("toy", "made here")
    return Results(
        VERSION, source, source, "texts", seeds, n, 500, alone, curves, slopes, trained, len(cells), diverged, 1, 1, (), 1.0, held_out
    )  # fmt: skip


def falling(first, seeds=4, factor=0.5):
    return [[first * factor**i + 0.001 * seed for seed in range(seeds)] for i in range(4)]


def test_clearly_fewer_examples_than_from_scratch_are_a_verdict_with_enough_seeds_alone():
    for seeds, verdict in ((4, "helped"), (2, "no clear effect"), (1, "no clear effect")):
        found = results({("lora", 0.0): falling(0.3, seeds), ("scratch", None): falling(0.9, seeds)}, {0.0: 0.5})
        told = headline(found)
        assert told.verdict == verdict and told.title == "80.0 % accuracy takes about 13 examples with LoRA"
        assert ("Intervals are 95 %, over 4 seeds." in told.sentences[0]) == (seeds == 4)
    assert told.sentences[0].endswith("1 seed: too few for an interval.")


def test_what_scratch_reaches_on_some_seeds_alone_is_no_verdict():
    # From scratch 80 % is not reached in the mean, but its lower limit does, as early as with LoRA.
    scratch = [[0.5] * 4, [0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.5]]
    found = results({("lora", 0.0): falling(0.4), ("scratch", None): scratch}, {0.0: 0.5})
    assert found.scratch is not None and found.scratch.needed[0].censored == "above"
    assert headline(found).verdict == "no clear effect" and "from scratch more than 64 [12, more]" in headline(found).sentences[0]
    (said,) = [text for text in caveats(found, Config()) if "is not reached" in text]
    assert "In the mean 80.0 % is not reached with 64 examples by training from scratch (reached by 2 of 4 seeds)." in said


def test_a_base_that_is_right_often_enough_alone_is_said():
    found = results({("lora", 0.0): falling(0.4), ("lora", 0.1): falling(0.4)}, {0.0: 0.15, 0.1: 0.5})
    (said,) = [text for text in caveats(found, Config()) if "without any caulk" in text]
    assert said.startswith("The base is right on 85.0 % without any caulk, and 80.0 % was asked for")


def test_a_diverged_cell_says_what_it_does_and_what_may_help():
    found = results({("lora", 0.0): [[0.1, np.nan, 0.1]] * 4}, {0.0: 0.5}, diverged=4)
    assert found.curves[0].needed[0].censored == "above" and found.curves[0].points[0].error == pytest.approx(0.4)
    (said,) = [text for text in caveats(found, Config()) if "diverged" in text]
    assert said.startswith("4 cells diverged") and "--learning-rates" in said


def test_every_row_of_the_table_says_which_base():
    bases = {0.0: 0.3, 0.001: 0.35, 0.003: 0.4}
    table = results_table(results({("bitfit", sigma): falling(0.4) for sigma in bases}, bases))
    for sigma in (0.001, 0.003):
        assert table.count(f"biases and norms trained, base moved by {sigma}  ") == 2
    assert "of log examples for 80.0 % against log error of the base, 3 bases" in table


def test_plots_of_many_curves_and_of_limits(tmp_path):
    bases = {0.0: 0.1, 0.003: 0.3, 0.01: 0.5}
    errors = {("lora", 0.0): falling(0.1), ("lora", 0.003): falling(0.4), ("lora", 0.01): [[0.5] * 4] * 4}
    many = errors | {("head", sigma): falling(0.5) for sigma in bases} | {("scratch", None): falling(0.9)}
    for name, some in (("few", errors), ("many", many)):
        found = results(some, bases)
        assert [curve.needed[0].censored for curve in found.curves[:3]] == ["below", "no", "above"]
        plot_curves(tmp_path / f"{name}.png", found)
        plot_needed(tmp_path / f"{name} needed.png", found)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 4


def test_one_number_of_examples_is_read_off_no_line():
    words = " ".join(caveats(results({("lora", 0.0): falling(0.1)[:1]}, {0.0: 0.5}, n=1), Config()))
    assert "read off a line" not in words and "the same 1 question, " in words and "the law" in words


@pytest.mark.parametrize(
    ("train", "test", "missing"), [("abcabc", "abc", [2]), ("abab", "abc", [2, 4, 8]), ("aaaa", "aa", []), ("abab", "ab", [])]
)
def test_answers_that_training_never_sees(train, test, missing):
    examples = [SimpleNamespace(answer=answer, choices=("a", "b", "c")) for answer in test]
    parts = SimpleNamespace(
        classes=np.array(["abc".index(answer) for answer in train]), test=examples, config=Config(data=Data(), grid=Grid(samples=(2, 4, 8)))
    )
    assert missing_classes(parts) == missing  # pyright: ignore[reportArgumentType]
