"""The verdict in plain words, computed from the paired intervals and nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from perturbjax.report.words import CONTROLS, Results, chosen_entry, count, percent, points, points_range, probability

Verdict = Literal["helped", "no clear effect", "hurt"]

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Headline:
    """What a reader takes away.

    Attributes:
        verdict: RandOpt at the chosen K against the base.
        title: one line.
        sentences: effect, controls, cost; each stands alone.
    """

    verdict: Verdict
    title: str
    sentences: tuple[str, ...]


def judge(comparison: Mapping[str, Any]) -> Verdict:
    """One paired comparison as a verdict.

    Clear means that the 95 % bootstrap interval excludes 0 *and* the exact sign test agrees (p < 0.05): with few differing examples the
    bootstrap alone claims too much.
    """
    low, high = comparison["difference_interval"]
    if comparison["p_value"] < SIGNIFICANT and low > 0:
        return "helped"
    if comparison["p_value"] < SIGNIFICANT and high < 0:
        return "hurt"
    return "no clear effect"


def headline(results: Results) -> Headline:
    """Judge RandOpt at the K and sigma that the select split chose; the other K of the curve do not count."""
    best, base, k = chosen_entry(results), results["base"], results["selection"]["K"]
    verdict = judge(best)
    against = {name: judge(best["against"][name]) for name in CONTROLS}
    losses = [name for name in CONTROLS if against[name] == "hurt"]
    # A control that is the base itself (the default prompt was the best) is no further rival.
    rivals = [name for name in CONTROLS if not (name == "best_prompt" and _same_prompt(results))]
    undecided = [name for name in rivals if against[name] == "no clear effect"]

    if verdict == "helped":
        title = "RandOpt helped"
        if losses:
            title += f", but {_names(losses, results)} did better"
        elif undecided:
            title += f", but not clearly more than {_names(undecided, results)}"
    elif verdict == "hurt":
        title = "RandOpt hurt"
    else:
        title = "No clear effect of RandOpt"
    if verdict != "helped" and losses:
        title += f"; {_names(losses, results)} did better"

    return Headline(verdict, title, (_effect(verdict, best, base, k), *_rivals(rivals, results), _cost(best, base, k)))


def _effect(verdict: Verdict, best: Mapping[str, Any], base: Mapping[str, Any], k: int) -> str:
    who = f"the vote of {k} perturbed models" if k > 1 else "the best-ranked perturbed model"
    change = f"{points(best['difference'])} points (95 % interval {points_range(best['difference_interval'])})"
    low, high = best["difference_interval"]
    if verdict == "no clear effect" and low <= 0 <= high:
        judgement = f"The difference of {change} is not clearly different from zero: more test questions would be needed to tell."
    elif verdict == "no clear effect":
        judgement = (
            f"The difference is {change}. The interval excludes zero, but so few answers changed that chance alone gives such a split with "
            f"probability {probability(best['p_value'])} (exact test): more test questions would be needed to tell."
        )
    else:
        judgement = f"That is {change}, more than chance explains."
    return (
        f"On {count(best['n'])} test questions {who} got {percent(best['accuracy'])} right, the unperturbed model "
        f"{percent(base['accuracy'])}. {judgement} It answered {best['gained']} questions right that the base got wrong, and "
        f"{best['lost']} the other way round."
    )


def _rivals(rivals: list[str], results: Results) -> list[str]:
    best = chosen_entry(results)
    sentences = []
    for name in rivals:
        comparison, verdict = best["against"][name], judge(best["against"][name])
        figures = f"{points(comparison['difference'])} points for RandOpt, 95 % interval {points_range(comparison['difference_interval'])}"
        who = _name(name, results)
        if verdict == "helped":
            text = f"RandOpt is clearly better than {who}, which got {percent(results[name]['accuracy'])} ({figures})."
        elif verdict == "hurt":
            text = f"{_upper(who)} beats RandOpt: it got {percent(results[name]['accuracy'])} ({figures})."
        else:
            order = {1: "less than", 0: "as much as", -1: "more than"}[int(np.sign(comparison["difference"]))]
            got = f"{_upper(who)} got {percent(results[name]['accuracy'])}, {order} RandOpt"
            text = f"{got}; the two are not clearly different ({figures})."
        sentences.append(text)
    if _same_prompt(results):
        sentences.append(
            "No other prompt of the task did better for the base on the select split, so the best-prompt control is the base itself."
        )
    return sentences


def _cost(best: Mapping[str, Any], base: Mapping[str, Any], k: int) -> str:
    times = best["tokens"] / base["tokens"] if base["tokens"] else float(k)
    return (
        f"The price: {count(best['search_tokens'])} tokens to search and choose, once, then {times:.3g} times the tokens of the base "
        "for every answer."
    )


def _same_prompt(results: Results) -> bool:
    return results["best_prompt"]["prompt"] == results["selection"]["search_prompt"]


def _name(name: str, results: Results) -> str:
    k = results["selection"]["K"]
    return {
        "self_consistency": f"self-consistency ({k} {'votes' if k > 1 else 'sample'} of the base)",
        "best_prompt": f"the base with another prompt ({results['best_prompt']['prompt']})",
        "random_k": f"an ensemble of {k} candidates drawn without selection" if k > 1 else "one candidate drawn without selection",
    }[name]


def _names(names: list[str], results: Results) -> str:
    short = {
        "self_consistency": "self-consistency of the base",
        "best_prompt": "another prompt",
        "random_k": "candidates drawn without selection" if results["selection"]["K"] > 1 else "a candidate drawn without selection",
    }
    *head, last = [short[name] for name in names]
    return f"{', '.join(head)} and {last}" if head else last


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]
