"""results.json as a plain table for the terminal."""

from perturbjax.ivl.headline import headline
from perturbjax.ivl.results import BaseEntries, Results
from perturbjax.report.words import count, entry_lines, fact_lines, percent, rate
from perturbjax.train.problem import Look


def base_lines(entries: BaseEntries) -> list[str]:
    """A header, the base, and what was measured beside it."""
    systems = [("base model", entries.base), *entries.systems.items()]
    lenient = any(entry.lenient_accuracy != entry.accuracy for _, entry in systems)
    return entry_lines(systems, lenient)


def results_table(results: Results) -> str:
    """The base with and without the value network, then what was trained and what it cost."""
    last, shown, entries = results.looks[-1], results.demonstrations, results.entries
    best = results.best
    early = ", stopped early" if results.stopped_early else ""
    facts = [
        ("task", f"{results.task.name}, {entries.base.n} test questions, prompt {results.template}"),
        ("demonstrations", f"{count(shown.train)} in {count(shown.train_rows)} rows, {count(shown.validation)} for validation"),
        ("left out", f"{count(shown.too_long)} too long, {count(shown.asked_in_test)} that ask a test question"),
        ("value network", f"{count(results.parameters)} parameters"),
        ("training", f"{last.step} steps, {count(last.tokens)} tokens; weights of step {best.step}{early}"),
        ("cross-entropy", f"{best.losses['cross_entropy']:.3f} in training, {_validation(best)}"),
        ("throughput", f"{rate(results.tokens_per_s)} tokens/s"),
    ]
    if entries.changes is not None:
        facts.append(("tokens changed", f"{percent(entries.changes.changed)} of {count(entries.changes.tokens)}"))
    return "\n".join([headline(results).title, "", *base_lines(entries), "", *fact_lines(facts)])


def _validation(look: Look) -> str:
    if not look.validation:
        return "not measured in validation"
    return f"{look.validation['cross_entropy']:.3f} in validation; base alone {look.validation['base_cross_entropy']:.3f}"
