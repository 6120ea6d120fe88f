"""results.json as a plain table for the terminal, at most 100 columns wide."""

import textwrap

from perturbjax.report.headline import headline
from perturbjax.report.words import (
    Results,
    count,
    has_lenient,
    percent,
    percent_range,
    points,
    points_range,
    raced,
    racing_words,
    rate,
    rows,
    search_words,
    shorten,
    sigma_words,
)

WIDTH = 100
_LABEL = 28


def results_table(results: Results) -> str:
    """Verdict, base, controls and RandOpt at each K with 95 % intervals and tokens, then choices, ties, throughput and efficiency."""
    lenient = has_lenient(results)
    header = f"{'on the test split':<{_LABEL}} {'right':>7}  {'95 % interval':<14} {'vs base':>8}  {'95 % interval':<15} {'tokens':>11}"
    lines = [textwrap.fill(headline(results).title, WIDTH), "", header + ("  lenient" if lenient else "")]
    lines.append("-" * len(lines[-1]))
    for row in rows(results):
        entry = row.entry
        line = f"{shorten(row.label, _LABEL):<{_LABEL}} {percent(entry['accuracy']):>7}  {percent_range(entry['interval'])[:-2]:<14} "
        if "difference" in entry:
            line += f"{points(entry['difference']):>8}  {points_range(entry['difference_interval']):<15} "
        else:
            line += " " * 27
        line += f"{count(entry['tokens']):>11}"
        lines.append(line + (f"  {percent(entry['lenient_accuracy']):>7}" if lenient else ""))
    return "\n".join([*lines, "", *_notes(results)])


def _notes(results: Results) -> list[str]:
    splits, chosen, ties = results["splits"], results["selection"], results["ties"]
    population, speed = results["population"], results["throughput"]
    spent = results["randopt"][str(chosen["K"])]["search_tokens"]
    saved = percent(results["racing"]["share"])
    share, reference = percent(population["share_at_or_above_base"]), rate(speed["reference_tokens_per_s"])
    fields = [
        ("questions", f"{count(splits['test'])} test, {count(splits['search'])} search, {count(splits['select'])} select"),
        (
            "chosen on select",
            f"K = {chosen['K']}, {sigma_words(chosen['sigma'])}, prompt {shorten(chosen['prompt'], 30)}, T = {chosen['temperature']:g}",
        ),
        (
            "ties at rank K",
            f"{ties['tied_candidates']} candidates score {percent(ties['score_at_k'])}, {ties['tied_inside_k']} of them are in",
        ),
        ("population", f"{count(population['n'])} candidates, {share} at or above the base on {search_words(results)}"),
        *([("racing", shorten(racing_words(results), WIDTH - 19))] if raced(results) else []),
        *([("tokens of the race", f"{saved} of asking every candidate everything")] if raced(results) else []),
        ("spent before test", f"{count(spent)} tokens by RandOpt (search and select)"),
        ("throughput", f"{rate(speed['candidates_per_s'])} candidates/s, {rate(speed['tokens_per_s'])} tokens/s"),
        ("efficiency", f"{rate(speed['efficiency'])} of plain inference ({reference} tokens/s, same tokens, same run)"),
    ]
    return [f"{name:<19}{text}" for name, text in fields]
