"""Halving over sigmas: against a loop in plain Python; in any chunks, killed and resumed; sigmas with rare winners; a whole run."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.chapter import call
from support.cli_tiny import search_arguments, write_questions
from support.search_fakes import FakeEngine, prepare

from perturbjax import randopt
from perturbjax.cli import main
from perturbjax.errors import InputError
from perturbjax.inference.outputs import Outputs
from perturbjax.noise import Population, Subset
from perturbjax.randopt.loop import search
from perturbjax.randopt.racing import Race
from perturbjax.randopt.results import HalvedResults, read_results
from perturbjax.randopt.setup import reopen_ensemble
from perturbjax.randopt.sigma_halving import SigmaHalving
from perturbjax.randopt.table import open_state
from perturbjax.runs.files import MetricsLog
from perturbjax.runs.state import RunState

SIGMAS = (0.1, 0.2, 0.3, 0.4, 0.5)


def population_of(halving: SigmaHalving) -> Population:
    return Population(0, halving.whole, SIGMAS[: halving.sigmas], halving.antithetic)


def by_hand(halving: SigmaHalving, score) -> list[int]:
    """The candidates in order, one by one; ``score`` gives the mean score of an index."""
    population = population_of(halving)
    of_sigma = {
        sigma: [i for i in range(len(population)) if population.sigma_of([i])[0] == np.float32(sigma)] for sigma in population.sigmas
    }
    alive, seen, order = list(population.sigmas), {sigma: [] for sigma in population.sigmas}, []
    for share in halving.shares:
        new = {sigma: of_sigma[sigma][len(seen[sigma]) : len(seen[sigma]) + share] for sigma in alive}
        order += sorted(index for indices in new.values() for index in indices)
        for sigma in alive:
            seen[sigma] += [score(index) for index in new[sigma]]
        worth = {sigma: np.mean(sorted(seen[sigma])[::-1][: -(-len(seen[sigma]) // 4)]) for sigma in alive}
        alive = sorted(sorted(alive, key=lambda sigma: -worth[sigma])[: -(-len(alive) // 2)])
    return order


@pytest.mark.parametrize("halving", [SigmaHalving(2, 16), SigmaHalving(3, 50), SigmaHalving(5, 122, antithetic=True)], ids=str)
def test_candidates_are_those_of_a_loop_by_hand(halving):
    table = np.random.default_rng(halving.sigmas).integers(0, 9, halving.whole).astype(np.float32)
    scores = np.full((halving.candidates, 2), np.nan, np.float32)
    for start, end in zip(np.cumsum((0, *halving.rungs)), np.cumsum(halving.rungs), strict=False):
        known = halving.candidates_of(population_of(halving), scores)
        assert len(known) == end  # no more than what complete rungs decide
        scores[start:end] = table[known.indices[start:end], None] + [-1, 1]
    found = halving.candidates_of(population_of(halving), scores)
    assert found.indices.tolist() == by_hand(halving, lambda index: table[index])
    assert sum(halving.rungs) == halving.candidates and halving.alive[-1] == 1 and min(halving.shares) >= 4
    if halving.antithetic:
        assert (found.indices[::2] + 1 == found.indices[1::2]).all()


@pytest.mark.parametrize("candidates", [24, 25, 31, 48, 1000])
def test_the_smallest_population_is_enough_and_one_less_is_not(candidates):
    for sigmas in (2, 3, 5):
        halving = replace(SigmaHalving(sigmas, 1000), candidates=max(candidates, 4 * sigmas * len(SigmaHalving(sigmas, 1000).alive)))
        assert halving.shares[0] >= 4 and sum(halving.rungs) == halving.candidates
        with pytest.raises(InputError, match=f"`population` .*: {4 * sigmas * len(halving.alive)} are required"):
            SigmaHalving(sigmas, 4 * sigmas * len(halving.alive) - 1)


def test_a_sigma_with_rare_winners_is_kept_and_a_dull_one_is_not():
    halving, kept, generator = SigmaHalving(4, 96), 0, np.random.default_rng(0)
    for _ in range(200):
        # Of 64 questions: dull, dull, mostly ruined with some winners, all ruined. The mean of all would take the first two.
        winners = generator.random(halving.whole) < 0.4
        rates = np.select([np.arange(halving.whole) % 4 == n for n in range(4)], [0.6, 0.6, np.where(winners, 0.85, 0.1), 0.05])
        table = generator.binomial(64, rates) / 64
        scores = np.full((96, 1), np.nan, np.float32)
        for end in np.cumsum(halving.rungs):
            known = halving.candidates_of(population_of(halving), scores).indices[:end]
            scores[:end] = table[known, None]
        (last,) = halving.played(scores)[-1].alive
        kept += last == 2
    assert kept > 160  # two of its first eight candidates are winners in 89 of 100 searches


def test_it_comes_out_the_same_in_any_chunks_and_after_a_kill(tmp_path):
    halving = SigmaHalving(3, 40)
    race, population = Race("off", 40, 8, 3, rungs=halving.rungs), population_of(halving)

    class Engine(FakeEngine):
        def run(self, candidates: Any, prepared: list[int]) -> Outputs:
            return super().run(np.asarray(candidates.index, np.int64), prepared)

    def candidates(scores: np.ndarray) -> Subset:
        return halving.candidates_of(population, scores)

    def stop_after(steps: int):
        def look(table) -> None:
            if np.isfinite(table.scores[:, 0]).sum() >= steps:
                raise KeyboardInterrupt

        return look

    def run(folder: Path, chunk: int, look=lambda _: None) -> tuple[np.ndarray, list[int]]:
        folder.mkdir(exist_ok=True)
        engine = Engine(chunk)
        with open_state(folder / "state", race, {"seed": 0}) as state:
            table = search(engine, candidates, race, prepare, state, MetricsLog(folder / "metrics.jsonl"), look=look)
        return table.scores, engine.seen

    whole, seen = run(tmp_path / "whole", 7)
    assert seen == candidates(whole).indices.tolist() and not np.isnan(whole).any()
    for kill in (13, 27):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / f"{kill}", 6, stop_after(kill))
        again, later = run(tmp_path / f"{kill}", 5)
        np.testing.assert_array_equal(again, whole)
        assert 0 < len(later) < 40


SETTINGS = {"searcher": "halving", "racing": "off", "population": 17, "chunk": 5, "rank": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run whose disk was full in its second rung, and then was not: ``stopped`` and ``run``."""
    folder, commit = tmp_path_factory.mktemp("halving"), RunState.commit
    write_questions(folder / "even.jsonl", 24)

    def full_disk(state: RunState, *rest: Any) -> None:
        if state.step == 3:
            raise OSError(28, "No space left on device")
        commit(state, *rest)

    given = search_arguments(folder / "even.jsonl", folder / "run", **SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunState, "commit", full_disk)
        assert main(given) == 1
    shutil.copytree(folder / "run", folder / "stopped")
    assert main([*given, "--resume"]) == 0
    return folder


def test_a_whole_run_says_who_got_how_many_and_names_the_whole_population(folder):
    run = folder / "run"
    results, scores = read_results(run / "results.json"), randopt.read_scores(run)
    assert isinstance(results, HalvedResults)
    halving = SigmaHalving(2, 17)
    first, last = results.halving
    assert (first.sigmas, first.candidates, last.candidates, halving.rungs) == ((0.01, 0.1), 4, 13, (8, 9))
    assert {s.sigma: s.n for s in results.population.per_sigma} == {sigma: 13 if sigma in last.sigmas else 4 for sigma in (0.01, 0.1)}
    population = Population(0, halving.whole, (0.01, 0.1))
    expected = halving.candidates_of(population, scores.scores)
    table = pq.read_table(run / "candidates.parquet")
    assert table["index"].to_pylist() == scores.index.tolist() == expected.indices.tolist()
    parts, ensemble = reopen_ensemble(run, lambda _: None)
    assert ensemble.population == parts.population == population
    assert tuple(ensemble.members) == results.selection.members[: results.selection.K] and set(ensemble.members) <= set(scores.index)
    assert ensemble.scores is not None
    np.testing.assert_allclose(ensemble.scores, scores.scores[np.searchsorted(scores.index, ensemble.members)].mean(axis=1))
    page = (run / "report.html").read_text()
    assert "Halving over the sigmas" in page and "promoted" in page and "is left; 0.01 had" in page


def test_scores_and_select_take_what_a_stopped_run_has_chosen(folder, tmp_path, capsys):
    stopped, whole = randopt.read_scores(folder / "stopped"), randopt.read_scores(folder / "run")
    assert stopped.asked.any(axis=1).sum() == 13 and stopped.index.tolist() == whole.index.tolist()  # its second rung is known
    np.testing.assert_array_equal(stopped.scores[:13], whole.scores[:13])
    code, out, _ = call(["select", str(folder / "stopped"), "--out", str(tmp_path / "chosen"), "--top-k", "2"], capsys)
    assert code == 0 and "17 candidates, 13 of them answered" in out
    given = search_arguments(folder / "even.jsonl", folder / "run", **SETTINGS | {"searcher": "random"})
    code, _, err = call([*given, "--resume"], capsys)
    assert code == 2 and "--searcher random, the run has halving" in err
