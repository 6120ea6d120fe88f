"""Rules of members and votes against brute force, and what choosing them looks at."""

from collections import defaultdict
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from support.numpy_engine import ColorTask, NumpyEngine, base_params

from perturbjax.cli.select import SelectConfig
from perturbjax.errors import InputError
from perturbjax.inference.outputs import Outputs
from perturbjax.noise import Noise, Population
from perturbjax.randopt.flow import Flow, SearchRecord, vote_curve
from perturbjax.randopt.members import MEMBER_RULES, greedy_order
from perturbjax.randopt.pools import finalists
from perturbjax.randopt.racing import Race
from perturbjax.randopt.selection import choose_members
from perturbjax.randopt.voting import VOTE_RULES, Voting
from perturbjax.tasks.splits import make_splits


def made(seed: int, models: int = 9, examples: int = 11, abstaining: float = 0.2) -> Outputs:
    """Random answers a, b, c; right is a, and b half right."""
    rng = np.random.default_rng(seed)
    drawn = rng.choice([*"abc", None], p=[*([(1 - abstaining) / 3] * 3), abstaining], size=(models, examples))
    answers = tuple(map(tuple, drawn.tolist()))
    scores = np.array([[{"a": 1.0, "b": 0.5}.get(answer, 0.0) for answer in row] for row in answers], np.float32)
    return Outputs(answers, answers, scores, scores, np.ones(models, np.int64), 0.0, 0)


def naive_vote(outputs: Outputs, order: list[int], weights: list[Fraction], b: int) -> Fraction:
    """The score of the vote of these members on one example, in exact arithmetic."""
    totals: dict[str, Fraction] = defaultdict(Fraction)
    for m in order:
        if (answer := outputs.answers[m][b]) is not None:
            totals[answer] += weights[m]
    if not totals:
        return Fraction(float(outputs.scores[order[0], b]))
    winner = next(m for m in order if totals.get(outputs.answers[m][b] or "") == max(totals.values()))
    return Fraction(float(outputs.scores[winner, b]))


def naive_accuracy(outputs: Outputs, order: list[int], weights: list[Fraction]) -> Fraction:
    return sum((naive_vote(outputs, order, weights, b) for b in range(outputs.scores.shape[1])), Fraction())


def naive_greedy(outputs: Outputs, weights: list[Fraction], count: int) -> list[int]:
    picked: list[int] = []
    for _ in range(count):
        left = [m for m in range(len(outputs.answers)) if m not in picked]
        picked.append(max(left, key=lambda m: (naive_accuracy(outputs, [*picked, m], weights), -m)))
    return picked


# Multiples of 1/8, whose sums are exact; equal ones, and 0.
SCORES = np.array([8, 7, 7, 5, 4, 4, 2, 1, 0]) / 8


@pytest.mark.parametrize("vote", VOTE_RULES)
@pytest.mark.parametrize("abstaining", [0.0, 0.2, 0.9])
def test_greedy_members_are_those_of_a_brute_force_loop(vote, abstaining):
    weights = [Fraction(float(w)) for w in VOTE_RULES[vote].weights(SCORES)]
    for seed in range(8):
        outputs = made(seed, abstaining=abstaining)
        order = greedy_order(outputs, Voting(vote, SCORES), 6)
        assert order.tolist() == naive_greedy(outputs, weights, 6)


@pytest.mark.parametrize("vote", VOTE_RULES)
def test_votes_are_those_of_a_brute_force_loop(vote):
    weights = [Fraction(float(w)) for w in VOTE_RULES[vote].weights(SCORES)]
    for seed in range(8):
        outputs = made(seed)
        curve = vote_curve(outputs, Voting(vote, SCORES))
        for k in range(1, 10):
            assert curve.scores[k - 1].tolist() == [float(naive_vote(outputs, list(range(k)), weights, b)) for b in range(11)]


@pytest.mark.parametrize("vote", VOTE_RULES)
def test_what_a_member_weighs_follows_from_its_own_score(vote):
    order = np.array([4, 0, 7, 2])
    np.testing.assert_array_equal(Voting(vote, SCORES).of(order).weights(4), Voting(vote, SCORES).weights(9)[order])


def test_the_help_of_select_is_the_table_of_vote_rules():
    assert all(f"{name} ({rule.help})" in (SelectConfig.__doc__ or "") for name, rule in VOTE_RULES.items())


def test_a_weighted_vote_weighs_scores_and_needs_them():
    answers = [["x"], ["y"], ["y"]]
    assert Voting("majority", np.array([0.9, 0.4, 0.4])).winners(answers, answers)[0, -1] == 1
    assert Voting("weighted", np.array([0.9, 0.4, 0.4])).winners(answers, answers)[0, -1] == 0
    with pytest.raises(InputError, match="weighted has no weights"):
        Voting("weighted").winners(answers, answers)


def test_the_accuracy_of_greedy_members_is_of_questions_that_did_not_pick_them():
    """Where answers are pure chance nothing is to be gained, and picking and measuring on the same questions would show a gain."""
    seen, crossed, best = [], [], []
    for seed in range(40):
        outputs, voting = made(seed, models=16, examples=12, abstaining=0.0), Voting("majority")
        order, accuracies = MEMBER_RULES["greedy"].order(outputs, voting, 8)
        assert order.tolist() == greedy_order(outputs, voting, 8).tolist()
        seen.append(vote_curve(outputs.take(order), voting).accuracies[-1])
        crossed.append(accuracies[-1])
        best.append(MEMBER_RULES["best"].order(outputs, voting, 8)[1][-1])
    print(f"greedy on what picked it {np.mean(seen):.3f}, cross-fitted {np.mean(crossed):.3f}, best {np.mean(best):.3f}, chance 0.5")
    assert np.mean(seen) > 0.6 and abs(np.mean(crossed) - 0.5) < 0.05 and abs(np.mean(best) - 0.5) < 0.05


def test_greedy_members_need_two_questions():
    with pytest.raises(InputError, match="`members` greedy: at least 2 select questions"):
        MEMBER_RULES["greedy"].order(made(0, examples=1), Voting("majority"), 2)


@pytest.fixture(scope="module")
def flow() -> Flow:
    """A race's population of 24, of which 12 answered everything."""
    task, population = ColorTask("generation", count=120), Population(5, 24, (0.1, 0.4))
    engine = NumpyEngine(task, base_params(), Noise())
    splits = make_splits(task.examples(), 20, 16, 40, 0)
    prepared = engine.prepare(splits.search, task.templates[0])
    scores = np.concatenate([engine.run(population[i : i + 4], prepared).scores for i in range(0, 24, 4)])
    scores[1::2, 10:] = np.nan
    engine.log.clear()
    record = SearchRecord(Race("off", 24, 20, 4), scores, scores[0], 1, np.ones((24, 1), np.int64), 1.0, [0])
    return Flow(engine, task, splits, population, record, 4, task.templates[0])


def test_every_way_is_compared_and_the_best_is_taken(flow):
    prepared = flow.engine.prepare(flow.splits.select, flow.template)
    choice = choose_members(flow, prepared, [*MEMBER_RULES], [*VOTE_RULES])
    means = flow.record.mean_scores
    ranked = sorted(finalists(flow.record.scores).tolist(), key=lambda i: (-means[i], i))
    pools = {"all": ranked, **{s: [i for i in ranked if flow.population.sigma_of([i])[0] == np.float32(s)] for s in flow.population.sigmas}}
    names = [("best", sigma, vote) for sigma in pools if len(pools[sigma]) >= 4 for vote in VOTE_RULES]
    names += [("greedy", "all", vote) for vote in VOTE_RULES]
    assert [(way.members, way.sigma, way.vote) for way in choice.tried] == names
    accuracies = {}
    for rule, sigma, vote in names:
        pool = pools[sigma][: 4 if rule == "best" else 8]
        outputs = Outputs.concatenate([flow.engine.run(flow.population[[i]], prepared) for i in pool])
        accuracies[rule, sigma, vote] = MEMBER_RULES[rule].order(outputs, Voting(vote, means[pool]), 4)[1]
    assert [way.accuracy for way in choice.tried] == [accuracies[name][-1] for name in names]
    best = next(way for way in choice.tried if way.accuracy == max(way.accuracy for way in choice.tried))
    assert choice.way == best
    curve = accuracies[best.members, best.sigma, best.vote]
    assert [(option.value, option.accuracy) for option in choice.by_k] == [(k, curve[k - 1]) for k in (1, 2, 4)]
    assert max(k for k in (1, 2, 4) if curve[k - 1] == max(curve[[0, 1, 3]])) == choice.K


def test_choosing_asks_select_questions_alone_and_runs_each_candidate_once(flow):
    flow.engine.log.clear()
    choose_members(flow, flow.engine.prepare(flow.splits.select, flow.template), ["best", "greedy"], ["majority", "weighted"])
    chosen_on = tuple(example.id for example in flow.splits.select)
    assert {ids for *_, ids in flow.engine.log} == {chosen_on}
    run = [i for _, indices, *_ in flow.engine.log for i in indices]
    assert len(set(run)) == len(run) and set(run) <= set(finalists(flow.record.scores).tolist())


def test_earlier_ways_win_ties(flow):
    prepared = flow.engine.prepare(flow.splits.select, flow.template)
    for votes in (["majority", "weighted"], ["weighted", "majority"]):
        tried = choose_members(flow, prepared, ["best"], votes).tried
        assert [way.vote for way in tried[:2]] == votes
        equal = [(a, b) for a, b in pairwise(tried) if a.accuracy == b.accuracy]
        assert choose_members(flow, prepared, ["best"], votes).way in tried and equal
