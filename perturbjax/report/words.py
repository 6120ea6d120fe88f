"""Numbers in words, the same in the terminal, in the plots and on the page."""

from collections.abc import Sequence


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
