"""What could mislead a reader of this very run."""

from collections.abc import Iterator

from perturbjax.caulking.config import Config
from perturbjax.caulking.headline import curve_name
from perturbjax.caulking.results import Results
from perturbjax.report.words import count, percent

FEW_QUESTIONS = 500
"""Below it the page says how coarse the measurement is."""


def caveats(results: Results, config: Config) -> list[str]:
    """Sentences, those about the numbers first."""
    return [*_of_the_numbers(results), *_of_the_trainings(results, config), *_of_the_method(results)]


def _of_the_numbers(results: Results) -> Iterator[str]:
    if results.seeds < 3:
        yield f"{count(results.seeds)} seed{'s are' if results.seeds > 1 else ' is'} too few for an interval over seeds: read none as one."
    if results.n < FEW_QUESTIONS:
        half = 100 * 0.98 / results.n**0.5
        yield (
            f"All cells are measured on the same {count(results.n)} questions, which alone leaves about ±{half:.1f} points; the intervals "
            "over seeds do not hold that."
        )
    for curve in results.curves:
        for needed in curve.needed:
            if needed.censored == "above":
                at = f"{percent(needed.accuracy)} is not reached by {curve_name(curve)} with {count(needed.samples)} examples"
                yield f"{at}: that it takes more is all that is known (on {percent(needed.reached)} of resampled seeds it was reached)."
            elif needed.censored == "below":
                yield f"{percent(needed.accuracy)} is reached by {curve_name(curve)} with the fewest examples tried: fewer may do."
    yield "Between the numbers of examples that were tried, n_req is read off a line in log n through errors made non-increasing."


def _of_the_trainings(results: Results, config: Config) -> Iterator[str]:
    fitting = config.fitting
    yield (
        f"Every cell takes {count(fitting.steps)} steps of {fitting.batch} examples at one learning rate a method, whatever n is, and "
        "keeps its last weights. Neither was searched for here; a method whose rate suits it less looks hungrier."
    )
    if results.diverged:
        yield f"{count(results.diverged)} cells diverged (their error is not finite) and count as wrong everywhere."
    if results.unseen:
        numbers = ", ".join(map(str, results.unseen))
        yield f"With {numbers} examples there are fewer examples than different answers: some answer is never seen."
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
