"""What a screening did, in words: the same in the terminal and on the page."""

from perturbjax.randopt.searcher_records import ScreeningSummary
from perturbjax.report.words import count, percent, points, points_range


def screening_words(found: ScreeningSummary) -> str:
    """``6 put first by a gradient among 2,000 candidates, 2 drawn; of each 3 and 1 vote``."""
    voters = f"{len(found.promising.members)} and {len(found.drawn.members)}"
    return (
        f"{found.promising.candidates} put first by a gradient among {count(found.screened)} candidates, {found.drawn.candidates} drawn; "
        f"of each {voters} vote"
    )


def difference_words(found: ScreeningSummary) -> str:
    """``63.5 % and 60.1 %, +3.4 points [-2.0 to +8.8]: not clearly different``."""
    means = f"{percent(found.promising.mean_score)} and {percent(found.drawn.mean_score)}"
    if found.difference is None or found.difference_interval is None:
        return f"{means}: too few of one sigma to compare"
    return f"{means}, {points(found.difference)} points [{points_range(found.difference_interval)}]: {compared(found)}"


def compared(found: ScreeningSummary) -> str:
    """Whether those that the gradient put first score better than those that were drawn, a null as plainly as a gain."""
    low, high = found.difference_interval or (0.0, 0.0)
    return "clearly better" if low > 0 else "clearly worse" if high < 0 else "not clearly different"
