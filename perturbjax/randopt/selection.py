"""Every choice of a RandOpt run, made from scores: which candidates; on the select split sigma, K, the base's prompt, the temperature."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from perturbjax.noise import Population
from perturbjax.randopt.flow import Flow, run_base, run_members, vote_curve
from perturbjax.randopt.results import Option, Options, Selection
from perturbjax.scoring import top_k
from perturbjax.tasks.base import Template

ALL = "all"
"""The pool of every candidate, whatever its sigma."""


def k_curve(largest: int) -> tuple[int, ...]:
    """1, 2, 5, 10, 20, 50, ... below ``largest``, then ``largest``.

    >>> k_curve(12)
    (1, 2, 5, 10, 12)
    """
    series = (step * 10**power for power in range(len(str(largest))) for step in (1, 2, 5))
    return (*(k for k in series if k < largest), largest)


def finalists(scores: np.ndarray) -> np.ndarray:
    """Indices of the candidates that were scored on every example: (N, D) with NaN where not scored, or (N,), -> ascending."""
    missing = np.isnan(scores)
    return np.flatnonzero(~(missing.any(axis=1) if missing.ndim == 2 else missing))


def pools(population: Population, scores: np.ndarray, k: int) -> dict[str | float, np.ndarray]:
    """The ``k`` best finalists among all, and among those of each sigma, by search score; best first, ties to the lower index.

    Args:
        population: N candidates.
        scores: (N, D) search scores, NaN where a race did not ask, or (N,) their means.
        k: members per pool.

    Returns:
        ``"all"`` first, then each sigma in the population's order, each with (k,) candidate indices. A sigma with fewer than k finalists
        cannot field k members and is left out.
    """
    members: dict[str | float, np.ndarray] = {}
    for sigma in (ALL, *map(float, population.sigmas)):
        mine = pool_of(population, scores, sigma)
        if sigma == ALL or len(mine) >= k:
            members[sigma] = mine[top_k(scores[mine], k)]
    return members


def pool_of(population: Population, scores: np.ndarray, sigma: str | float) -> np.ndarray:
    """Indices of the finalists of one sigma, or of ``ALL``, ascending."""
    ranked = finalists(scores)
    return ranked if sigma == ALL else ranked[population.sigma_of(ranked) == np.float32(sigma)]


def best_option(options: Sequence[Option]) -> Any:
    """The value of the option with the highest accuracy; a tie goes to the earliest, so callers list the more general option first."""
    return max(options, key=lambda option: option.accuracy).value


TEMPERATURES = (0.7, 1.0, 0.4)
"""Sampling temperatures tried on select for self-consistency; a tie goes to the earlier, 0.7 being the literature's."""


@dataclass(frozen=True)
class Chosen:
    """What select chose, the tokens that each choice took, and the time of all."""

    selection: Selection
    template: Template
    member_tokens: int
    prompt_tokens: int
    temperature_tokens: int
    seconds: float


def choose_on_select(flow: Flow) -> Chosen:
    """Sigma and K by the votes of the best, then the prompt by the base's accuracy, then the temperature by the votes of K samples."""
    examples, template = flow.splits.select, flow.template
    prepared = flow.engine.prepare(examples, template)

    by_pool = pools(flow.population, flow.record.scores, flow.top_k)
    union = np.unique(np.concatenate(list(by_pool.values())))
    outputs = run_members(flow.engine, flow.population, union, prepared, "select split: candidates", flow.progress)
    curves = {pool: vote_curve(outputs.take(np.searchsorted(union, members)), flow.voting(members)) for pool, members in by_pool.items()}
    sigmas = _options(list(curves), [curve.accuracies[-1] for curve in curves.values()])
    sigma = best_option(sigmas)
    ks = _options(k_curve(flow.top_k), [curves[sigma].accuracies[k - 1] for k in k_curve(flow.top_k)])
    k = best_option(ks[::-1])

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

    return Chosen(
        selection=Selection(
            sigma=sigma,
            K=k,
            prompt=prompt,
            temperature=best_option(temperatures),
            members=tuple(int(i) for i in by_pool[sigma]),
            candidates=Options(sigmas, ks, prompts, temperatures),
            search_prompt=template.name,
        ),
        template=next(t for t in templates if t.name == prompt),
        member_tokens=int(outputs.tokens.sum()),
        prompt_tokens=sum(int(o.tokens.sum()) for o in by_template),
        temperature_tokens=sum(int(o.tokens.sum()) for o in by_temperature),
        seconds=sum(o.seconds for o in (outputs, *by_template, *by_temperature)),
    )


def _options(values: Sequence[Any], accuracies: Sequence[Any]) -> tuple[Option, ...]:
    return tuple(Option(value, float(accuracy)) for value, accuracy in zip(values, accuracies, strict=True))
