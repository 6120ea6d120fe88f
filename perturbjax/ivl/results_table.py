"""results.json as a plain table for the terminal."""

from collections.abc import Sequence

from perturbjax.ivl.headline import headline
from perturbjax.ivl.results import BaseEntries, Results, StoredLogits, Tuning
from perturbjax.report.words import count, entry_lines, fact_lines, percent, points, points_range, rate, size
from perturbjax.train.problem import Look


def base_lines(entries: BaseEntries) -> list[str]:
    """A header, the base, and what was measured beside it."""
    systems = [("base model", entries.base), *entries.systems.items()]
    lenient = any(entry.lenient_accuracy != entry.accuracy for _, entry in systems)
    return entry_lines(systems, lenient)


def about_lines(entries: BaseEntries) -> list[str]:
    """Which tokens of the replies the value network changed, which a gate left to the base, and what a map between vocabularies loses."""
    facts = []
    if (changes := entries.changes) is not None:
        facts.append(("tokens changed", f"{percent(changes.changed)} of {count(changes.tokens)}"))
        if changes.gated:
            facts.append(("left by the gate", f"{percent(changes.gated)} of them, to the base alone"))
    if (found := entries.map_statistics) is not None:
        facts.append(("map", f"{percent(found.exact)} of {count(found.tokens)} tokens have an exact partner, {percent(found.none)} none"))
        if (mass := found.base_mass) is not None:
            kinds = f"{percent(mass.exact)} exact, {percent(mass.none)} without partner"
            facts.append(("by probability", f"{kinds}, after {count(mass.distributions)} prompts"))
    return fact_lines(facts)


def rival_lines(entries: BaseEntries) -> list[str]:
    """How each rival was trained, and the difference that the value network makes to it."""
    facts = []
    for name, tuning in entries.tunings.items():
        found = entries.against[name]
        facts += [
            (name, f"{count(tuning.parameters)} parameters of {tuning.model}, {tuning.steps} steps, {count(tuning.tokens)} tokens"),
            ("", f"learning rate {tuning.learning_rate:g}; {_taken(tuning)}"),
            ("  with value vs it", f"{points(found.difference)} points, 95 % interval {points_range(found.difference_interval)}"),
        ]
    return fact_lines(facts)


def _taken(tuning: Tuning) -> str:
    return f"weights of step {tuning.best_step}" + (", stopped early" if tuning.stopped_early else "")


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
        ("throughput", throughput_words(results)),
    ]
    if results.logits:
        facts.append(("base's logits", stored_words(results.logits)))
    lines = [*fact_lines(facts), *about_lines(entries), *rival_lines(entries)]
    return "\n".join([headline(results).title, "", *base_lines(entries), "", *lines])


def throughput_words(results: Results) -> str:
    """Tokens and floating-point operations a second."""
    flops = "" if results.flops_per_s is None else f", {results.flops_per_s / 1e9:.3g} GFLOP/s of the models"
    return f"{rate(results.tokens_per_s)} tokens/s{flops}"


def stored_words(logits: Sequence[StoredLogits]) -> str:
    """What was stored of the bases' logits, and how far it is from what they said."""
    kept = f"the {count(logits[0].k)} likeliest tokens" if logits[0].k is not None else "all tokens"
    positions, worst = sum(each.positions for each in logits), max(each.label_error for each in logits)
    kl = sum(each.mean_kl * each.positions for each in logits) / positions
    stored = f"{kept} at {count(positions)} positions in bfloat16, {size(sum(each.nbytes for each in logits))}"
    return f"{stored}; mean KL {kl:.2g} nats, largest error of a label's log-probability {worst:.2g}"


def _validation(look: Look) -> str:
    if not look.validation:
        return "not measured in validation"
    return f"{look.validation['cross_entropy']:.3f} in validation; base alone {look.validation['base_cross_entropy']:.3f}"
