"""The one look at the test split: RandOpt and its controls on the same questions, with as many votes."""

from typing import Any

import numpy as np

from perturbjax.inference.outputs import Outputs
from perturbjax.randopt.entries import Against, BaseEntry, ControlEntry, PromptEntry, RandomEntry, RandOptEntry, SelfConsistencyEntry
from perturbjax.randopt.flow import Flow, VoteCurve, run_base, run_members, vote_curve
from perturbjax.randopt.on_select import Chosen
from perturbjax.randopt.selection import k_curve
from perturbjax.randopt.summaries import vote_entry
from perturbjax.report import compared_entry, comparison, entry
from perturbjax.tree import derived_seed


def measure_on_test(flow: Flow, chosen: Chosen) -> tuple[dict[str, Any], float]:
    """The entries of the results by name, and the seconds that they took."""
    examples, template, selection = flow.splits.test, flow.template, chosen.selection
    prepared = flow.engine.prepare(examples, template)
    generator = np.random.Generator(np.random.PCG64(derived_seed(flow.seed, "random members")))
    members, random_members = np.asarray(selection.members), generator.permutation(len(flow.population))[: flow.top_k]

    union = np.unique(np.concatenate([members, random_members]))
    outputs = run_members(flow.engine, flow.population, union, prepared, "test split: candidates", flow.progress)
    voters = outputs.take(np.searchsorted(union, members))
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
        "base": BaseEntry(**vars(entry(base_scores, base.lenient[0], base.tokens[0])), prompt=template.name),
        "self_consistency": SelfConsistencyEntry(**vars(sampled), temperature=selection.temperature),
        "best_prompt": PromptEntry(**vars(prompt_entry), prompt=chosen.template.name),
        "random_k": RandomEntry(**vars(drawn), members=tuple(int(i) for i in random_members)),
        "randopt": _randopt(flow, chosen, voters, base_scores, rivals),
    }
    return measured, outputs.seconds + base.seconds + samples.seconds + (0.0 if same else prompted.seconds)


def _control(flow: Flow, votes: VoteCurve, k: int, base_scores: np.ndarray, search_tokens: int = 0) -> ControlEntry:
    curve = {str(at): vote_entry(votes, at, base_scores, flow.bootstrap, search_tokens) for at in k_curve(flow.top_k)}
    return ControlEntry(**vars(curve[str(k)]), curve=curve)


def _randopt(
    flow: Flow, chosen: Chosen, voters: Outputs, base_scores: np.ndarray, rivals: dict[str, np.ndarray]
) -> dict[str, RandOptEntry]:
    """RandOpt at every K, beside rivals of (K, B) scores."""
    votes = vote_curve(voters, flow.voting(chosen.selection.members))
    tokens = flow.record.total_tokens + chosen.member_tokens
    means = flow.record.mean_scores[list(chosen.selection.members)]
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
