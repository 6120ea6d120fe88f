"""RandOpt against its controls, on splits that never meet: every choice on select, then one look at test.

The controls are the ones that re-examinations of RandOpt found missing: the base's own samples with as many votes (self-consistency), the
base under the best of the task's prompts, and as many candidates drawn without selection. All of them get the same test questions, and
differences are paired.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from perturbjax.inference.outputs import Outputs
from perturbjax.randopt.entries import Against, BaseEntry, ControlEntry, PromptEntry, RandomEntry, RandOptEntry, SelfConsistencyEntry
from perturbjax.randopt.flow import Flow, VoteCurve, run_base, run_voters, vote_curve
from perturbjax.randopt.pools import pool_of
from perturbjax.randopt.questions import BASE, RANDOPT
from perturbjax.randopt.results import RESULTS_VERSION, Results, SplitSizes, TaskSource, Throughput
from perturbjax.randopt.screening_summary import with_screening
from perturbjax.randopt.selection import Chosen, choose_on_select, k_curve
from perturbjax.randopt.summaries import population_summary, racing_summary, reliability_summary, tie_summary, vote_entry, with_halving
from perturbjax.report import Source, compared_entry, comparison, entry
from perturbjax.tree import derived_seed

REFERENCE_ROUNDS = 3
"""Repetitions of the measurement of the plain model's throughput."""


@dataclass(frozen=True)
class Evaluation:
    """The outcome.

    Attributes:
        results: the content of results.json.
        members: (K,) candidate indices of the chosen ensemble, best first, K as chosen on select.
        scores: (K,) their mean search scores.
        by_question: the (B,) test scores of every system, at K votes.
    """

    results: Results
    members: np.ndarray
    scores: np.ndarray
    by_question: dict[str, np.ndarray]


def evaluate_run(flow: Flow, model: Source) -> Evaluation:
    """Choose on the select split, measure once on the test split.

    On select: sigma (``"all"`` or one of the population's) by the accuracy of ``top_k`` votes; K from 1, 2, 5, 10, ... ``top_k`` with that
    sigma; the prompt template under which the base does best; the temperature at which K samples of the base vote best. Ties go to the more
    general option: all sigmas, more members, the template of the search, temperature 0.7. Candidates that pools have in common are run
    once. Only finalists of the race can be members: the pool of one sigma is the best of its finalists, and is left out where fewer than
    ``top_k`` reached the end. The race looks for the best of all, so that is the pool that it preserves.

    On test: the base; the base under the chosen template; the members, ``top_k`` samples of the base and ``top_k`` candidates drawn at
    random from the whole population, all that were screened included (seeded, without replacement), each run once and read off at every K.
    ``random_k`` and ``self_consistency`` are reported at the chosen K and, under ``curve``, at the others.

    Args:
        flow: what was searched, and the engine and the examples to go on with.
        model: what the base is called, for the results.
    """
    chosen = choose_on_select(flow)
    entries, by_question, seconds = measure_on_test(flow, chosen)
    results = _results(flow, model, chosen, entries, {"search": flow.record.seconds, "select": chosen.seconds, "test": seconds})
    members = chosen.members[: chosen.selection.K]
    return Evaluation(results, flow.population.index_of(members), flow.record.mean_scores[members], by_question)


def _results(flow: Flow, model: Source, chosen: Chosen, entries: dict[str, Any], seconds: dict[str, float]) -> Results:
    record, selection = flow.record, chosen.selection
    members, pool = chosen.members[: selection.K], pool_of(flow.population, record.scores, selection.sigma)
    results = Results(
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
        reliability=reliability_summary(record),
    )
    if flow.halving is not None:
        return with_halving(results, flow.halving, flow.population.sigmas, record.scores)
    return results if flow.screening is None else with_screening(results, flow, flow.screening, members)


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


def measure_on_test(flow: Flow, chosen: Chosen) -> tuple[dict[str, Any], dict[str, np.ndarray], float]:
    """The entries of the results by name, the (B,) scores of each system, and the seconds that they took."""
    examples, template, selection = flow.splits.test, flow.template, chosen.selection
    prepared = flow.engine.prepare(examples, template)
    generator = np.random.Generator(np.random.PCG64(derived_seed(flow.seed, "random members")))
    whole = flow.population.whole
    members, random_members = np.asarray(selection.members), generator.permutation(len(whole))[: flow.top_k]

    union = np.unique(np.concatenate([members, random_members]))
    outputs = run_voters(flow.engine, whole, union, prepared, "test split: candidates", flow.progress)
    voters = outputs.take(np.searchsorted(union, members))
    votes = vote_curve(voters, flow.voting(chosen.members))
    unselected = vote_curve(outputs.take(np.searchsorted(union, random_members)))

    with flow.progress.bar("test split: base and its samples", 3) as bar:
        base = run_base(flow.engine, prepared)
        bar.update(1)
        same = chosen.template.name == template.name
        prompted = base if same else run_base(flow.engine, flow.engine.prepare(examples, chosen.template))
        bar.update(2)
        samples = flow.samples(prepared, flow.top_k, selection.temperature, "test samples")
        bar.update(3)
    consistency = vote_curve(samples)

    base_scores = base.scores[0]
    prompt_figures = entry(prompted.scores[0], prompted.lenient[0], prompted.tokens[0], chosen.prompt_tokens)
    prompt_entry = compared_entry(prompt_figures, prompted.scores[0], base_scores, flow.bootstrap)
    sampled = _control(flow, consistency, selection.K, base_scores, chosen.temperature_tokens)
    drawn = _control(flow, unselected, selection.K, base_scores)
    rivals = {"self_consistency": consistency.scores, "best_prompt": prompted.scores.repeat(flow.top_k, 0), "random_k": unselected.scores}
    measured = {
        BASE: BaseEntry(**vars(entry(base_scores, base.lenient[0], base.tokens[0])), prompt=template.name),
        "self_consistency": SelfConsistencyEntry(**vars(sampled), temperature=selection.temperature),
        "best_prompt": PromptEntry(**vars(prompt_entry), prompt=chosen.template.name),
        "random_k": RandomEntry(**vars(drawn), members=tuple(int(i) for i in random_members)),
        RANDOPT: _randopt(flow, chosen, voters, votes, base_scores, rivals),
    }
    by_question = {name: scores[selection.K - 1] for name, scores in ({RANDOPT: votes.scores} | rivals).items()} | {BASE: base_scores}
    return measured, by_question, outputs.seconds + base.seconds + samples.seconds + (0.0 if same else prompted.seconds)


def _control(flow: Flow, votes: VoteCurve, k: int, base_scores: np.ndarray, search_tokens: int = 0) -> ControlEntry:
    curve = {str(at): vote_entry(votes, at, base_scores, flow.bootstrap, search_tokens) for at in k_curve(flow.top_k)}
    return ControlEntry(**vars(curve[str(k)]), curve=curve)


def _randopt(
    flow: Flow, chosen: Chosen, voters: Outputs, votes: VoteCurve, base_scores: np.ndarray, rivals: dict[str, np.ndarray]
) -> dict[str, RandOptEntry]:
    """RandOpt at every K, beside rivals of (K, B) scores."""
    tokens = flow.search_tokens + chosen.member_tokens
    means = flow.record.mean_scores[chosen.members]
    entries = {}
    for k in k_curve(flow.top_k):
        figures = vote_entry(votes, k, base_scores, flow.bootstrap, tokens)
        against = {name: comparison(votes.scores[k - 1], scores[k - 1], flow.bootstrap) for name, scores in rivals.items()}
        entries[str(k)] = RandOptEntry(
            **vars(figures),
            against=Against(**against),
            members_search_mean=float(means[:k].mean()),
            members_test_mean=float(voters.scores[:k].mean(dtype=np.float64)),
        )
    return entries
