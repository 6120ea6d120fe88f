"""What could mislead a reader of this very run."""

from collections.abc import Iterator

from perturbjax.caulking.config import Config
from perturbjax.caulking.headline import FEWEST_SEEDS, curve_name
from perturbjax.caulking.results import Results
from perturbjax.report.words import percent, plural

FEW_QUESTIONS = 500
"""Below it the page says how coarse the measurement is."""


def caveats(results: Results, config: Config) -> list[str]:
    """Sentences, those about the numbers first."""
    return [*_of_the_numbers(results), *_of_the_trainings(results, config), *_of_the_method(results)]


def _of_the_numbers(results: Results) -> Iterator[str]:
    if results.seeds < FEWEST_SEEDS:
        are = "is" if results.seeds == 1 else "are"
        yield f"{plural(results.seeds, 'seed')} {are} too few for an interval over seeds: read none as one."
    elif results.seeds <= 10:
        yield (
            f"Intervals over {results.seeds} seeds are Student's, which takes the errors of seeds for normally distributed. On a known law "
            "those for the examples that an accuracy takes held the truth in 94 to 98 % of grids, with 3, 5 and 10 seeds alike."
        )
    if results.n < FEW_QUESTIONS:
        half = 100 * 0.98 / results.n**0.5
        yield (
            f"All cells are measured on the same {plural(results.n, 'question')}, which alone leaves about ±{half:.1f} points; the "
            "intervals over seeds do not hold that."
        )
    for base in results.bases:
        for needed in results.caulked[0].needed if results.caulked else ():
            if 1 - base.error >= needed.accuracy:
                what = f"The base moved by {base.sigma:g}" if base.sigma else "The base"
                yield (
                    f"{what} is right on {percent(1 - base.error)} without any caulk, and {percent(needed.accuracy)} was asked for: on it "
                    "a number of examples says when training on so few stops doing harm, not what the base lacks."
                )
    for number, accuracy in enumerate(results.accuracies):
        yield from _of_the_limits(results, number, percent(accuracy))
    if len(results.curves[0].points) > 1:
        yield "Between the numbers of examples that were tried, n_req is read off a line in log n through errors made non-increasing."
    if results.slopes:
        yield "The intervals of slopes are over seeds too: the errors of the bases alone are taken as they were measured."


def _of_the_limits(results: Results, number: int, accuracy: str) -> Iterator[str]:
    """Which curves reach an accuracy, given by its number, nowhere, and which from the first n on."""
    found, seeds = [(curve_name(curve), curve.needed[number]) for curve in results.curves], results.seeds
    above = [(name, round(needed.reached * seeds)) for name, needed in found if needed.censored == "above"]
    below = [name for name, needed in found if needed.censored == "below"]
    if above:
        most = plural(results.curves[0].points[-1].samples, "example")
        names = "; ".join(f"{name} (reached by {alone} of {plural(seeds, 'seed')})" for name, alone in above)
        yield f"In the mean {accuracy} is not reached with {most} by {names}. That it takes more is all that is known."
    if below:
        yield f"{accuracy} is reached with the fewest examples tried by {'; '.join(below)}: fewer may do."


def _of_the_trainings(results: Results, config: Config) -> Iterator[str]:
    fitting = config.fitting
    yield (
        f"Every cell takes {plural(fitting.steps, 'step')} of {plural(fitting.batch, 'example')} at one learning rate a method, whatever "
        "n is, and keeps its last weights. Neither was searched for here; a method whose rate suits it less looks hungrier."
    )
    yield (
        "The examples of a cell hold all answers as evenly as those to draw from allow; the test questions come as they are. Where answers "
        "are uneven, a cell does not learn from the mixture that it is measured on."
    )
    if results.diverged:
        yield (
            f"{plural(results.diverged, 'cell')} diverged (not finite), which counts as wrong everywhere; with that number of examples or "
            "fewer the method then reaches no accuracy on that base. A lower rate (--learning-rates) may keep cells from it."
        )
    if results.unseen:
        numbers = ", ".join(map(str, results.unseen))
        yield f"With {numbers} examples some answer of the task is never seen in training."
    if results.scratch is None:
        yield "Training from scratch was not measured, so nothing here says what pretraining is worth: add scratch to --methods."
    if any(base.sigma for base in results.bases):
        yield (
            "Bases are moved in one direction of noise alone. A moved base is worse in its own way, which need not be that of a base with "
            "less pretraining."
        )


def _of_the_method(results: Results) -> Iterator[str]:
    yield (
        "The paper's definitions and code are not public: the measurement, and the law eps + (c / n)^k with its exponent, are this "
        "package's reconstruction."
    )
