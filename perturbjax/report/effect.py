"""A comparison as a sentence, a null as plainly as a win: the same words in every chapter."""

from perturbjax.report.schema import Comparison
from perturbjax.report.words import points, points_range, probability


def effect_sentence(comparison: Comparison) -> str:
    """What the difference to the base is, and whether it is more than chance."""
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
