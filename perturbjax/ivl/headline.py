"""The verdict in plain words, computed from the paired intervals and nothing else."""

from collections.abc import Sequence

from perturbjax.ivl.results import VALUE_ALONE, WITH_VALUE, BaseEntries, Evaluation, Results
from perturbjax.report.schema import ComparedEntry, Headline, Verdict
from perturbjax.report.words import count, effect_sentence, percent, points, points_range

_MOST_SENTENCES = 3
"""Evaluations with a sentence of their own; more are counted."""
_OUTCOMES: dict[Verdict, str] = {
    "helped": "it helped",
    "hurt": "it hurt",
    "no clear effect": "no clear effect",
}


def headline(results: Results, evaluations: Sequence[Evaluation] = ()) -> Headline:
    """Grade the value network beside the base that it was trained on; other bases are named after it, whatever came out."""
    entries, others = results.entries, other_bases(results, evaluations)
    sentences = [
        _effect(results),
        *[_alone(entries.with_value, entry) for name, entry in entries.systems.items() if name == VALUE_ALONE],
        *[_rival(name, entry, entries) for name, entry in entries.systems.items() if name not in (WITH_VALUE, VALUE_ALONE)],
        *(map(_elsewhere, others) if len(others) <= _MOST_SENTENCES else [_elsewhere_in_all(others)]),
        _cost(results),
    ]
    return Headline(entries.with_value.verdict, _title(results) + _and_others(others), tuple(sentences))


def other_bases(results: Results, evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """The evaluations of another base than the first that the value network was trained beside."""
    return [each for each in evaluations if each.entries.model != results.model]


def setting_words(evaluation: Evaluation) -> str:
    """How the value network was added, where it is not with weight 1 everywhere or not by the usual map: ``alpha 0.5, gate 1.5 nats, map
    dtw``."""
    alpha = "" if evaluation.alpha == 1 else f"alpha {evaluation.alpha:g}"
    gate = "" if evaluation.gate is None else f"gate {evaluation.gate:g} nats"
    vocabulary = "" if evaluation.vocabulary in (None, "exact_first") else f"map {evaluation.vocabulary}"
    return ", ".join(part for part in (alpha, gate, vocabulary) if part)


def _title(results: Results) -> str:
    entry, alone = results.entries.with_value, results.entries.systems.get(VALUE_ALONE)
    title = {
        "helped": "The value network helped its base",
        "hurt": "The value network hurt its base",
        "no clear effect": "No clear effect of the value network on its base",
    }[entry.verdict]
    if entry.verdict == "helped" and alone is not None and alone.accuracy >= entry.accuracy:
        title += ", but did as well alone"
    return title


def _and_others(others: Sequence[Evaluation]) -> str:
    verdicts: list[Verdict] = [each.entries.with_value.verdict for each in others]
    if not verdicts:
        return ""
    if len(verdicts) == 1:
        return f"; {_OUTCOMES[verdicts[0]]}{' on' if verdicts[0] == 'no clear effect' else ''} {others[0].entries.model.name}"
    helped, hurt = verdicts.count("helped"), verdicts.count("hurt")
    if not helped and not hurt:
        return "; no clear effect on other bases"
    return f"; it helped in {helped} of {len(verdicts)} evaluations of other bases" + (f" and hurt in {hurt}" if hurt else "")


def _effect(results: Results) -> str:
    entry, base = results.entries.with_value, results.entries.base
    return (
        f"On {count(entry.n)} test questions {results.model.name} with the value network got {percent(entry.accuracy)} right, without it "
        f"{percent(base.accuracy)}. {effect_sentence(entry)} With it {entry.gained} questions were right that the base got wrong, and "
        f"{entry.lost} the other way round."
    )


def _alone(entry: ComparedEntry, alone: ComparedEntry) -> str:
    against = f"{points(alone.difference)} points to the base, 95 % interval {points_range(alone.difference_interval)}"
    found = f"The value network alone, without its base, got {percent(alone.accuracy)} right ({against})"
    if alone.accuracy < entry.accuracy:
        return f"{found}, less than with the base."
    if entry.verdict == "helped":
        return f"{found}, no less than with the base, which therefore adds nothing that can be seen on these questions."
    return f"{found}, no less than with the base."


def _rival(name: str, entry: ComparedEntry, entries: BaseEntries) -> str:
    against = f"{points(entry.difference)} points to the base, 95 % interval {points_range(entry.difference_interval)}"
    outcome = {"helped": "better than the base", "hurt": "worse than the base", "no clear effect": "not clearly different from the base"}
    found = f"For comparison, {name} got {percent(entry.accuracy)} right ({against}): {outcome[entry.verdict]}."
    if name not in entries.against:
        return found
    beside = entries.against[name]
    change = f"{points(beside.difference)} points, 95 % interval {points_range(beside.difference_interval)}"
    words = {"helped": "clearly more", "hurt": "clearly less", "no clear effect": "no clear difference"}
    return f"{found} The base with the value network got {change}, beside it: {words[beside.verdict]}."


def _elsewhere(evaluation: Evaluation) -> str:
    entry, base = evaluation.entries.with_value, evaluation.entries.base
    outcome = {"helped": "it helped there", "hurt": "it hurt there", "no clear effect": "no clear effect there"}[entry.verdict]
    change = f"{points(entry.difference)} points, 95 % interval {points_range(entry.difference_interval)}"
    words = f" ({found})" if (found := setting_words(evaluation)) else ""
    return (
        f"Added to {evaluation.entries.model.name}{words}, on {count(entry.n)} questions of {evaluation.task.name}: "
        f"{percent(entry.accuracy)} right, {percent(base.accuracy)} without ({change}); {outcome}."
    )


def _elsewhere_in_all(others: Sequence[Evaluation]) -> str:
    verdicts = [each.entries.with_value.verdict for each in others]
    numbers = ", ".join(f"{word} in {verdicts.count(verdict)}" for verdict, word in _OUTCOMES.items())
    return f"Of {len(others)} evaluations of other bases: {numbers}."


def _cost(results: Results) -> str:
    return (
        f"The price: {count(results.looks[-1].tokens)} tokens of training, once; then every token of an answer goes through the value "
        f"network ({count(results.parameters)} parameters) as well as through the base."
    )
