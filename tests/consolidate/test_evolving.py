"""An evolution strategy on a tiny run: the model of ``searchers.EvolutionStrategy``, its control, stopped and continued."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from support.chapter import call, failing_commits
from support.consolidated import content, contrary_run
from support.toy import one_batch_size

from perturbjax import consolidate
from perturbjax.consolidate import rounds
from perturbjax.consolidate.evolving import ranked
from perturbjax.consolidate.measuring import Asker
from perturbjax.consolidate.merging import Move
from perturbjax.consolidate.results import Results
from perturbjax.consolidate.rounds import Rounds, population_of
from perturbjax.errors import InputError
from perturbjax.noise import Population
from perturbjax.pretrained import load_model
from perturbjax.randopt.ensemble import Ensemble
from perturbjax.randopt.setup import make_engine, reopen_ensemble
from perturbjax.runs.console import SILENT
from perturbjax.searchers import EvolutionStrategy
from perturbjax.searchers.evolution import Step, centred_ranks, rate_of_length, rebuild

ROUNDS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evolve")
    with pytest.MonkeyPatch.context() as patch:
        one_batch_size(patch)
        contrary_run(folder)
        yield folder


def config(folder: Path, out: Path, **settings) -> consolidate.Config:
    return consolidate.Config(folder / "run", by="evolve", out=out, rounds=ROUNDS, **{"lengths": (4.0, 8.0), **settings})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def evolved(folder) -> Results:
    return consolidate.run(config(folder, folder / "evolved"))


@pytest.mark.parametrize("antithetic", [False, True])
def test_a_move_by_ranks_is_the_step_of_an_evolution_strategy(folder, tmp_path, antithetic):
    parts, ensemble = reopen_ensemble(folder / "run", lambda _: None)
    scores, length = np.array([0.1, 0.9, 0.5, 0.5, 0.3, 0.7]), 2.0
    strategy = EvolutionStrategy(parts.model.params, parts.noise, 6, 0.01, rate_of_length(length, 0.01, 6), antithetic, seed=3)
    moves: list[Move] = []
    going = Rounds(Asker(parts, ensemble, make_engine(parts), tmp_path, SILENT), config(folder, tmp_path), (length,), {}, lambda _: None)
    for number in range(3):
        moves.append(Move((ranked(strategy.ask(), np.roll(scores, number)),), length))
        strategy.tell(np.roll(scores, number))
        found = going.model(tuple(moves))
        jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7), found, strategy.params)
    # Whatever was asked before, the same model to the last bit.
    again = going.model(tuple(moves[:2])), going.model(tuple(moves[:1])), going.model(tuple(moves))
    jax.tree.map(np.testing.assert_array_equal, again[2], found)
    jax.tree.map(np.testing.assert_array_equal, going.model(tuple(moves[:2])), again[0])


def test_of_several_sigmas_each_has_ranks_of_its_own():
    part = ranked(Population(0, 6, (0.01, 0.1)), np.array([0.0, 5.0, 0.5, 9.0, 1.0, 7.0]))
    assert part.members == (0, 1, 2, 3, 4, 5)
    np.testing.assert_allclose(np.array(part.weights) / 2**0.5, [-0.5, -0.5, 0.0, 0.5, 0.5, 0.0])


def test_the_rounds_are_those_of_a_strategy_and_the_control_takes_as_many(folder, evolved):
    assert [row.name for row in evolved.rows] == ["base", "vote", "evolved", "random ranks", "consolidated"]
    tried = [(each.arm, each.option, each.control) for each in evolved.gate.tried]
    assert tried == [(arm, f"round {n}", arm == "random ranks") for arm in ("evolved", "random ranks") for n in range(1, ROUNDS + 1)]
    # Base, 3 rounds of 6 candidates and 2 lengths on 4 search questions; 3 rounds on 4 select questions. The control scores no candidates.
    once = evolved.row("base").tokens / 5
    assert evolved.row("evolved").search_tokens == pytest.approx((18 + 6 + 1) * 4 * once + 3 * 4 * once, rel=0.05)
    assert evolved.row("random ranks").search_tokens == pytest.approx((6 + 1) * 4 * once + 3 * 4 * once, rel=0.05)
    assert sorted(path.name for path in (folder / "evolved" / "searches").iterdir()) == [f"evolved-{n}" for n in range(1, ROUNDS + 1)]


def test_the_saved_model_is_where_the_scores_lead(folder, evolved):
    """Round by round: a step of each sigma by the ranks among its own, as ``searchers.evolution`` makes it."""
    assert evolved.saved and evolved.gate.arm == "evolved" and evolved.row("consolidated").difference > 0
    parts, ensemble = reopen_ensemble(folder / "run", lambda _: None)
    lengths, params = evolved.notes[0].rpartition("moves ")[2].split(", "), parts.model.params
    for number in range(1, int(evolved.gate.option.removeprefix("round ")) + 1):
        scores = np.array(json.loads((folder / "evolved" / "measured" / f"search-evolved-round-{number}.json").read_text())["scores"])
        population = population_of(config(folder, folder), ensemble, parts.config.search, number)
        for first, sigma in enumerate(population.sigmas):
            weights = np.zeros(6)
            weights[first::2] = centred_ranks(scores[first::2])
            step = Step(population.seed, sigma, False, rate_of_length(float(lengths[number - 1]), sigma, 6), tuple(weights))
            # A step of one sigma names it alone; the noise numbers are those of the population with both.
            params = rebuild(params, parts.noise, [step])
    saved = load_model(str(folder / "evolved" / "model"), "float32")
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6), saved.params, params)


def test_a_stopped_evolution_ends_the_same(folder, evolved, tmp_path, monkeypatch):
    with failing_commits(3), pytest.raises(KeyboardInterrupt):
        consolidate.run(config(folder, tmp_path / "run"))
    scored = []
    monkeypatch.setattr(rounds, "search", lambda *given, search=rounds.search: scored.append(given[1].seed) or search(*given))
    again = consolidate.run(config(folder, tmp_path / "run", resume=True))
    assert (again.rows, again.gate, again.notes) == (evolved.rows, evolved.gate, evolved.notes) and 1 <= len(scored) < ROUNDS
    measured = [content(at / "measured") for at in (folder / "evolved", tmp_path / "run")]
    assert measured[0] == measured[1]


def test_a_run_of_one_member_is_enough(folder, tmp_path):
    shutil.copytree(folder / "run", tmp_path / "run")
    record = json.loads((tmp_path / "run" / "ensemble.json").read_text())
    ensemble = Ensemble.load(tmp_path / "run" / "ensemble.json")
    Ensemble(ensemble.population, [5], ensemble.noise, record["base_fingerprint"]).save(tmp_path / "run" / "ensemble.json")
    found = consolidate.run(consolidate.Config(tmp_path / "run", by="evolve", rounds=1))
    assert found.row("vote").models == 1 and (tmp_path / "run-evolve").is_dir()
    with pytest.raises(InputError, match="1 member, which is one model already"):
        consolidate.run(consolidate.Config(tmp_path / "run", by="merge"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--population", "3"], "--population 3: at least 4 candidates, two of each sigma, are required"),
        (["--rounds", "0"], "--rounds 0: an integer of at least 1 is required"),
        (["--examples", "4"], "--examples 4: --by evolve does not take it; leave it out"),
        (["--lengths", "0"], "--lengths 0: different numbers above 0 are required"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(folder, tmp_path, capsys, arguments, message):
    code, out, err = call(["consolidate", str(folder / "run"), "--by", "evolve", "--out", str(tmp_path / "x"), *arguments], capsys)
    assert (code, out) == (2, "") and message in err.splitlines()[-1] and not (tmp_path / "x").exists()
