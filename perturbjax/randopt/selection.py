"""Every choice of a RandOpt run, made from scores: which candidates; on the select split sigma, K, the base's prompt, the temperature."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from perturbjax.randopt.flow import Flow, run_base, run_voters, vote_curve
from perturbjax.randopt.members import BEST, MEMBER_RULES
from perturbjax.randopt.results import Option, Options, Selection, Way
from perturbjax.randopt.voting import Voting
from perturbjax.tasks.base import Template


def k_curve(largest: int) -> tuple[int, ...]:
    """1, 2, 5, 10, 20, 50, ... below ``largest``, then ``largest``.

    >>> k_curve(12)
    (1, 2, 5, 10, 12)
    """
    series = (step * 10**power for power in range(len(str(largest))) for step in (1, 2, 5))
    return (*(k for k in series if k < largest), largest)


def best_option(options: Sequence[Option]) -> Any:
    """The value of the option with the highest accuracy; a tie goes to the earliest, so callers list the more general option first."""
    return max(options, key=lambda option: option.accuracy).value


@dataclass(frozen=True)
class MemberChoice:
    """Who votes, as select chose.

    Attributes:
        way: by which the members were chosen; ``tried`` are all that were compared.
        order: (top K,) candidate indices in the order in which they vote, ``K`` of them as members.
        by_k: the numbers of members that were compared, and their accuracies.
        tokens: spent on it; ``seconds``: too.
    """

    way: Way
    tried: tuple[Way, ...]
    order: np.ndarray
    K: int
    by_k: tuple[Option, ...]
    tokens: int
    seconds: float


def choose_members(flow: Flow, prepared: Any, rules: Sequence[str] = (BEST,), votes: Sequence[str] | None = None) -> MemberChoice:
    """The way to make an ensemble whose vote of ``top_k`` is best on select, then K. Every candidate is run once.

    Ties go to the earlier rule, to the pool of all sigmas, to the earlier vote, and to more members.

    Args:
        flow: of the search.
        prepared: its select split under its template.
        rules: of ``MEMBER_RULES``.
        votes: of ``VOTE_RULES``; that of the flow when None.
    """
    means, count = flow.record.mean_scores, flow.top_k
    found = [(rule, *pool) for rule in rules for pool in MEMBER_RULES[rule].pools(flow.population, flow.record.scores, count).items()]
    union = np.unique(np.concatenate([pool for _, _, pool in found]))
    outputs = run_voters(flow.engine, flow.population, union, prepared, "select split: candidates", flow.progress)
    tried, orders, curves = [], [], []
    for rule, sigma, pool in found:
        for vote in votes or (flow.rule,):
            order, accuracies = MEMBER_RULES[rule].order(outputs.take(np.searchsorted(union, pool)), Voting(vote, means[pool]), count)
            tried.append(Way(rule, sigma, vote, float(accuracies[-1])))
            orders.append(pool[order])
            curves.append(accuracies)
    best = max(range(len(tried)), key=lambda way: tried[way].accuracy)
    by_k = _options(k_curve(count), [curves[best][k - 1] for k in k_curve(count)])
    return MemberChoice(tried[best], tuple(tried), orders[best], best_option(by_k[::-1]), by_k, int(outputs.tokens.sum()), outputs.seconds)


TEMPERATURES = (0.7, 1.0, 0.4)
"""Sampling temperatures tried on select for self-consistency; a tie goes to the earlier, 0.7 being the literature's."""


@dataclass(frozen=True)
class Chosen:
    """What select chose, the tokens that each choice took, and the time of all; ``members`` are positions of the selection's members."""

    selection: Selection
    members: np.ndarray
    template: Template
    member_tokens: int
    prompt_tokens: int
    temperature_tokens: int
    seconds: float


def choose_on_select(flow: Flow) -> Chosen:
    """Sigma and K by the votes of the best, then the prompt by the base's accuracy, then the temperature by the votes of K samples."""
    examples, template = flow.splits.select, flow.template
    prepared = flow.engine.prepare(examples, template)
    members = choose_members(flow, prepared)
    k = members.K

    templates = [template, *(other for other in flow.task.templates if other.name != template.name)]
    by_template = []
    with flow.progress.bar("select split: prompts", len(templates)) as bar:
        for number, other in enumerate(templates, start=1):
            by_template.append(run_base(flow.engine, prepared if other is template else flow.engine.prepare(examples, other)))
            bar.update(number)
    prompts = _options([t.name for t in templates], [o.scores.mean(dtype=np.float64) for o in by_template])
    prompt = best_option(prompts)

    by_temperature = []
    with flow.progress.bar("select split: temperatures", len(TEMPERATURES)) as bar:
        for number, temperature in enumerate(TEMPERATURES, start=1):
            by_temperature.append(flow.samples(prepared, k, temperature, "select samples"))
            bar.update(number)
    temperatures = _options(TEMPERATURES, [vote_curve(o).accuracies[-1] for o in by_temperature])

    sigmas = tuple(Option(way.sigma, way.accuracy) for way in members.tried)
    return Chosen(
        selection=Selection(
            sigma=members.way.sigma,
            K=k,
            prompt=prompt,
            temperature=best_option(temperatures),
            members=tuple(int(i) for i in flow.population.index_of(members.order)),
            candidates=Options(sigmas, members.by_k, prompts, temperatures),
            search_prompt=template.name,
        ),
        members=members.order,
        template=next(t for t in templates if t.name == prompt),
        member_tokens=members.tokens,
        prompt_tokens=sum(int(o.tokens.sum()) for o in by_template),
        temperature_tokens=sum(int(o.tokens.sum()) for o in by_temperature),
        seconds=members.seconds + sum(o.seconds for o in (*by_template, *by_temperature)),
    )


def _options(values: Sequence[Any], accuracies: Sequence[Any]) -> tuple[Option, ...]:
    return tuple(Option(value, float(accuracy)) for value, accuracy in zip(values, accuracies, strict=True))
