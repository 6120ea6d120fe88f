"""results.json as a plain table for the terminal, and its systems and facts in words: the same there, in the plots and on the page."""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from perturbjax.randopt.headline import headline, reason
from perturbjax.randopt.results import Results, halving_of, screening_of
from perturbjax.randopt.screening_words import difference_words, screening_words
from perturbjax.report.schema import Entry
from perturbjax.report.words import FACT_WIDTH, WIDTH, count, entry_lines, fact_lines, percent, rate, shorten


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
    """``halving: 48, 28, 16 candidates up to question 16, 32, 64``; of ``dead`` which questions it skipped."""
    rounds, race = results.racing.rounds, results.racing
    if race.screen is not None:
        skipped = f"{count(race.skipped)} of {count(results.splits.search)} questions skipped"
        return f"{race.rule}: {skipped}, on which the first {count(race.screen)} candidates were all right"
    candidates, examples = ", ".join(count(r.candidates) for r in rounds), ", ".join(count(r.examples) for r in rounds)
    return f"{results.racing.rule}: {candidates} candidates up to question {examples}"


def halving_words(results: Results) -> str:
    """``sigma 0.001 is left; 0.0005 had 5 candidates, 0.001 30, 0.002 13``."""
    first, *others = results.population.per_sigma
    had = [f"{first.sigma:g} had {first.n} candidates", *(f"{other.sigma:g} {other.n}" for other in others)]
    return f"{sigma_words(halving_of(results)[-1].sigmas[0])} is left; {', '.join(had)}"


def results_table(results: Results) -> str:
    """Verdict and what stood in its way; base, controls and RandOpt at each K with 95 % intervals and tokens; then choices, ties,
    throughput and efficiency."""
    table = entry_lines([(line.label, line.entry) for line in lines(results)], has_lenient(results))
    top = [textwrap.fill(line, WIDTH) for line in (headline(results).title, reason(results)) if line]
    return "\n".join([*top, "", *table, "", *fact_lines(_facts(results))])


def _facts(results: Results) -> list[tuple[str, str]]:
    splits, chosen, ties, population, speed = results.splits, results.selection, results.ties, results.population, results.throughput
    choices = f"K = {chosen.K}, {sigma_words(chosen.sigma)}, prompt {shorten(chosen.prompt, 30)}, T = {chosen.temperature:g}"
    reliability, screened = results.reliability, screening_of(results)
    stages = f"{count(screened.tokens)} to screen, by operations; search and select" if screened else "search and select"
    density, reference = percent(population.share_at_or_above_base), rate(speed.reference_tokens_per_s)
    race = [
        ("racing", shorten(racing_words(results), WIDTH - FACT_WIDTH)),
        ("tokens of the race", f"{percent(results.racing.share)} of asking every candidate everything"),
    ]
    return [
        ("questions", f"{count(splits.test)} test, {count(splits.search)} search, {count(splits.select)} select"),
        ("chosen on select", choices),
        ("ties at rank K", f"{ties.tied_candidates} candidates score {percent(ties.score_at_k)}, {ties.tied_inside_k} of them are in"),
        ("population", f"{count(population.n)} candidates, {density} at or above the base on {search_words(results)}"),
        *(race if results.raced or results.racing.screen is not None else []),
        *([("screening", screening_words(screened)), ("first and drawn", difference_words(screened))] if screened else []),
        *([("sigmas", halving_words(results))] if halving_of(results) else []),
        *([("reliability", reliability.population.words)] if reliability else []),
        ("spent before test", f"{count(results.chosen.search_tokens)} tokens by RandOpt ({stages})"),
        ("throughput", f"{rate(speed.candidates_per_s)} candidates/s, {rate(speed.tokens_per_s)} tokens/s"),
        ("efficiency", f"{rate(speed.efficiency)} of plain inference ({reference} tokens/s, same tokens, same run)"),
    ]
