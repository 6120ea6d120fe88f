"""Early exit: exact where nothing can change, and a bound on the error where it is allowed one, by all orders or many."""

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import perturbjax as pj
from perturbjax.errors import InputError
from perturbjax.inference.outputs import Outputs, Running
from perturbjax.randopt.early_exit import decided, random_order
from perturbjax.randopt.ensemble import Ensemble
from perturbjax.randopt.ensembles import predict
from perturbjax.tasks import Example


def stopped(order, delta):
    """(votes cast, leader) when a vote in this order is called."""
    for count in range(1, len(order) + 1):
        if decided(order[:count], len(order), delta):
            cast = [key for key in order[:count] if key is not None]
            return count, max(dict.fromkeys(cast), key=cast.count)
    raise AssertionError("never decided")


def test_at_0_a_vote_is_called_where_no_completion_changes_it():
    for cast in itertools.product("ab", repeat=4):
        for members in range(4, 8):
            ends = itertools.product("abc", repeat=members - 4)
            # A tie goes to the best-ranked supporter, whom the order does not show: it decides nothing.
            winners = [tuple(k for k in "abc" if [*cast, *end].count(k) == max(map([*cast, *end].count, "abc"))) for end in ends]
            settled = len(set(winners)) == 1 and len(winners[0]) == 1
            assert decided(list(cast), members, 0.0) == (settled or members == 4)


@pytest.mark.parametrize("votes", ["aaaaabbb", "aaaabbbb", "aaabbbcc", "aaaaaaab", "aab"])
@pytest.mark.parametrize("delta", [0.3, 0.6, 0.9])
def test_over_all_orders_the_error_is_at_most_delta(votes, delta):
    orders = sorted(set(itertools.permutations(votes)))
    most = max(map(votes.count, votes))
    for winner in [key for key in dict.fromkeys(votes) if votes.count(key) == most]:
        ends = [stopped(order, delta) for order in orders]
        # Called before the end for another answer; of all members the vote is theirs, whatever the tie.
        assert np.mean([leader != winner and count < len(votes) for count, leader in ends]) <= delta


@pytest.mark.parametrize("counts", [(25, 25), (26, 24), (17, 17, 16)])
def test_of_many_members_that_disagree_few_are_called_wrongly(counts):
    rng, votes = np.random.default_rng(3), np.repeat(list("abc")[: len(counts)], counts)
    ends = [stopped(list(rng.permutation(votes)), 0.2) for _ in range(150)]
    # At most .2 + 2 standard errors; "b" is right as often as "a" where they tie.
    assert np.mean([leader != "a" and count < 50 for count, leader in ends]) <= 0.2 + 2 * np.sqrt(0.2 * 0.8 / 150)


def test_agreement_saves_and_abstentions_decide_nothing():
    assert stopped(["a"] * 50, 0.05)[0] == 8 and stopped(["a"] * 50, 0.0)[0] == 26
    assert not decided([None] * 49, 50, 0.05) and decided([None] * 50, 50, 0.05)


class Engine:
    """Member i of the population answers question q with ``answers[i][q]``."""

    chunk, width = 6, 3

    def __init__(self, answers, task=None):
        self.answers, self.asked, self.task = answers, 0, task

    def prepare(self, examples, template):
        return SimpleNamespace(examples=tuple(examples), template=template)

    def start(self, candidates, batch):
        return Running(lambda: None, lambda: self.run(candidates, batch))

    def run(self, candidates, batch):
        given = tuple(tuple(self.answers[int(i)][int(e.id)] for e in batch.examples) for i in candidates.index)
        shape = (len(given), len(batch.examples))
        self.asked += shape[0] * shape[1]
        return Outputs(given, given, np.zeros(shape), np.zeros(shape), np.ones(shape[0], np.int64), 0.0, 0)


def engine_of(answers, task=None) -> Any:
    """As a type that ``predict`` takes: it samples nothing and times nothing."""
    return Engine(answers, task)


def test_predict_asks_on_only_where_the_vote_is_open():
    rng, members = np.random.default_rng(0), 12
    # Questions of growing agreement.
    answers = [[str(rng.random() > share) for share in (0.5, 0.7, 0.9, 1.0)] for _ in range(members)]
    ensemble = Ensemble(pj.Population(seed=4, size=members, sigmas=(1.0,)), range(members), pj.Noise(), "sha256:0")
    prepared = engine_of(answers).prepare([Example(str(q), "", "") for q in range(4)], None)
    everyone = predict(engine_of(answers), ensemble, prepared)
    engine = engine_of(answers)
    early = predict(engine, ensemble, prepared, early_exit=0.0)
    assert [p.answer for p in early] == [p.answer for p in everyone]
    assert [p.asked for p in everyone] == [members] * 4 and early[-1].asked == 9
    assert engine.asked == sum(p.asked for p in early) < 4 * members
    for p in early:
        first = random_order(ensemble.population, members)[: p.asked]
        assert p.votes == dict(sorted(p.votes.items(), key=lambda vote: -vote[1])) and sum(p.votes.values()) == p.asked
        assert p.share == [answers[i][int(p.example.id)] for i in first].count(p.answer) / p.asked


def test_answers_that_a_task_compares_two_by_two_count_as_one():
    class Loose:
        asked: list

        def same(self, a, b, example):
            self.asked.append((a, b, example.id))
            return a.lower() == b.lower()

    rng, members = np.random.default_rng(1), 12
    answers = [[str(rng.choice(list("aAbBc"))) for _ in range(6)] for _ in range(members)]
    ensemble = Ensemble(pj.Population(seed=4, size=members, sigmas=(1.0,)), range(members), pj.Noise(), "sha256:0")
    prepared = engine_of(answers).prepare([Example(str(q), "", "") for q in range(6)], None)
    lower = engine_of([[answer.lower() for answer in row] for row in answers])
    for early_exit in (None, 0.0, 0.2):
        task = Loose()
        task.asked = []
        found = predict(engine_of(answers, task), ensemble, prepared, early_exit=early_exit)
        expected = predict(lower, ensemble, prepared, early_exit=early_exit)
        assert [(p.answer or "").lower() for p in found] == [p.answer for p in expected]
        assert [(list(p.votes.values()), p.share, p.asked) for p in found] == [(list(p.votes.values()), p.share, p.asked) for p in expected]
        assert task.asked and len(set(task.asked)) == len(task.asked)  # also where members are asked a few at a time


def test_what_cannot_be_used_is_refused():
    ensemble = Ensemble(pj.Population(seed=4, size=3, sigmas=(1.0,)), [0, 1], pj.Noise(), "sha256:0", [0.5, 0.4], rule="weighted")
    for delta in (-0.1, 1.0, float("nan")):
        with pytest.raises(InputError, match="early_exit"):
            predict(engine_of([]), ensemble, SimpleNamespace(examples=()), early_exit=delta)
    with pytest.raises(InputError, match="vote weighted"):
        predict(engine_of([]), ensemble, SimpleNamespace(examples=()), early_exit=0.1)
