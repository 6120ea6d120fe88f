"""RandOpt against its controls, on splits that never meet: every choice on select, then one look at test.

The controls are the ones that re-examinations of RandOpt found missing: the base's own samples with as many votes (self-consistency), the
base under the best of the task's prompts, and as many candidates drawn without selection. All of them get the same test questions, and
differences are paired.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from perturbjax.randopt.flow import Flow
from perturbjax.randopt.on_select import Chosen, choose_on_select
from perturbjax.randopt.on_test import measure_on_test
from perturbjax.randopt.results import RESULTS_VERSION, Results, SplitSizes, TaskSource, Throughput
from perturbjax.randopt.selection import pool_of
from perturbjax.randopt.summaries import population_summary, racing_summary, tie_summary
from perturbjax.report import Source

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


def evaluate_run(flow: Flow, model: Source) -> Evaluation:
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
        flow: what was searched, and the engine and the examples to go on with.
        model: what the base is called, for the results.
    """
    chosen = choose_on_select(flow)
    entries, seconds = measure_on_test(flow, chosen)
    results = _results(flow, model, chosen, entries, {"search": flow.record.seconds, "select": chosen.seconds, "test": seconds})
    members = np.asarray(chosen.selection.members[: chosen.selection.K])
    return Evaluation(results, members, flow.record.mean_scores[members])


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
        racing=racing_summary(record),
        ties=tie_summary(record.mean_scores, members, pool),
        throughput=_throughput(flow),
        population=population_summary(flow.population, record),
        seconds=seconds,
    )


def _throughput(flow: Flow) -> Throughput:
    record = flow.record
    with flow.progress.bar("reference throughput", 1) as bar:
        reference = flow.engine.reference(flow.engine.prepare(flow.splits.search, flow.template), REFERENCE_ROUNDS)
        bar.update(1)
    tokens_per_s = record.total_tokens / record.seconds if record.seconds > 0 else None
    return Throughput(
        candidates_per_s=len(flow.population) / record.seconds if record.seconds > 0 else None,
        tokens_per_s=tokens_per_s,
        reference_tokens_per_s=reference,
        efficiency=tokens_per_s / reference if tokens_per_s is not None and reference > 0 else None,
    )
