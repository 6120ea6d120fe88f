"""Racing rules on matrices whose truth is known, and a raced search against one that was never interrupted."""

import contextlib
import json
import math
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from racing_matrices import equals, far_apart, graded, relatives
from support.paths import DATA
from support.search_fakes import FakeEngine, FakePopulation, Told, expected_scores, prepare

from perturbjax.errors import InputError
from perturbjax.inference.outputs import Running
from perturbjax.randopt.bounds import critical_lead, may_reach_top
from perturbjax.randopt.loop import search
from perturbjax.randopt.racing import Race, RacingRule
from perturbjax.randopt.table import open_state, write_candidates
from perturbjax.runs.files import MetricsLog
from perturbjax.scoring import top_k


def run_race(race: Race, full: np.ndarray) -> np.ndarray:
    """Ask only what the race asks: the score matrix with NaN elsewhere."""
    scores = np.full(full.shape, np.nan, np.float32)
    for number in range(race.parts):
        candidates, columns, _ = race.part(scores, number)
        scores[np.ix_(candidates, columns)] = full[np.ix_(candidates, columns)]
    return scores


def finalists(scores: np.ndarray) -> np.ndarray:
    return np.flatnonzero(~np.isnan(scores).any(axis=1))


def kept(race: Race, full: np.ndarray) -> np.ndarray:
    last = finalists(run_race(race, full))
    return last[top_k(full[last], race.top_k)]


@pytest.mark.parametrize(
    ("race", "ends", "survivors"),
    [
        (Race("off", 256, 128, 16), (128,), [256]),
        (Race("halving", 256, 128, 16), (16, 32, 64, 128), [256, 128, 64, 32]),
        (Race("halving", 48, 64, 8), (16, 32, 64), [48, 28, 16]),
        (Race("halving", 5000, 200, 50), (25, 50, 100, 200), [5000, 1358, 369, 100]),
        (Race("halving", 100, 33, 2), (17, 33), [100, 4]),
        (Race("halving", 10, 1000, 1, rounds=3), (250, 500, 1000), [10, 5, 2]),
        # Nobody could stop: one round.
        (Race("halving", 16, 128, 8), (128,), [16]),
        (Race("halving", 16, 128, 16), (128,), [16]),
        (Race("bounds", 16, 128, 16), (128,), [16]),
        # Fewer examples than two slices.
        (Race("halving", 256, 31, 16), (31,), [256]),
        (Race("bounds", 256, 5, 16), (5,), [256]),
        (Race("halving", 256, 32, 16), (16, 32), [256, 32]),
    ],
)
def test_rounds_double_and_survivors_shrink_to_the_finalists(race, ends, survivors):
    assert race.ends == ends
    full = np.random.default_rng(0).integers(0, 2, (race.candidates, race.examples)).astype(np.float32)
    scores = run_race(race, full)
    assert [len(race.survivors(scores, number)) for number in range(len(ends))] == survivors
    np.testing.assert_array_equal(race.survivors(scores, len(race.ends) - 1), finalists(scores))


@given(st.integers(1, 40), st.integers(1, 100), st.data())
@settings(max_examples=200, deadline=None)
def test_halving_keeps_the_best_so_far_and_ties_go_to_the_lower_index(size, examples, data):
    k = data.draw(st.integers(1, size))
    race = Race("halving", size, examples, k, rounds=data.draw(st.integers(1, 5)), smallest=data.draw(st.integers(1, 20)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    full = rng.integers(0, 2, (size, examples)).astype(np.float32)
    scores = run_race(race, full)
    alive = list(range(size))
    for number, end in enumerate(race.ends[:-1]):
        later = race.survivors(scores, number + 1).tolist()
        assert k <= len(later) <= len(alive)
        assert later == sorted(sorted(alive, key=lambda i: (-full[i, :end].sum(), i))[: len(later)])
        alive = later
    assert race.ends[-1] == examples and len(finalists(scores)) == len(alive) >= k


def test_who_goes_on_does_not_depend_on_scores_of_later_rounds():
    race = Race("bounds", 20, 64, 3)
    full = expected_scores(np.arange(20), range(64))
    full[5:] *= full[4] * 0  # hopeless
    full[:5] = 1
    scores = run_race(race, full)
    assert len(race.survivors(scores, 1)) < 20
    changed = scores.copy()
    changed[:, race.ends[0] :] = 0.5
    np.testing.assert_array_equal(race.survivors(changed, 1), race.survivors(scores, 1))


def test_a_round_that_is_not_complete_is_refused():
    race = Race("halving", 40, 64, 4)
    scores = run_race(race, expected_scores(np.arange(40), range(64)))
    scores[7, 3] = np.nan
    assert len(race.survivors(scores, 0)) == 40
    with pytest.raises(ValueError, match="round 0: candidate 7 has not answered all of its first 16"):
        race.survivors(scores, 1)


def test_the_critical_lead_solves_its_equation():
    # Two candidates: the difference of two independent normals; K = N - 1 others of N: being the last by h.
    for error in (0.01, 0.1, 0.3):
        quantile = next(x for x in np.arange(-4, 4, 1e-4) if 0.5 * math.erfc(x / 2**0.5) <= error)
        assert critical_lead(2, 1, error) == pytest.approx(quantile, abs=2e-4)
    rng = np.random.default_rng(0)
    for size, k, error in ((48, 8, 0.05), (256, 16, 0.1), (20, 19, 0.02)):
        luck = rng.standard_normal((20_000, size))
        ahead = (luck[:, 1:] > luck[:, :1] + 2**0.5 * critical_lead(size, k, error)).sum(axis=1)
        assert np.mean(ahead >= k) == pytest.approx(error, abs=4 * (error / 20_000) ** 0.5)


def test_what_is_certain_is_ruled_out_whatever_the_error_and_no_more():
    # 4 of 10 examples left. The first leads by 4: it cannot be overtaken, but a higher index could still draw level.
    seen = np.zeros((3, 6))
    seen[1, :4] = 1
    assert may_reach_top(seen, 10, 1, 1e-12, 3).tolist() == [True, True, False]
    seen[1, 4] = 1
    assert may_reach_top(seen, 10, 1, 1e-12, 3).tolist() == [False, True, False]
    assert may_reach_top(seen, 10, 2, 1e-12, 3).tolist() == [True, True, True]
    assert may_reach_top(seen[:, :5], 5, 1, 0.1, 3).all()  # nothing left to ask


@pytest.mark.parametrize("error", [0.05, 0.2])
@pytest.mark.parametrize("make", [equals, relatives, graded])
@pytest.mark.parametrize(("size", "examples", "k", "changes"), [(48, 64, 8, 4), (40, 128, 1, 20)])
def test_bounds_loses_no_more_of_the_top_than_it_says_over_1000_draws(make, size, examples, k, changes, error):
    rng = np.random.default_rng([size, k, int(100 * error)])
    race = Race("bounds", size, examples, k, error=error)
    losses = np.zeros(k)
    draws = 1000
    for _ in range(draws):
        full = make(rng, size, examples, changes)
        losses += ~np.isin(top_k(full, k), finalists(run_race(race, full)))
    # The bound is for each place of the best K; four standard errors of a proportion are allowed.
    allowed = error + 4 * (error * (1 - error) / draws) ** 0.5
    print(f"{make.__name__}: lost by place {np.round(losses / draws, 3).tolist()}, promised {error}")
    assert (losses / draws).max() <= allowed


def test_bounds_saves_where_candidates_are_far_apart_and_nothing_where_all_are_equal():
    rng = np.random.default_rng(0)
    far = far_apart(rng, 100, 128, 0)
    race = Race("bounds", 100, 128, 8)
    scores = run_race(race, far)
    assert np.mean(~np.isnan(scores)) < 0.5
    np.testing.assert_array_equal(kept(race, far), top_k(far, 8))
    same = np.tile(far[:1], (100, 1))
    assert not np.isnan(run_race(race, same)).any()
    np.testing.assert_array_equal(kept(race, same), np.arange(8))


def test_bounds_does_not_depend_on_the_blocks_it_works_in(monkeypatch):
    seen = far_apart(np.random.default_rng(0), 100, 32, 0)
    whole = may_reach_top(seen, 128, 8, 0.1, 100)
    assert 8 <= whole.sum() < 100
    monkeypatch.setattr("perturbjax.randopt.bounds._BLOCK", 7)
    np.testing.assert_array_equal(may_reach_top(seen, 128, 8, 0.1, 100), whole)


def test_halving_keeps_good_candidates_for_a_third_of_the_work():
    rng = np.random.default_rng(1)
    race = Race("halving", 256, 128, 16)
    losses = []
    for _ in range(50):
        full = relatives(rng, 256, 128, 13)
        losses.append(full[kept(race, full)].mean() - full[top_k(full, 16)].mean())
    assert np.mean(~np.isnan(run_race(race, full))) == 0.3125
    assert -0.01 < np.mean(losses) <= 0


def recorded(task: str) -> tuple[np.ndarray, np.ndarray, int]:
    """(256, 128) scores, (128,) tokens of each question, and of the prefix that all share."""
    with np.load(DATA / f"racing_{task}.npz") as saved:
        return np.unpackbits(saved["bits"], axis=1).astype(np.float32), saved["own_tokens"].astype(int), int(saved["prefix_tokens"])


@pytest.mark.parametrize("task", ["sst2", "boolq"])
def test_halving_meets_its_target_on_the_recorded_scores_of_a_real_search(task):
    # 256 candidates of SmolLM2-135M on 128 questions, in full (scripts/racing_record.py), in the order of the seed.
    full, own, prefix = recorded(task)
    means, best = full.mean(axis=1), top_k(full, 16)
    race = Race("halving", 256, 128, 16)
    asked = ~np.isnan(run_race(race, full))
    spent = sum(asked[:, race.columns(n).start].sum() * (prefix + own[race.columns(n)].sum()) for n in range(len(race.ends)))
    assert spent / (256 * (prefix + own.sum())) <= 0.35
    assert means[kept(race, full)].mean() >= means[best].mean() - 0.005
    np.testing.assert_array_equal(kept(Race("bounds", 256, 128, 16), full), best)


@pytest.mark.parametrize(("task", "share", "points"), [("sst2", 0.53, 0.0), ("boolq", 0.85, -0.05)])
def test_dead_prompts_of_a_real_search_cost_next_to_nothing(task, share, points):
    full, own, prefix = recorded(task)
    race = Race("dead", 256, 128, 16)
    scores = run_race(race, full)
    first, later = (race.part(scores, number) for number in range(2))
    assert np.array_equal(scores[:32], full[:32]) and np.array_equal(later.candidates, np.arange(32, 256))
    spent = sum(len(part.candidates) * (prefix + own[part.columns].sum()) for part in (first, later))
    assert spent / (256 * (prefix + own.sum())) <= share
    means, mine = full.mean(axis=1), top_k(race.filled(scores), 16)
    assert 100 * (means[mine].mean() - means[top_k(full, 16)].mean()) >= points


def test_skipped_is_what_the_first_all_get_right_and_only_their_mistakes_are_lost():
    full = np.ones((7, 6), np.float32)
    full[:, 1] = 0  # all are wrong: there is something to win
    full[2, 2] = 0.5  # one of the first is not quite right
    full[4, 3] = full[5, 4] = 0  # mistakes of later ones
    race = Race("dead", 7, 6, 1, screen=3)
    scores = run_race(race, full)
    assert race.skipped(scores).tolist() == [True, False, False, True, True, True]
    assert np.isnan(scores[3:, [0, 3, 4, 5]]).all() and not np.isnan(scores[:, [1, 2]]).any() and not np.isnan(scores[:3]).any()
    full[4, 3] = full[5, 4] = 1
    np.testing.assert_array_equal(race.filled(scores), full)
    scores[6, 1] = np.nan  # not answered yet: it has no score to be ranked by
    assert np.isnan(race.filled(scores)[6, [0, 1]]).all()
    scores[0, 0] = np.nan
    assert not race.skipped(scores).any()
    # Nothing is left to rank by, or nobody is left to be spared anything: everyone answers everything.
    for other, scores in ((race, np.ones((7, 6), np.float32)), (Race("dead", 7, 6, 1, screen=7), full)):
        np.testing.assert_array_equal(run_race(other, scores), scores)


N, D = 30, 32
RULES: tuple[RacingRule, ...] = get_args(RacingRule)
RACES = [Race(rule, N, D, 3, rounds=3, smallest=4, error=0.4, screen=2) for rule in RULES]


class Killed(BaseException):
    """Stands for a signal: nothing may catch it."""


def raced_search(folder: Path, race: Race, chunk: int, stop_after: int | None = None) -> FakeEngine:
    folder.mkdir(exist_ok=True)
    engine, chunks = FakeEngine(chunk), 0

    def on_chunk(candidates):
        nonlocal chunks
        chunks += 1
        if chunks == stop_after:
            raise Killed

    with open_state(folder / "state", race, {"rule": race.rule}) as state, contextlib.suppress(Killed):
        log = MetricsLog(folder / "metrics.jsonl")
        table = search(engine, FakePopulation(N), race, prepare, state, log, Told(on_chunk))
        write_candidates(folder / "candidates.parquet", np.full(N, 0.001, np.float32), table.scores)
        np.save(folder / "scores.npy", table.scores)
        np.save(folder / "tokens.npy", table.tokens)
    return engine


@pytest.mark.parametrize("race", RACES, ids=RULES)
def test_a_raced_search_asks_what_the_race_asks_and_nothing_else(tmp_path, race):
    engine = raced_search(tmp_path / "run", race, 8)
    expected = run_race(race, expected_scores(np.arange(N), range(D)))
    np.testing.assert_array_equal(np.load(tmp_path / "run" / "scores.npy"), expected)
    assert sorted(engine.asked) == [tuple(pair) for pair in np.argwhere(~np.isnan(expected)).tolist()]
    tokens = np.load(tmp_path / "run" / "tokens.npy")
    for number in range(len(race.ends)):
        asked = np.sum(~np.isnan(expected[:, race.columns(number)]), axis=1)
        np.testing.assert_array_equal(tokens[:, number], asked * (np.arange(N) + 100))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for number in range(race.parts):
        mine = [line for line in lines if line["round"] == number + 1]
        candidates, columns, round_ = race.part(expected, number)
        assert mine[-1]["done"] == mine[-1]["total"] == sum(line["candidates"] for line in mine) == len(candidates)
        means = race.filled(expected)[candidates, : race.ends[round_]].mean(axis=1)
        assert (mine[-1]["best"], mine[-1]["mean"]) == pytest.approx((means.max(), means.mean()))
        assert {(line["rounds"], line["examples"]) for line in mine} == {(race.parts, len(columns))}


@pytest.mark.parametrize("race", RACES[1:], ids=RULES[1:])
def test_a_race_killed_anywhere_and_resumed_in_other_chunks_ends_with_the_same_bytes(tmp_path, race):
    raced_search(tmp_path / "whole", race, 8)
    rounds = [json.loads(line)["round"] for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    # In the middle of the first round, at its end, and within a later one.
    for stop_after in (2, rounds.count(1), rounds.count(1) + 1):
        folder = tmp_path / f"killed-{stop_after}"
        before = raced_search(folder, race, 8, stop_after)
        after = raced_search(folder, race, 11)
        assert len(before.asked) + len(after.asked) == len(set(before.asked) | set(after.asked)), "something was scored twice"
        for name in ("candidates.parquet", "scores.npy", "tokens.npy"):
            assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_candidates_parquet_says_how_many_examples_each_was_asked(tmp_path):
    import pyarrow.parquet as pq

    race = RACES[1]
    raced_search(tmp_path / "run", race, 7)
    rows = pq.read_table(tmp_path / "run" / "candidates.parquet").to_pydict()
    full = expected_scores(np.arange(N), range(D))
    for index, score, asked in zip(rows["index"], rows["score"], rows["examples_scored"], strict=True):
        assert asked in race.ends and score == full[index, :asked].mean(dtype=np.float64)
    assert sorted(set(rows["examples_scored"])) == list(race.ends)


class Watched(FakeEngine):
    """Writes down when chunks are put on the devices, waited for and graded; ``breaks``: grading this chunk raises."""

    def __init__(self, chunk: int, breaks: int = -1):
        super().__init__(chunk)
        self.events, self.started, self.breaks = [], 0, breaks

    def start(self, candidates, prepared):
        number, self.started = self.started, self.started + 1
        self.events.append(("start", number))

        def graded():
            self.events.append(("grade", number))
            if number == self.breaks:
                raise InputError(f"task: score() of chunk {number} failed")
            return self.run(candidates, prepared)

        return Running(lambda: self.events.append(("wait", number)), graded)


def test_a_chunk_is_graded_while_the_next_of_its_round_runs(tmp_path):
    race, engine = RACES[1], Watched(7)
    with open_state(tmp_path / "state", race, {}) as state:
        table = search(engine, FakePopulation(N), race, prepare, state, MetricsLog(tmp_path / "metrics.jsonl"))
    at = {event: place for place, event in enumerate(engine.events)}
    chunks = [-(-len(race.part(table.scores, number).candidates) // 7) for number in range(race.parts)]
    lasts = set(np.cumsum(chunks) - 1)
    assert len(chunks) > 1 and max(chunks) > 2 and len(at) == len(engine.events) == 3 * sum(chunks)
    for n in range(sum(chunks)):
        assert at["start", n] < at["wait", n] < at["grade", n]
        if n in lasts:  # who is in the next round is known only when all of this one is graded
            assert at["grade", n] < at.get(("start", n + 1), math.inf)
        else:
            assert at["wait", n] < at["start", n + 1] < at["grade", n] < at["wait", n + 1]


def test_what_grading_raises_comes_in_the_turn_of_its_chunk(tmp_path):
    engine = Watched(4, breaks=2)
    with open_state(tmp_path / "state", RACES[0], {}) as state:
        with pytest.raises(InputError, match="chunk 2 failed"):
            search(engine, FakePopulation(N), RACES[0], prepare, state, MetricsLog(tmp_path / "metrics.jsonl"))
        assert state.step == 2 and engine.started == 4


def test_a_bad_score_in_a_later_round_is_named_by_its_place_in_the_split(tmp_path):
    class BrokenScores(FakeEngine):
        def run(self, candidates, prepared):
            outputs = super().run(candidates, prepared)
            if prepared[0]:
                outputs.scores[0, 1] = np.inf
            return outputs

    race = RACES[1]
    named = pytest.raises(InputError, match=f"example {race.ends[0] + 1} for candidate")
    with open_state(tmp_path / "state", race, {}) as state, named:
        search(BrokenScores(), FakePopulation(N), race, prepare, state, MetricsLog(tmp_path / "metrics.jsonl"))
