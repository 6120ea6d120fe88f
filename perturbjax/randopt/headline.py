"""The verdict in plain words, computed from the paired intervals and nothing else."""

import numpy as np

from perturbjax.randopt.entries import CONTROLS, RandOptEntry
from perturbjax.randopt.reliability import ENOUGH
from perturbjax.randopt.results import Results
from perturbjax.report.schema import Comparison, Entry, Headline, Verdict
from perturbjax.report.words import count, effect_sentence, percent, points, points_range


def headline(results: Results) -> Headline:
    """Grade RandOpt at the K and sigma that the select split chose; the other K of the curve do not count."""
    best = results.chosen
    # A control that is the base itself (the default prompt was the best) is no further rival.
    rivals = [name for name in CONTROLS if not (name == "best_prompt" and results.same_prompt)]
    title = _title(results, rivals)
    why = () if (found := reason(results)) is None else (found,)
    return Headline(best.verdict, title, (_effect(best, results.base), *why, *_rivals(rivals, results), _cost(best, results.base)))


def reason(results: Results) -> str | None:
    """What stood in the way of a search that did not help: the scores, the neighborhood (a plateau), or the number of test questions.

    None where it helped, and where there is no reliability. The gain of the chosen members on search is moved towards that of all
    candidates by the part that does not repeat; the base's own luck there stays in it, as do sigmas of different means.
    """
    best, found = results.chosen, results.reliability
    if best.verdict == "helped" or found is None:
        return None
    value = f"reliability {found.population.value:.2f}"
    if not found.population.enough:
        return (
            f"The search could not rank its candidates ({value}, at least {ENOUGH:g} is required): those it kept are hardly better than "
            "the others, so this says little of the method. More search questions, a larger sigma or another task would help."
        )
    everyone = results.population.mean_score - results.population.base_search_score
    chosen = best.members_search_mean - results.racing.rounds[-1].base_score
    expected = everyone + found.population.value * (chosen - everyone)
    ahead = f"{points(expected)} points on the base"
    if expected <= 0:
        return (
            f"The search could rank its candidates ({value}), and the best are no better than the base: on search, less luck, {ahead}. "
            "That is a plateau: candidates differ, and none found is better. Another task, prompt or model would help, not more candidates."
        )
    low, high = best.difference_interval
    small = best.verdict == "no clear effect" and expected < (high - low) / 2
    end = f"That is less than {count(best.n)} test questions can show." if small else "The test split does not bear that out."
    return f"The search could rank its candidates ({value}): on search, less luck, its best have {ahead}. {end}"


def _against(results: Results, name: str) -> Comparison:
    return getattr(results.chosen.against, name)


def _title(results: Results, rivals: list[str]) -> str:
    verdict = results.chosen.verdict
    losses = [name for name in CONTROLS if _against(results, name).verdict == "hurt"]
    undecided = [name for name in rivals if _against(results, name).verdict == "no clear effect"]
    if verdict == "helped" and losses:
        return f"RandOpt helped, but {_names(losses, results)} did better"
    if verdict == "helped" and undecided:
        return f"RandOpt helped, but not clearly more than {_names(undecided, results)}"
    title = {"helped": "RandOpt helped", "hurt": "RandOpt hurt", "no clear effect": "No clear effect of RandOpt"}[verdict]
    return f"{title}; {_names(losses, results)} did better" if losses else title


def _effect(best: RandOptEntry, base: Entry) -> str:
    who = f"the vote of {best.K} perturbed models" if best.K > 1 else "the best-ranked perturbed model"
    return (
        f"On {count(best.n)} test questions {who} got {percent(best.accuracy)} right, the unperturbed model "
        f"{percent(base.accuracy)}. {effect_sentence(best)} It answered {best.gained} questions right that the base got wrong, and "
        f"{best.lost} the other way round."
    )


def _rivals(rivals: list[str], results: Results) -> list[str]:
    sentences = []
    for name in rivals:
        comparison, who = _against(results, name), _name(name, results)
        accuracy = percent(getattr(results, name).accuracy)
        figures = f"{points(comparison.difference)} points for RandOpt, 95 % interval {points_range(comparison.difference_interval)}"
        order = {1: "less than", 0: "as much as", -1: "more than"}[int(np.sign(comparison.difference))]
        outcome: dict[Verdict, str] = {
            "helped": f"RandOpt is clearly better than {who}, which got {accuracy} ({figures}).",
            "hurt": f"{_upper(who)} beats RandOpt: it got {accuracy} ({figures}).",
            "no clear effect": f"{_upper(who)} got {accuracy}, {order} RandOpt; the two are not clearly different ({figures}).",
        }
        sentences.append(outcome[comparison.verdict])
    if results.same_prompt:
        sentences.append(
            "No other prompt of the task did better for the base on the select split, so the best-prompt control is the base itself."
        )
    return sentences


def _cost(best: RandOptEntry, base: Entry) -> str:
    times = best.tokens / base.tokens if base.tokens else float(best.K)
    return (
        f"The price: {count(best.search_tokens)} tokens to search and choose, once, then {times:.3g} times the tokens of the base "
        "for every answer."
    )


def _name(name: str, results: Results) -> str:
    k = results.selection.K
    return {
        "self_consistency": f"self-consistency ({k} {'votes' if k > 1 else 'sample'} of the base)",
        "best_prompt": f"the base with another prompt ({results.best_prompt.prompt})",
        "random_k": f"an ensemble of {k} candidates drawn without selection" if k > 1 else "one candidate drawn without selection",
    }[name]


def _names(names: list[str], results: Results) -> str:
    short = {
        "self_consistency": "self-consistency of the base",
        "best_prompt": "another prompt",
        "random_k": "candidates drawn without selection" if results.selection.K > 1 else "a candidate drawn without selection",
    }
    *head, last = [short[name] for name in names]
    return f"{', '.join(head)} and {last}" if head else last


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]
