"""The evaluation flow against a second, naive implementation on a small real model, and its promises about what it looks at when."""

import json
from collections import Counter

import numpy as np
import pytest
from support.numpy_engine import ColorTask, NumpyEngine, base_params

from perturbjax.noise import Candidate, Noise, Population
from perturbjax.randopt.controls import evaluate_run
from perturbjax.randopt.ensemble import Ensemble
from perturbjax.randopt.ensembles import compare_to_base, predict
from perturbjax.randopt.flow import Flow, SearchRecord
from perturbjax.randopt.pools import pools
from perturbjax.randopt.racing import Race, RacingRule
from perturbjax.randopt.results import Option, Results, Ties
from perturbjax.randopt.selection import TEMPERATURES, best_option, k_curve
from perturbjax.randopt.summaries import tie_summary
from perturbjax.randopt.voting import MAJORITY, VOTE_RULES, VoteRule
from perturbjax.records import from_json, to_json
from perturbjax.report import Source
from perturbjax.report.accounting import wilson
from perturbjax.runs.console import Bar, Progress
from perturbjax.scoring import top_k
from perturbjax.tasks.splits import make_splits

TOP_K = 7
POPULATION = Population(5, 30, (0.1, 0.4, 0.8))


class Recorded(Progress):
    """``stages``: (label, done, total) of every bar at its start and at each of its updates, and (label, None, total) at its end."""

    def __init__(self):
        self.stages = []

    def bar(self, label, total, done=0, unit="step"):
        stages = self.stages

        class Recording(Bar):
            def update(self, done, **figures):
                stages.append((label, done, total))

            def __exit__(self, *error):
                stages.append((label, None, total))

        stages.append((label, done, total))
        return Recording(self, label, total, done, unit, drawn=False)


class Run:
    """One evaluated run, with everything that went in."""

    def __init__(self, kind, chunk=4, population=POPULATION, top_k=TOP_K, seed=0, rule: RacingRule = "off", vote=MAJORITY, task=ColorTask):
        self.task = task(kind, count=200)
        self.noise, self.params = Noise(), base_params()
        self.engine = NumpyEngine(self.task, self.params, self.noise, chunk)
        self.splits = make_splits(self.task.examples(), 40, 30, 90, 0)
        self.population = population
        prepared = self.engine.prepare(self.splits.search, self.task.templates[0])
        blocks = [self.engine.run(population[i : i + chunk], prepared) for i in range(0, len(population), chunk)]
        self.scores = np.concatenate([block.scores for block in blocks])
        self.base_scores = self.engine.run(Candidate.base(1), prepared).scores[0]
        self.tokens = int(sum(block.tokens.sum() for block in blocks))
        self.engine.log.clear()
        self.race = Race(rule, len(population), 40, top_k, smallest=10, error=0.9)
        self.seen = self.scores.copy()
        for number in range(len(self.race.ends)):
            self.seen[np.setdiff1d(np.arange(len(population)), self.race.survivors(self.seen, number)), self.race.columns(number)] = np.nan
        asked = [np.sum(~np.isnan(self.seen[:, self.race.columns(number)]), axis=1) for number in range(len(self.race.ends))]
        tokens = 10 * np.stack(asked, axis=1)
        nonfinite = [2, *range(len(asked) - 1)]
        record = SearchRecord(self.race, self.seen, self.base_scores, 400, tokens, 8.0, nonfinite)
        template, progress = self.task.templates[0], Recorded()
        flow = Flow(self.engine, self.task, self.splits, population, record, top_k, template, vote, seed, progress)
        self.evaluation = evaluate_run(flow, Source("tiny", "drawn by the tests"))
        self.log, self.stages = list(self.engine.log), progress.stages
        self.results = to_json(self.evaluation.results)

    def answers(self, indices, part, template=0):
        prepared = self.engine.prepare(getattr(self.splits, part), self.task.templates[template])
        return [self.engine.run(self.population[[i]], prepared).answers[0] for i in indices]

    def vote_scores(self, answers, part):
        """Majority vote, counted the slow way."""
        scores = []
        for b, example in enumerate(getattr(self.splits, part)):
            given = [row[b] for row in answers if row[b] is not None]
            counts = Counter(answer.lower() for answer in given)
            winners = [answer for answer in given if counts[answer.lower()] == max(counts.values())]
            scores.append(self.task.score(winners[0] if winners else None, example))
        return np.array(scores)


@pytest.fixture(scope="module", params=["choice", "generation"])
def run(request):
    return Run(request.param)


class AsWritten(ColorTask):
    """Counts answers as they are written."""

    def vote_key(self, answer, example):
        return answer

    def score(self, answer, example):
        return float(answer is not None and answer.lower() == example.answer)


class Compared(AsWritten):
    """Finds by comparison what ``ColorTask`` finds by its vote key."""

    def same(self, a, b, example):
        return a.lower() == b.lower()


def test_an_evaluation_by_pairwise_equality_is_that_of_the_canonical_key():
    compared, written = (Run("generation", task=task).results for task in (Compared, AsWritten))
    assert compared == Run("generation").results != written


def test_selection_follows_from_select_votes_alone(run):
    means = run.scores.astype(np.float64).mean(axis=1)
    ranked: dict = {"all": sorted(range(30), key=lambda i: (-means[i], i))}
    for number, sigma in enumerate(POPULATION.sigmas):
        ranked[sigma] = [i for i in ranked["all"] if i % 3 == number]
    accuracy = {name: run.vote_scores(run.answers(order[:TOP_K], "select"), "select").mean() for name, order in ranked.items()}
    selection = run.results["selection"]
    assert {option["value"]: option["accuracy"] for option in selection["candidates"]["sigma"]} == pytest.approx(accuracy)
    best = max(accuracy.values())
    assert selection["sigma"] == next(name for name in ["all", *POPULATION.sigmas] if accuracy[name] == pytest.approx(best))
    members = ranked[selection["sigma"]][:TOP_K]
    assert selection["members"] == members

    by_k = {k: run.vote_scores(run.answers(members[:k], "select"), "select").mean() for k in (1, 2, 5, 7)}
    assert {option["value"]: option["accuracy"] for option in selection["candidates"]["K"]} == pytest.approx(by_k)
    assert selection["K"] == max(k for k in by_k if by_k[k] == pytest.approx(max(by_k.values())))
    assert run.evaluation.members.tolist() == members[: selection["K"]]
    np.testing.assert_allclose(run.evaluation.scores, means[members[: selection["K"]]])


def test_randopt_and_random_accuracies_equal_a_naive_vote(run):
    results = run.results
    for members, entries in (
        (results["selection"]["members"], results["randopt"]),
        (results["random_k"]["members"], results["random_k"]["curve"]),
    ):
        assert list(entries) == ["1", "2", "5", "7"]
        for k, entry in entries.items():
            scores = run.vote_scores(run.answers(members[: int(k)], "test"), "test")
            assert entry["accuracy"] == pytest.approx(scores.mean())
            assert entry["n"] == 90
            assert entry["interval"] == pytest.approx(list(wilson(scores.sum(), 90)))
            assert entry["tokens"] == int(k) * 900
            base = np.array([run.task.score(a, e) for a, e in zip(*base_answers(run), strict=True)])
            assert entry["difference"] == pytest.approx(scores.mean() - base.mean())
            assert (entry["gained"], entry["lost"]) == ((scores > base).sum(), (scores < base).sum())
            low, high = entry["difference_interval"]
            assert low <= entry["difference"] <= high


def base_answers(run, template=0):
    prepared = run.engine.prepare(run.splits.test, run.task.templates[template])
    return run.engine.run(Candidate.base(1), prepared).answers[0], run.splits.test


def test_controls(run):
    results, selection = run.results, run.results["selection"]
    base = np.mean([run.task.score(a, e) for a, e in zip(*base_answers(run), strict=True)])
    assert results["base"]["accuracy"] == pytest.approx(base)
    assert results["base"]["tokens"] == 900 and "difference" not in results["base"]

    number = [t.name for t in run.task.templates].index(selection["prompt"])
    prompted = np.mean([run.task.score(a, e) for a, e in zip(*base_answers(run, number), strict=True)])
    assert results["best_prompt"]["accuracy"] == pytest.approx(prompted)
    options = {option["value"]: option["accuracy"] for option in selection["candidates"]["prompt"]}
    assert set(options) == {"plain", "shifted", "noisy"} and options[selection["prompt"]] == max(options.values())

    consistency = results["self_consistency"]
    assert consistency["temperature"] == selection["temperature"] in TEMPERATURES
    (sampled,) = [entry for entry in run.log if entry[0] == "sample" and len(entry[3]) == 90]
    assert sampled[1][:2] == (TOP_K, selection["temperature"])
    prepared = run.engine.prepare(run.splits.test, run.task.templates[0])
    draws = run.engine.sample(prepared, *sampled[1])
    for k, entry in consistency["curve"].items():
        assert entry["accuracy"] == pytest.approx(run.vote_scores(draws.answers[: int(k)], "test").mean())
        assert entry["tokens"] == (900 if run.task.kind == "choice" else 900 * int(k))
    for name in ("self_consistency", "random_k"):
        at_chosen = {key: value for key, value in results[name].items() if key in results[name]["curve"]["1"]}
        assert at_chosen == results[name]["curve"][str(selection["K"])]


def test_comparisons_to_the_controls_are_paired_at_equal_votes(run):
    for k, entry in run.results["randopt"].items():
        for name in ("self_consistency", "random_k"):
            other = run.results[name]["curve"][k]["accuracy"]
            assert entry["against"][name]["difference"] == pytest.approx(entry["accuracy"] - other)
        assert entry["against"]["best_prompt"]["difference"] == pytest.approx(entry["accuracy"] - run.results["best_prompt"]["accuracy"])


def test_the_test_split_is_seen_last_and_every_candidate_runs_once_a_split(run):
    splits = {tuple(e.id for e in getattr(run.splits, part)): part for part in ("search", "select", "test")}
    order = [splits[entry[3]] for entry in run.log]
    assert set(order) == {"select", "test"}
    assert order == sorted(order)  # "select" < "test": once test is seen, nothing is chosen any more
    for part in ("select", "test"):
        ran = [index for what, indices, _, ids in run.log if what == "run" and splits[ids] == part for index in indices]
        assert len(ran) == len(set(ran))
    tested = {index for what, indices, _, ids in run.log if what == "run" and splits[ids] == "test" for index in indices}
    assert tested == set(run.results["selection"]["members"]) | set(run.results["random_k"]["members"])


def test_tokens_spent_beforehand_are_counted(run):
    selected = sum(len(i) for what, i, _, ids in run.log if what == "run" and len(ids) == 30) * 300
    prompts = 3 * 300
    k = run.results["selection"]["K"]
    samples = len(TEMPERATURES) * (300 if run.task.kind == "choice" else 300 * k)
    assert {entry["search_tokens"] for entry in run.results["randopt"].values()} == {run.tokens + selected}
    assert run.results["best_prompt"]["search_tokens"] == prompts
    assert run.results["self_consistency"]["search_tokens"] == samples
    assert run.results["random_k"]["search_tokens"] == run.results["base"]["search_tokens"] == 0


def test_population_throughput_and_ties(run):
    means = run.scores.astype(np.float64).mean(axis=1)
    base = run.base_scores.mean()
    population = run.results["population"]
    assert (population["n"], population["nonfinite"]) == (30, 2)
    assert population["mean_score"] == pytest.approx(means.mean())
    assert population["share_at_or_above_base"] == pytest.approx(np.mean(means >= base - 1e-9))
    for number, row in enumerate(population["per_sigma"]):
        mine = means[number::3]
        assert (row["sigma"], row["n"], row["best"]) == (POPULATION.sigmas[number], 10, pytest.approx(mine.max()))
        assert row["share_at_or_above_base"] == pytest.approx(np.mean(mine >= base - 1e-9))
    assert run.results["throughput"] == pytest.approx(
        {"candidates_per_s": 30 / 8, "tokens_per_s": run.tokens / 8, "reference_tokens_per_s": 1000.0, "efficiency": run.tokens / 8000}
    )
    assert run.results["splits"] == {"search": 40, "select": 30, "test": 90}
    ties, members = run.results["ties"], run.evaluation.members
    assert ties["score_at_k"] == pytest.approx(means[members[-1]])
    assert 1 <= ties["tied_inside_k"] <= ties["tied_candidates"]


def test_lenient_never_below_strict_here_and_equal_for_choice(run):
    entries = [run.results["base"], *run.results["randopt"].values(), *run.results["random_k"]["curve"].values()]
    for entry in entries:
        assert entry["lenient_accuracy"] >= entry["accuracy"]
    if run.task.kind == "choice":
        assert all(entry["lenient_accuracy"] == entry["accuracy"] for entry in entries)
    else:
        assert run.results["base"]["lenient_accuracy"] > run.results["base"]["accuracy"]


def test_stages_start_advance_and_end(run):
    by_name = {}
    for name, done, total in run.stages:
        by_name.setdefault(name, []).append((done, total))
    assert len(by_name) == 6
    for *steps, (end, _) in by_name.values():
        assert end is None
        assert steps[0][0] == 0 and steps[-1][0] == steps[-1][1]
        assert [done for done, _ in steps] == sorted(done for done, _ in steps)


def test_results_are_plain_json_and_repeat(run):
    text = json.dumps(run.results, allow_nan=False)
    assert json.loads(text) == run.results
    assert from_json(Results, json.loads(text), "results.json") == run.evaluation.results
    again = Run(run.task.kind, chunk=9)
    strip = lambda results: {key: value for key, value in results.items() if key != "seconds"}  # noqa: E731
    assert strip(again.results) == strip(run.results)  # whatever the chunk


@pytest.fixture(scope="module", params=["halving", "bounds"])
def raced(request):
    run = Run("choice", rule=request.param)
    assert np.isnan(run.seen).any() and len(run.race.ends) == 3
    return run


def test_only_finalists_of_a_race_can_vote(raced):
    finished = np.flatnonzero(~np.isnan(raced.seen[:, -1])).tolist()
    assert TOP_K <= len(finished) < 30
    means = raced.scores.astype(np.float64).mean(axis=1)
    ranked = {"all": sorted(finished, key=lambda i: (-means[i], i))}
    ranked |= {sigma: [i for i in ranked["all"] if i % 3 == number] for number, sigma in enumerate(POPULATION.sigmas)}
    offered = {sigma: order[:TOP_K] for sigma, order in ranked.items() if len(order) >= TOP_K}
    selection = raced.results["selection"]
    assert [option["value"] for option in selection["candidates"]["sigma"]] == list(offered)
    assert selection["members"] == offered[selection["sigma"]]
    np.testing.assert_array_equal(raced.evaluation.scores, means[raced.evaluation.members])
    last, pool = means[raced.evaluation.members[-1]], ranked[selection["sigma"]]
    assert raced.results["ties"]["tied_candidates"] == sum(means[i] == last for i in pool)
    # The control without selection draws from everyone, as ever.
    assert raced.results["random_k"]["members"] == Run("choice").results["random_k"]["members"]


def test_population_figures_of_a_race_are_on_the_examples_that_all_answered(raced):
    population, means, base = raced.results["population"], raced.scores[:, :10].mean(axis=1), raced.base_scores[:10].mean()
    assert (population["examples"], population["n"], population["nonfinite"]) == (10, 30, 2)
    assert population["mean_score"] == pytest.approx(means.mean()) and population["best_score"] == pytest.approx(means.max())
    assert population["base_search_score"] == pytest.approx(base)
    assert population["share_at_or_above_base"] == np.mean(means >= base - 1e-9)
    for number, row in enumerate(population["per_sigma"]):
        assert (row["n"], row["mean"]) == (10, pytest.approx(means[number::3].mean()))


def test_what_a_race_spent_and_saved(raced):
    racing, asked = raced.results["racing"], ~np.isnan(raced.seen)
    assert (racing["rule"], racing["error"]) == (raced.race.rule, 0.9 if raced.race.rule == "bounds" else None)
    assert [row["examples"] for row in racing["rounds"]] == [10, 20, 40]
    assert [row["candidates"] for row in racing["rounds"]] == [asked[:, end - 1].sum() for end in (10, 20, 40)]
    assert [row["tokens"] for row in racing["rounds"]] == [10 * asked[:, start:end].sum() for start, end in ((0, 10), (10, 20), (20, 40))]
    assert racing["tokens"] == 10 * asked.sum() and racing["full_tokens"] == 30 * 400
    assert racing["share"] == asked.mean()
    assert [row["nonfinite"] for row in racing["rounds"]] == [2, 0, 1]
    for row, end, then in zip(racing["rounds"], (10, 20, 40), (20, 40, 40), strict=True):
        here, on = raced.scores[asked[:, end - 1], :end], raced.scores[asked[:, then - 1], :end]
        assert (row["mean_score"], row["best_score"]) == (pytest.approx(here.mean()), pytest.approx(here.mean(axis=1).max()))
        assert (row["kept"], row["kept_mean_score"]) == (len(on), pytest.approx(on.mean()))
        assert row["base_score"] == pytest.approx(raced.base_scores[:end].mean())
    selected = sum(len(i) for what, i, _, ids in raced.log if what == "run" and len(ids) == 30) * 300
    assert {entry["search_tokens"] for entry in raced.results["randopt"].values()} == {10 * asked.sum() + selected}
    assert raced.results["throughput"]["tokens_per_s"] == 10 * asked.sum() / 8
    assert json.loads(json.dumps(raced.results, allow_nan=False)) == raced.results


def test_without_a_race_everything_is_spent(run):
    (only,) = run.results["racing"]["rounds"]
    assert run.results["racing"]["share"] == 1.0 and run.results["racing"]["tokens"] == run.tokens == only["tokens"]
    assert only["kept"] == only["candidates"] == 30 and run.results["population"]["examples"] == 40


def test_another_seed_draws_other_random_members():
    assert Run("choice", seed=1).results["random_k"]["members"] != Run("choice", seed=0).results["random_k"]["members"]


def test_when_nothing_differs_the_most_general_options_win():
    still = Run("choice", population=Population(0, 24, (1e-9, 2e-9)), top_k=6)
    selection = still.results["selection"]
    assert (selection["sigma"], selection["K"]) == ("all", 6)
    assert selection["members"] == [0, 1, 2, 3, 4, 5]
    assert still.results["ties"]["tied_candidates"] == 24 and still.results["ties"]["tied_inside_k"] == 6
    best = still.results["randopt"]["6"]
    assert (best["difference"], best["difference_interval"], best["p_value"]) == (0.0, [0.0, 0.0], 1.0)


def test_one_vote_and_everyone_votes():
    one = Run("choice", top_k=1)
    assert list(one.results["randopt"]) == ["1"] and one.results["selection"]["K"] == 1
    small = Population(5, 4, (0.1, 0.4, 0.8))
    everyone = Run("choice", population=small, top_k=4)
    # No sigma has four candidates, so only the pool of all can field four members; the random ensemble has the same members.
    assert [option["value"] for option in everyone.results["selection"]["candidates"]["sigma"]] == ["all"]
    assert sorted(everyone.results["random_k"]["members"]) == sorted(everyone.results["selection"]["members"]) == [0, 1, 2, 3]


@pytest.mark.parametrize("top_k_value", [0, 31])
def test_more_votes_than_candidates_are_refused(top_k_value):
    with pytest.raises(ValueError, match=f"top_k {top_k_value}: between 1 and the population's 30"):
        Run("choice", top_k=top_k_value)


def test_a_saved_ensemble_votes_as_in_the_run(run, tmp_path):
    ensemble = Ensemble(POPULATION, run.evaluation.members, run.noise, run.params, run.evaluation.scores)
    ensemble.save(tmp_path / "ensemble.json")
    loaded = Ensemble.load(tmp_path / "ensemble.json")
    prepared = run.engine.prepare(run.splits.test, run.task.templates[0])
    compared, by_question = compare_to_base(run.engine, loaded, prepared)
    for name, scores in by_question.items():
        np.testing.assert_array_equal(scores, run.evaluation.by_question[name])
    compared = to_json(compared)
    for k, entry in compared["randopt"].items():
        expected = run.results["randopt"][k]
        assert entry == {key: value for key, value in expected.items() if key in entry} | {"search_tokens": 0}
    assert compared["base"] == {key: value for key, value in run.results["base"].items() if key != "prompt"}

    answers = run.answers(run.evaluation.members, "test")
    predictions = predict(run.engine, loaded, prepared)
    scores = [run.task.score(p.answer, p.example) for p in predictions]
    np.testing.assert_array_equal(scores, run.vote_scores(answers, "test"))
    for b, prediction in enumerate(predictions):
        given = [row[b].lower() for row in answers if row[b] is not None]
        assert sum(prediction.votes.values()) == len(given)
        winner = 0 if prediction.answer is None else given.count(prediction.answer.lower())
        assert prediction.share == winner / len(loaded)
        assert prediction.answer is None or prediction.votes[prediction.answer] == winner == max(prediction.votes.values())


def test_members_vote_by_the_rule_of_the_run_and_controls_by_majority(monkeypatch):
    leads = VoteRule("", lambda scores: np.where(np.arange(len(scores)) == 0, 1.0, 0.0))
    monkeypatch.setitem(VOTE_RULES, "the best decides", leads)
    majority, led = Run("choice"), Run("choice", vote="the best decides")
    assert len({entry["accuracy"] for entry in led.results["randopt"].values()}) == 1
    assert len({option["accuracy"] for option in led.results["selection"]["candidates"]["K"]}) == 1
    for control in ("random_k", "self_consistency"):
        assert led.results[control]["curve"] == majority.results[control]["curve"]
    prepared = led.engine.prepare(led.splits.test, led.task.templates[0])
    ensemble = Ensemble(POPULATION, led.evaluation.members, led.noise, led.params, led.evaluation.scores, "the best decides")
    assert [p.answer for p in predict(led.engine, ensemble, prepared)] == list(led.answers(led.evaluation.members[:1], "test")[0])


def test_k_curve():
    assert [k_curve(k) for k in (1, 2, 3, 5, 8, 50, 120)] == [
        (1,),
        (1, 2),
        (1, 2, 3),
        (1, 2, 5),
        (1, 2, 5, 8),
        (1, 2, 5, 10, 20, 50),
        (1, 2, 5, 10, 20, 50, 100, 120),
    ]


def test_pools_rank_within_each_sigma_and_break_ties_by_index():
    population = Population(0, 9, (0.1, 0.2, 0.3))
    scores = np.array([0.5, 0.9, 0.1, 0.5, 0.2, 0.1, 0.7, 0.9, 0.1])
    assert {name: members.tolist() for name, members in pools(population, scores, 2).items()} == {
        "all": [1, 7],
        0.1: [6, 0],
        0.2: [1, 7],
        0.3: [2, 5],
    }
    assert pools(population, scores, 4).keys() == {"all"}
    np.testing.assert_array_equal(pools(population, scores, 4)["all"], top_k(scores, 4))
    pairs = Population(0, 8, (0.1, 0.2), antithetic=True)
    assert sorted(pools(pairs, np.zeros(8), 4)[0.2].tolist()) == [2, 3, 6, 7]


def test_ties_go_to_the_first_option():
    def best(values, accuracies):
        return best_option([Option(*pair) for pair in zip(values, accuracies, strict=True)])

    assert best(["all", 0.1, 0.2], [0.5, 0.7, 0.7]) == 0.1
    assert best([8, 5, 2, 1], [0.5, 0.5, 0.5, 0.5]) == 8


def test_tie_summary_counts_inside_and_outside():
    scores = np.array([0.9, 0.5, 0.5, 0.5, 0.1])
    assert tie_summary(scores, np.array([0, 1]), np.arange(5)) == Ties(score_at_k=0.5, tied_candidates=3, tied_inside_k=1)
    assert tie_summary(scores, np.array([0, 1]), np.array([0, 1, 4])) == Ties(score_at_k=0.5, tied_candidates=1, tied_inside_k=1)
