"""Entries and facts as plain text for the terminal, at most 100 columns wide."""

from collections.abc import Iterable, Sequence

from perturbjax.report.schema import Comparison, Entry
from perturbjax.report.words import count, percent, percent_range, points, points_range, shorten

WIDTH = 100
FACT_WIDTH = 19
"""Columns of a fact's name."""
_LABEL = 28


def entry_lines(entries: Sequence[tuple[str, Entry]], lenient: bool) -> list[str]:
    """A header and one line per (label, entry): accuracy, difference to the base, tokens, and lenient accuracy where asked."""
    header = f"{'on the test split':<{_LABEL}} {'right':>7}  {'95 % interval':<14} {'vs base':>8}  {'95 % interval':<15} {'tokens':>11}"
    lines = [header + ("  lenient" if lenient else "")]
    lines.append("-" * len(lines[0]))
    for label, entry in entries:
        line = f"{shorten(label, _LABEL):<{_LABEL}} {percent(entry.accuracy):>7}  {percent_range(entry.interval)[:-2]:<14} "
        if isinstance(entry, Comparison):
            line += f"{points(entry.difference):>8}  {points_range(entry.difference_interval):<15} "
        else:
            line += " " * 26
        line += f"{count(entry.tokens):>11}"
        lines.append(line + (f"  {percent(entry.lenient_accuracy):>7}" if lenient else ""))
    return lines


def fact_lines(facts: Iterable[tuple[str, str]]) -> list[str]:
    """One line per (name, text), the texts in one column."""
    return [f"{name:<{FACT_WIDTH}}{text}" for name, text in facts]
