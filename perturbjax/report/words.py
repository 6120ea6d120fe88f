"""Numbers and systems in words, the same in the terminal, in the plots and on the page."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Results = Mapping[str, Any]
"""The content of results.json."""

CONTROLS = ("self_consistency", "best_prompt", "random_k")


@dataclass(frozen=True)
class Row:
    """One system of the results.

    Attributes:
        key: ``base``, ``randopt`` or a name of ``CONTROLS``.
        label: for people.
        entry: its entry of results.json.
        chosen: this is the RandOpt ensemble whose K the select split chose, the one the headline is about.
    """

    key: str
    label: str
    entry: Mapping[str, Any]
    chosen: bool = False


def rows(results: Results) -> Iterator[Row]:
    """Base, controls, then RandOpt at each K."""
    k = results["selection"]["K"]
    yield Row("base", "base model", results["base"])
    yield Row("best_prompt", f"best prompt: {results['best_prompt']['prompt']}", results["best_prompt"])
    temperature = results["self_consistency"]["temperature"]
    yield Row("self_consistency", f"self-consistency @{k}, T {temperature:g}", results["self_consistency"])
    yield Row("random_k", f"random ensemble @{k}", results["random_k"])
    for at_k in sorted(results["randopt"], key=int):
        chosen = int(at_k) == k
        yield Row("randopt", f"RandOpt @{at_k}" + (" (chosen)" if chosen else ""), results["randopt"][at_k], chosen)


def chosen_entry(results: Results) -> Mapping[str, Any]:
    """The RandOpt entry at the K that the select split chose."""
    return results["randopt"][str(results["selection"]["K"])]


def percent(share: float) -> str:
    """0.6836 -> ``68.4 %``."""
    return f"{100 * share:.1f} %"


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


def rate(value: float | None) -> str:
    """Three figures for a rate, ``not measured`` for None."""
    if value is None:
        return "not measured"
    return count(value) if value >= 1000 else f"{value:.3g}"


def probability(p_value: float) -> str:
    """0.0523 -> ``0.052``, 2e-5 -> ``below 0.001``."""
    return "below 0.001" if p_value < 0.001 else f"{p_value:.2g}"


def sigma_words(sigma: str | float) -> str:
    """``all sigmas`` or ``sigma 0.001``."""
    return "all sigmas" if sigma == "all" else f"sigma {float(sigma):g}"


def shorten(text: str, width: int) -> str:
    """``text`` cut to ``width`` characters, with an ellipsis where something was cut."""
    return text if len(text) <= width else text[: width - 3] + "..."


def most_votes(results: Results) -> int:
    """The largest K of the run, ``--top-k``."""
    return max(map(int, results["randopt"]))


def raced(results: Results) -> bool:
    """Whether a race stopped candidates before the end, or could have."""
    return len(results["racing"]["rounds"]) > 1


def search_words(results: Results) -> str:
    """Which questions the population's figures are about: ``the search split``, or ``the first 16 search questions`` of a race."""
    return f"the first {results['population']['examples']} search questions" if raced(results) else "the search split"


def racing_words(results: Results) -> str:
    """``halving: 48, 28, 16 candidates up to question 16, 32, 64``."""
    racing = results["racing"]
    columns = (", ".join(count(r[name]) for r in racing["rounds"]) for name in ("candidates", "examples"))
    return f"{racing['rule']}: {' candidates up to question '.join(columns)}"


def has_lenient(results: Results) -> bool:
    """Whether lenient scoring differs from strict scoring anywhere: only generation tasks can."""
    return any(row.entry["lenient_accuracy"] != row.entry["accuracy"] for row in rows(results))
