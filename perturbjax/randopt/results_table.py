"""results.json as a plain table for the terminal."""

import textwrap

from perturbjax.randopt.headline import headline
from perturbjax.randopt.lines import has_lenient, lines, racing_words, search_words, sigma_words
from perturbjax.randopt.results import Results
from perturbjax.report.table import FACT_WIDTH, WIDTH, entry_lines, fact_lines
from perturbjax.report.words import count, percent, rate, shorten


def results_table(results: Results) -> str:
    """Verdict, base, controls and RandOpt at each K with 95 % intervals and tokens, then choices, ties, throughput and efficiency."""
    table = entry_lines([(line.label, line.entry) for line in lines(results)], has_lenient(results))
    title = textwrap.fill(headline(results).title, WIDTH)
    return "\n".join([title, "", *table, "", *fact_lines(_facts(results))])


def _facts(results: Results) -> list[tuple[str, str]]:
    splits, chosen, ties, population, speed = results.splits, results.selection, results.ties, results.population, results.throughput
    choices = f"K = {chosen.K}, {sigma_words(chosen.sigma)}, prompt {shorten(chosen.prompt, 30)}, T = {chosen.temperature:g}"
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
        *(race if results.raced else []),
        ("spent before test", f"{count(results.chosen.search_tokens)} tokens by RandOpt (search and select)"),
        ("throughput", f"{rate(speed.candidates_per_s)} candidates/s, {rate(speed.tokens_per_s)} tokens/s"),
        ("efficiency", f"{rate(speed.efficiency)} of plain inference ({reference} tokens/s, same tokens, same run)"),
    ]
