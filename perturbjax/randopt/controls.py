"""RandOpt against its controls, on splits that never meet: every choice on select, then one look at test.

The controls are the ones that re-examinations of RandOpt found missing: the base's own samples with as many votes (self-consistency), the
base under the best of the task's prompts, and as many candidates drawn without selection. All of them get the same test questions, and
differences are paired.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from perturbjax.noise import Population
from perturbjax.randopt.flow import Flow, SearchRecord
from perturbjax.randopt.on_select import Chosen, choose_on_select
from perturbjax.randopt.on_test import measure_on_test
from perturbjax.randopt.replies import Engine, OnStage, no_progress
from perturbjax.randopt.results import RESULTS_VERSION, Results, SplitSizes, TaskSource, Throughput
from perturbjax.randopt.selection import pool_of
from perturbjax.randopt.summaries import population_summary, racing_summary, tie_summary
from perturbjax.randopt.voting import MAJORITY
from perturbjax.report import Source
from perturbjax.tasks.base import Task, Template
from perturbjax.tasks.splits import Splits

REFERENCE_ROUNDS = 3
"""Repetitions of the measurement of the plain model's throughput."""


@dataclass(frozen=True)
class Evaluation:
    """The outcome.

    Attributes:
        results: the content of results.json.
        members: (K,) candidate indices of the chosen ensemble, best first, K as chosen on select.
        scores: (K,) their mean search scores.
    """

    results: Results
    members: np.ndarray
    scores: np.ndarray


def evaluate_run(
    engine: Engine,
    task: Task,
    splits: Splits,
    population: Population,
    record: SearchRecord,
    *,
    model: Source,
    top_k: int,
    rule: str = MAJORITY,
    template: Template | None = None,
    seed: int = 0,
    on_stage: OnStage = no_progress,
) -> Evaluation:
    """Choose on the select split, measure once on the test split.

    On select: sigma (``"all"`` or one of the population's) by the accuracy of ``top_k`` votes; K from 1, 2, 5, 10, ... ``top_k`` with that
    sigma; the prompt template under which the base does best; the temperature at which K samples of the base vote best. Ties go to the more
    general option: all sigmas, more members, the template of the search, temperature 0.7. Candidates that pools have in common are run
    once. Only finalists of the race can be members: the pool of one sigma is the best of its finalists, and is left out where fewer than
    ``top_k`` reached the end. The race looks for the best of all, so that is the pool that it preserves.

    On test: the base; the base under the chosen template; the members, ``top_k`` samples of the base and ``top_k`` candidates drawn at
    random from the whole population (seeded, without replacement), each run once and read off at every K. ``random_k`` and
    ``self_consistency`` are reported at the chosen K and, under ``curve``, at the others.

    Args:
        engine, task: run the models; grade the replies.
        splits: disjoint examples; only ``search`` was seen by the search.
        population, record: the N candidates searched, and their search scores.
        model: what the base is called, for the results.
        top_k: most members of an ensemble, 1 <= top_k <= N.
        rule: by which the members vote, one of ``VOTE_RULES``.
        template: the prompt of the search; the task's first when None.
        seed: of the random ensemble, the samples and the bootstrap.
        on_stage: progress callback.

    Raises:
        ValueError: ``record.scores`` is not (N, D), or ``top_k`` is out of range.
    """
    if record.scores.shape != (len(population), len(splits.search)):
        expected = f"{len(population)} candidates x {len(splits.search)} examples"
        raise ValueError(f"record.scores has shape {record.scores.shape}; {expected} are required")
    if not 1 <= top_k <= len(population):
        raise ValueError(f"top_k {top_k}: between 1 and the population's {len(population)} is required")
    flow = Flow(engine, task, splits, population, record, top_k, rule, template or task.templates[0], seed, on_stage)
    chosen = choose_on_select(flow)
    entries, seconds = measure_on_test(flow, chosen)
    results = _results(flow, model, chosen, entries, {"search": record.seconds, "select": chosen.seconds, "test": seconds})
    members = np.asarray(chosen.selection.members[: chosen.selection.K])
    return Evaluation(results, members, record.mean_scores[members])


def _results(flow: Flow, model: Source, chosen: Chosen, entries: dict[str, Any], seconds: dict[str, float]) -> Results:
    record, selection = flow.record, chosen.selection
    members, pool = np.asarray(selection.members[: selection.K]), pool_of(flow.population, record.scores, selection.sigma)
    return Results(
        version=RESULTS_VERSION,
        model=model,
        task=TaskSource(flow.task.name, flow.task.source, flow.task.kind),
        **entries,
        splits=SplitSizes(**flow.splits.sizes()),
        selection=selection,
        racing=racing_summary(record.race, record.scores, record.base_scores, record.tokens, record.base_tokens, record.nonfinite),
        ties=tie_summary(record.mean_scores, members, pool),
        throughput=_throughput(flow),
        population=population_summary(flow.population, record.scores, record.base_scores, record.nonfinite[0]),
        seconds=seconds,
    )


def _throughput(flow: Flow) -> Throughput:
    record, stage = flow.record, "reference throughput"
    flow.on_stage(stage, 0, 1)
    reference = flow.engine.reference(flow.engine.prepare(flow.splits.search, flow.template), REFERENCE_ROUNDS)
    flow.on_stage(stage, 1, 1)
    tokens_per_s = record.total_tokens / record.seconds if record.seconds > 0 else None
    return Throughput(
        candidates_per_s=len(flow.population) / record.seconds if record.seconds > 0 else None,
        tokens_per_s=tokens_per_s,
        reference_tokens_per_s=reference,
        efficiency=tokens_per_s / reference if tokens_per_s is not None and reference > 0 else None,
    )
