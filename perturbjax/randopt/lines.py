"""The systems of a RandOpt run, and its own facts in words: the same in the terminal, in the plots and on the page."""

from collections.abc import Iterator
from dataclasses import dataclass

from perturbjax.randopt.results import Results
from perturbjax.report.schema import Entry
from perturbjax.report.words import count


@dataclass(frozen=True)
class Line:
    """One system of the results, as a line of a table.

    Attributes:
        label: for people.
        entry: its figures; all but the base's are compared to the base.
        chosen: this is the RandOpt ensemble whose K the select split chose, the one the headline is about.
    """

    label: str
    entry: Entry
    chosen: bool = False


def lines(results: Results) -> Iterator[Line]:
    """Base, controls, then RandOpt at each K."""
    k = results.selection.K
    yield Line("base model", results.base)
    yield Line(f"best prompt: {results.best_prompt.prompt}", results.best_prompt)
    yield Line(f"self-consistency @{k}, T {results.self_consistency.temperature:g}", results.self_consistency)
    yield Line(f"random ensemble @{k}", results.random_k)
    for entry in sorted(results.randopt.values(), key=lambda entry: entry.K):
        yield Line(f"RandOpt @{entry.K}" + (" (chosen)" if entry is results.chosen else ""), entry, entry is results.chosen)


def has_lenient(results: Results) -> bool:
    """Whether lenient scoring differs from strict scoring anywhere: only generation tasks can."""
    return any(line.entry.lenient_accuracy != line.entry.accuracy for line in lines(results))


def sigma_words(sigma: str | float) -> str:
    """``all sigmas`` or ``sigma 0.001``."""
    return "all sigmas" if sigma == "all" else f"sigma {float(sigma):g}"


def search_words(results: Results) -> str:
    """Which questions the population's figures are about: ``the search split``, or ``the first 16 search questions`` of a race."""
    return f"the first {results.population.examples} search questions" if results.raced else "the search split"


def racing_words(results: Results) -> str:
    """``halving: 48, 28, 16 candidates up to question 16, 32, 64``."""
    rounds = results.racing.rounds
    candidates, examples = ", ".join(count(r.candidates) for r in rounds), ", ".join(count(r.examples) for r in rounds)
    return f"{results.racing.rule}: {candidates} candidates up to question {examples}"
