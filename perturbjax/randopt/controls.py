"""RandOpt against its controls, on splits that never meet: every choice on select, then one look at test.

The controls are the ones that re-examinations of RandOpt found missing: the base's own samples with as many votes (self-consistency), the
base under the best of the task's prompts, and as many candidates drawn without selection. All of them get the same test questions, and
differences are paired.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from perturbjax.errors import InputError
from perturbjax.noise import Population
from perturbjax.randopt.racing import Race
from perturbjax.randopt.replies import Engine, OnStage, Replies, VoteCurve, run_base, run_members, run_samples, vote_curve
from perturbjax.randopt.selection import choose, k_curve, pool_of, pools, tie_summary
from perturbjax.report.accounting import comparison, derived_seed, entry, population_summary, racing_summary
from perturbjax.tasks.base import Task, Template
from perturbjax.tasks.splits import Splits

TEMPERATURES = (0.7, 1.0, 0.4)
"""Sampling temperatures tried on select for self-consistency; a tie goes to the earlier, 0.7 being the literature's."""

REFERENCE_ROUNDS = 3
"""Repetitions behind the reference throughput of the plain model."""

RESULTS_VERSION = 2


@dataclass(frozen=True)
class SearchRecord:
    """What a finished search hands over.

    Attributes:
        race: its rule and rounds.
        scores: (N, D) strict scores on the search split, NaN where the race did not ask.
        base_scores: (D,) of the unperturbed model there, under the same template.
        base_tokens: tokens that this put through the model.
        tokens: (N, R) tokens that scoring put through the model, by candidate and round.
        seconds: wall time of that scoring, compilation left out.
        nonfinite: candidates with NaN or inf in their outputs, by round.
    """

    race: Race
    scores: np.ndarray
    base_scores: np.ndarray
    base_tokens: int
    tokens: np.ndarray
    seconds: float
    nonfinite: Sequence[int]

    @property
    def total_tokens(self) -> int:
        return int(self.tokens.sum())


@dataclass(frozen=True)
class Evaluation:
    """The outcome.

    Attributes:
        results: the content of results.json, without ``model`` and without the search's own ``seconds``.
        members: (K,) candidate indices of the chosen ensemble, best first, K as chosen on select.
        scores: (K,) their mean search scores.
    """

    results: dict[str, Any]
    members: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class _Chosen:
    sigma: str | float
    k: int
    template: Template
    temperature: float
    members: np.ndarray  # (top_k,) best first, of the chosen pool
    considered: dict[str, list[dict[str, Any]]]
    tokens: dict[str, int]  # spent on select, by what they chose
    seconds: float

    def summary(self) -> dict[str, Any]:
        """As results.json has it."""
        return {
            "sigma": self.sigma,
            "K": self.k,
            "prompt": self.template.name,
            "temperature": self.temperature,
            "members": [int(i) for i in self.members],
            "candidates": self.considered,
        }


def evaluate_run(
    engine: Engine,
    task: Task,
    splits: Splits,
    population: Population,
    record: SearchRecord,
    *,
    top_k: int,
    template: Template | None = None,
    seed: int = 0,
    on_stage: OnStage | None = None,
) -> Evaluation:
    """Choose on the select split, measure once on the test split.

    On select: sigma (``"all"`` or one of the population's) by the accuracy of ``top_k`` votes; K from 1, 2, 5, 10, ... ``top_k`` with that
    sigma; the prompt template under which the base does best; the temperature at which K samples of the base vote best. Ties go to the more
    general option: all sigmas, more members, the template of the search, temperature 0.7. Candidates that pools share are run once.
    Only finalists of the race can be members: the pool of one sigma is the best of its finalists, and is left out where fewer than
    ``top_k`` reached the end. The race looks for the best of all, so that is the pool that it preserves.

    On test: the base; the base under the chosen template; the members, ``top_k`` samples of the base and ``top_k`` candidates drawn at
    random from the whole population (seeded, without replacement), each run once and read off at every K. ``random_k`` and
    ``self_consistency`` are reported at the chosen K and, under ``curve``, at the others.

    Args:
        engine, task: run the models; judge the replies.
        splits: disjoint examples; only ``search`` was seen by the search.
        population, record: the N candidates searched, and their search scores.
        top_k: most members of an ensemble, 1 <= top_k <= N.
        template: the prompt of the search; the task's first when None.
        seed: of the random ensemble, the samples and the bootstrap.
        on_stage: progress callback.
    """
    size = len(population)
    _check(record, size, len(splits.search), top_k)
    template, report = template or task.templates[0], on_stage or (lambda name, done, total: None)
    means = record.scores.mean(axis=1, dtype=np.float64)  # NaN where a candidate did not reach the end of the race

    chosen = _choose_on_select(engine, task, splits, population, record.scores, top_k, template, seed, report)
    test, seconds = _measure_on_test(engine, task, splits, population, chosen, top_k, template, seed, report)

    report("reference throughput", 0, 1)
    reference = engine.reference(engine.prepare(splits.search, template), REFERENCE_ROUNDS)
    report("reference throughput", 1, 1)

    for k, at_k in test["randopt"].items():
        at_k["search_tokens"] = int(record.total_tokens + chosen.tokens["members"])
        at_k["members_search_mean"] = float(means[chosen.members[: int(k)]].mean())
    members = chosen.members[: chosen.k]
    results = {"version": RESULTS_VERSION, **test} | {
        "splits": splits.sizes(),
        "selection": chosen.summary() | {"search_prompt": template.name},
        "racing": racing_summary(record.race, record.scores, record.base_scores, record.tokens, record.base_tokens, record.nonfinite),
        "ties": tie_summary(means, members, pool_of(population, record.scores, chosen.sigma)),
        "throughput": _throughput(record, size, reference),
        "population": population_summary(population, record.scores, record.base_scores, record.nonfinite[0]),
        "task": {"name": task.name, "kind": task.kind, "source": task.source},
        "seconds": {"search": record.seconds, "select": chosen.seconds, "test": seconds},
    }
    return Evaluation(results, members, means[members])


def _check(record: SearchRecord, size: int, examples: int, top_k: int) -> None:
    if record.scores.shape != (size, examples):
        raise ValueError(f"record.scores has shape {record.scores.shape}; {size} candidates x {examples} examples are required")
    if not 1 <= top_k <= size:
        raise InputError(f"--top-k {top_k}: between 1 and the population's {size} is required")


def _choose_on_select(
    engine: Engine,
    task: Task,
    splits: Splits,
    population: Population,
    scores: np.ndarray,
    top_k: int,
    template: Template,
    seed: int,
    report: OnStage,
) -> _Chosen:
    examples = splits.select
    prepared = engine.prepare(examples, template)

    by_pool = pools(population, scores, top_k)
    union = np.unique(np.concatenate(list(by_pool.values())))
    replies = run_members(engine, population, population.indices[union], prepared, "select split: candidates", report)
    curves = {pool: vote_curve(task, examples, replies.take(np.searchsorted(union, members).tolist())) for pool, members in by_pool.items()}
    sigma = choose(list(curves), [float(curve.accuracies[-1]) for curve in curves.values()])
    ks = k_curve(top_k)[::-1]
    k = choose(ks, [float(curves[sigma].accuracies[k - 1]) for k in ks])

    templates = [template, *(other for other in task.templates if other.name != template.name)]
    by_template: list[Replies] = []
    report("select split: prompts", 0, len(templates))
    for number, other in enumerate(templates, start=1):
        by_template.append(run_base(engine, prepared if other is template else engine.prepare(examples, other)))
        report("select split: prompts", number, len(templates))
    prompt_accuracies = [float(r.scores.mean(dtype=np.float64)) for r in by_template]

    by_temperature: list[Replies] = []
    report("select split: temperatures", 0, len(TEMPERATURES))
    for number, temperature in enumerate(TEMPERATURES, start=1):
        by_temperature.append(run_samples(engine, prepared, k, temperature, derived_seed(seed, "select samples")))
        report("select split: temperatures", number, len(TEMPERATURES))
    temperature_accuracies = [float(vote_curve(task, examples, r).accuracies[-1]) for r in by_temperature]

    return _Chosen(
        sigma=sigma,
        k=k,
        template=choose(templates, prompt_accuracies),
        temperature=choose(TEMPERATURES, temperature_accuracies),
        members=by_pool[sigma],
        considered={
            "sigma": _options(list(curves), [float(curve.accuracies[-1]) for curve in curves.values()]),
            "K": _options(ks[::-1], [float(curves[sigma].accuracies[k - 1]) for k in ks[::-1]]),
            "prompt": _options([t.name for t in templates], prompt_accuracies),
            "temperature": _options(TEMPERATURES, temperature_accuracies),
        },
        tokens={
            "members": int(replies.tokens.sum()),
            "prompt": sum(int(r.tokens.sum()) for r in by_template),
            "temperature": sum(int(r.tokens.sum()) for r in by_temperature),
        },
        seconds=sum(r.seconds for r in (replies, *by_template, *by_temperature)),
    )


def _measure_on_test(
    engine: Engine,
    task: Task,
    splits: Splits,
    population: Population,
    chosen: _Chosen,
    top_k: int,
    template: Template,
    seed: int,
    report: OnStage,
) -> tuple[dict[str, Any], float]:
    examples, ks = splits.test, k_curve(top_k)
    prepared = engine.prepare(examples, template)
    generator = np.random.Generator(np.random.PCG64(derived_seed(seed, "random members")))
    random_members = generator.permutation(len(population))[:top_k]

    union = np.unique(np.concatenate([chosen.members, random_members]))
    replies = run_members(engine, population, population.indices[union], prepared, "test split: candidates", report)
    member_replies = replies.take(np.searchsorted(union, chosen.members).tolist())
    randopt = vote_curve(task, examples, member_replies)
    unselected = vote_curve(task, examples, replies.take(np.searchsorted(union, random_members).tolist()))

    report("test split: base and its samples", 0, 3)
    base = run_base(engine, prepared)
    report("test split: base and its samples", 1, 3)
    same = chosen.template.name == template.name
    prompted = base if same else run_base(engine, engine.prepare(examples, chosen.template))
    report("test split: base and its samples", 2, 3)
    samples = run_samples(engine, prepared, top_k, chosen.temperature, derived_seed(seed, "test samples"))
    report("test split: base and its samples", 3, 3)
    consistency = vote_curve(task, examples, samples)

    def against_base(row: dict[str, Any], scores: np.ndarray) -> dict[str, Any]:
        return {**row, **comparison(scores, base.scores[0], derived_seed(seed, "bootstrap"))}

    def at(curve: VoteCurve, k: int, search_tokens: int = 0) -> dict[str, Any]:
        scores = curve.scores[k - 1]
        return against_base({"K": k, **entry(scores, curve.lenient[k - 1], curve.tokens[k - 1], search_tokens)}, scores)

    def control(curve: VoteCurve, search_tokens: int = 0) -> dict[str, Any]:
        return {**at(curve, chosen.k, search_tokens), "curve": {str(k): at(curve, k, search_tokens) for k in ks}}

    best_prompt = entry(prompted.scores[0], prompted.lenient[0], prompted.tokens[0], chosen.tokens["prompt"])
    results: dict[str, Any] = {
        "base": {**entry(base.scores[0], base.lenient[0], base.tokens[0]), "prompt": template.name},
        "self_consistency": {**control(consistency, chosen.tokens["temperature"]), "temperature": chosen.temperature},
        "best_prompt": against_base(best_prompt | {"prompt": chosen.template.name}, prompted.scores[0]),
        "random_k": {**control(unselected), "members": [int(i) for i in random_members]},
        "randopt": {},
    }
    for k in ks:
        rivals = {"self_consistency": consistency.scores[k - 1], "best_prompt": prompted.scores[0], "random_k": unselected.scores[k - 1]}
        results["randopt"][str(k)] = {
            **at(randopt, k),
            "against": {name: comparison(randopt.scores[k - 1], rival, derived_seed(seed, "bootstrap")) for name, rival in rivals.items()},
            "members_test_mean": float(member_replies.scores[:k].mean(dtype=np.float64)),
        }
    seconds = replies.seconds + base.seconds + samples.seconds + (0.0 if same else prompted.seconds)
    return results, seconds


def _options(values: Sequence[Any], accuracies: Sequence[float]) -> list[dict[str, Any]]:
    return [{"value": value, "accuracy": accuracy} for value, accuracy in zip(values, accuracies, strict=True)]


def _throughput(record: SearchRecord, size: int, reference: float) -> dict[str, float | None]:
    tokens_per_s = record.total_tokens / record.seconds if record.seconds > 0 else None
    return {
        "candidates_per_s": size / record.seconds if record.seconds > 0 else None,
        "tokens_per_s": tokens_per_s,
        "reference_tokens_per_s": reference,
        "efficiency": tokens_per_s / reference if tokens_per_s is not None and reference > 0 else None,
    }
