"""Figures in words, the same in the terminal, in the plots and on the page: numbers, a comparison as a sentence, entries as lines."""

from collections.abc import Iterable, Sequence

from perturbjax.report.schema import Comparison, Entry

WIDTH = 100
"""Columns of the terminal's lines, at most."""
FACT_WIDTH = 19
"""Columns of a fact's name."""
_LABEL = 28


def percent(fraction: float) -> str:
    """0.6836 -> ``68.4 %``."""
    return f"{100 * fraction:.1f} %"


def percent_range(interval: Sequence[float]) -> str:
    """[0.62, 0.74] -> ``62.0 to 74.0 %``."""
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"


def points(difference: float) -> str:
    """0.0586 -> ``+5.9``, in percentage points; a difference that rounds to zero has no sign."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def points_range(interval: Sequence[float]) -> str:
    """[-0.01, 0.03] -> ``-1.0 to +3.0``."""
    return f"{points(interval[0])} to {points(interval[1])}"


def count(number: float) -> str:
    """1234567 -> ``1,234,567``."""
    return f"{number:,.0f}"


def plural(number: float, noun: str) -> str:
    """(1, "seed") -> ``1 seed``, (1200, "seed") -> ``1,200 seeds``."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def size(nbytes: float) -> str:
    """Bytes: ``1.2 GB``."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while nbytes >= 1000 and len(units) > 1:
        nbytes, units = nbytes / 1000, units[1:]
    return f"{nbytes:.0f} B" if units[0] == "B" else f"{nbytes:.1f} {units[0]}"


def rate(value: float | None) -> str:
    """Three figures for a rate, ``not measured`` for None."""
    if value is None:
        return "not measured"
    return count(value) if value >= 1000 else f"{value:.3g}"


def probability(p_value: float) -> str:
    """0.0523 -> ``0.052``, 2e-5 -> ``below 0.001``."""
    return "below 0.001" if p_value < 0.001 else f"{p_value:.2g}"


def shorten(text: str, width: int) -> str:
    """``text`` cut to ``width`` characters, with an ellipsis where something was cut."""
    return text if len(text) <= width else text[: width - 3] + "..."


def effect_sentence(comparison: Comparison) -> str:
    """What the difference to the base is, and whether it is more than chance: a null as plainly as a win."""
    change = f"{points(comparison.difference)} points (95 % interval {points_range(comparison.difference_interval)})"
    low, high = comparison.difference_interval
    if comparison.verdict != "no clear effect":
        return f"That is {change}, more than chance explains."
    if low <= 0 <= high:
        return f"The difference of {change} is not clearly different from zero: more test questions would be needed to tell."
    return (
        f"The difference is {change}. The interval excludes zero, but so few answers changed that chance alone gives such a split with "
        f"probability {probability(comparison.p_value)} (exact test): more test questions would be needed to tell."
    )


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
