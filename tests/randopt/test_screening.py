"""A search of candidates that a gradient chose: against a loop over dense noise; killed and resumed; damaged; read by what comes after."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from support.chapter import call
from support.cli_tiny import MODEL, search_arguments, search_settings, write_questions
from support.configs import config_of

from perturbjax import randopt
from perturbjax.cli import main
from perturbjax.errors import InputError
from perturbjax.inference.log_odds import GRADIENT_TOKENS, log_odds, objective_gradient, right_choices
from perturbjax.noise import Candidate, Population, Subset, perturb, scales
from perturbjax.randopt import screening as stage
from perturbjax.randopt.reselection import reselect
from perturbjax.randopt.results import Results, ScreenedResults, read_results
from perturbjax.randopt.screened import Screening, read_screening
from perturbjax.randopt.screening import choose_within_sigmas, in_turn
from perturbjax.randopt.screening_summary import difference_within
from perturbjax.randopt.screening_words import difference_words
from perturbjax.randopt.setup import Parts, load_parts, make_engine, reopen_ensemble, with_candidates
from perturbjax.records import from_json
from perturbjax.runs.console import SILENT
from perturbjax.runs.rundir import RunDirectory
from perturbjax.runs.state import RunState
from perturbjax.searchers import Cost
from perturbjax.tree import derived_seed, digest, leaf_paths

SETTINGS = {"searcher": "screen", "screened": 26, "antithetic": True, "rank": 2, "population": 9}
COMPARED = ("candidates.parquet", "ensemble.json", "test.parquet")


def arguments(folder: Path, out: Path, **changes: object) -> list[str]:
    return search_arguments(folder / "even.jsonl", out, **{**SETTINGS, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("screening")
    write_questions(folder / "even.jsonl", 24)
    assert main(arguments(folder, folder / "run")) == 0
    return folder


@pytest.fixture(scope="module")
def parts(folder) -> Parts:
    found, _ = reopen_ensemble(folder / "run", lambda _: None)
    return with_candidates(found, folder / "run")


@pytest.fixture(scope="module")
def screening(folder, parts) -> Screening:
    found = read_screening(RunDirectory(folder / "run"), parts.config.search)
    assert found is not None
    return found


def test_what_is_run_are_those_of_the_highest_products_with_dense_noise_and_others(parts, screening):
    engine = make_engine(parts)
    batch = engine.prepare(parts.splits.search, parts.template, GRADIENT_TOKENS)
    value, gradient = objective_gradient(parts.model.params, parts.model.config, batch, "log_odds")
    base = engine.run(Candidate.base(1), engine.prepare(parts.splits.search, parts.template))
    assert value == pytest.approx(float(log_odds(base.log_probs, right_choices(parts.splits.search)).mean()), rel=1e-4)
    leaves, slope, leaf_scales = leaf_paths(parts.model.params), leaf_paths(gradient), scales(parts.model.params, parts.noise)

    perturbed = jax.jit(lambda candidate: perturb(parts.model.params, candidate, parts.noise, leaf_scales))

    def product(index: int) -> float:
        theta = leaf_paths(perturbed(parts.population[index]))
        steps = ((np.asarray(theta[path], np.float64) - np.asarray(leaf), slope[path]) for path, leaf in leaves.items())
        return sum(float(np.vdot(step, np.asarray(of))) for step, of in steps)

    dense = np.array([product(index) for index in range(26)])
    chosen, drawn = np.array(screening.indices), np.array(screening.drawn)
    np.testing.assert_allclose(screening.products, dense[chosen], rtol=2e-3, atol=2e-3 * dense.std())
    sigmas = parts.population.sigma_of(np.arange(26))
    for sigma, count, at_random, deviation in zip(parts.population.sigmas, (5, 4), (1, 1), screening.deviations, strict=True):
        mine = np.flatnonzero(sigmas == np.float32(sigma))
        first = mine[np.argsort(-dense[mine], kind="stable")[: count - at_random]]
        assert set(first) == set(chosen[~drawn & (sigmas[chosen] == np.float32(sigma))])
        assert (drawn & (sigmas[chosen] == np.float32(sigma))).sum() == at_random
        assert deviation == pytest.approx(dense[mine].std(), rel=1e-3)
    cost = Cost.of(parts.model.config, parts.model.params, parts.noise)
    # Antithetic partners share their noise, and a product with it.
    assert screening.tokens == round(3 * batch.prompt_tokens + 13 * cost.products(1) / cost.forward(1))
    assert screening.numbers == 13 * cost.drawn


def test_files_and_what_comes_after_name_candidates_of_the_whole_population(folder, parts, screening):
    run = folder / "run"
    table, results = pq.read_table(run / "candidates.parquet"), read_results(run / "results.json")
    assert table["index"].to_pylist() == list(screening.indices) and isinstance(results, ScreenedResults)
    np.testing.assert_array_equal(table["sigma"].to_numpy(), parts.population.sigma_of(screening.indices))
    scores = randopt.read_scores(run)
    assert scores.index.tolist() == list(screening.indices) and scores.scores.shape == (9, 4)
    _, ensemble = reopen_ensemble(run, lambda _: None)
    members = results.selection.members[: results.selection.K]
    assert ensemble.population == parts.population and len(ensemble.population) == 26 and tuple(ensemble.members) == members
    assert set(members) <= set(screening.indices)
    everyone = np.random.Generator(np.random.PCG64(derived_seed(0, "random members"))).permutation(26)
    assert results.random_k.members == tuple(everyone[:2])
    # Rebuilt from ensemble.json, the members score what the table says.
    engine = make_engine(parts)
    rebuilt = engine.run(ensemble.candidates, engine.prepare(parts.splits.search, parts.template)).scores
    np.testing.assert_array_equal(rebuilt, scores.scores[np.searchsorted(scores.index, ensemble.members)])
    assert ensemble.scores is not None
    np.testing.assert_allclose(ensemble.scores, rebuilt.mean(axis=1))
    _, again = reselect(run)
    again.save(folder / "again.json")
    assert (folder / "again.json").read_bytes() == (run / "ensemble.json").read_bytes()


def test_results_and_page_say_which_part_did_better_and_what_it_cost(folder, screening):
    run = folder / "run"
    results, scores = read_results(run / "results.json"), randopt.read_scores(run).scores.mean(axis=1, dtype=np.float64)
    assert isinstance(results, ScreenedResults)
    found, drawn = results.screening, np.array(screening.drawn)
    assert (found.screened, found.promising.candidates, found.drawn.candidates) == (26, 7, 2)
    assert found.promising.mean_score == pytest.approx(scores[~drawn].mean()) and found.drawn.best_score == scores[drawn].max()
    assert {*found.promising.members, *found.drawn.members} == set(results.selection.members[: results.selection.K])
    assert results.chosen.search_tokens > results.racing.tokens + found.tokens and results.seconds["screening"] == screening.seconds
    page = (run / "report.html").read_text().replace("\u00a0", " ")
    assert "The screening" in page and difference_words(found).split(",")[0] in page and (run / "plots" / "screening.png").exists()


def test_a_run_without_it_is_what_it_was_before_there_was_screening():
    assert issubclass(ScreenedResults, Results) and "screening" not in {*Results.__dataclass_fields__}
    with pytest.raises(InputError, match="screening is missing"):
        from_json(ScreenedResults, json.loads("{}") | dict.fromkeys(Results.__dataclass_fields__), "results.json")


def test_killed_in_the_screening_and_in_the_search_it_ends_the_same(folder, tmp_path, capsys, monkeypatch):
    run, commit, write = tmp_path / "run", RunState.commit, stage.write_screening

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stage, "write_screening", full_disk)
    code, _, err = call(arguments(folder, run, chunk=3), capsys)
    assert code == 1 and "screening 26 candidates by one gradient of 4 search examples; 9 of them are run" in err
    assert not (run / "screening.json").exists() and err.splitlines()[-1].endswith(f"--out {run} --resume")
    code, out, err = call(["scores", str(run), "--out", str(tmp_path / "scores.npz")], capsys)
    assert code == 2 and out == ""
    monkeypatch.setattr(stage, "write_screening", write)
    monkeypatch.setattr(RunState, "commit", lambda state, *rest: full_disk() if state.step else commit(state, *rest))
    assert call([*arguments(folder, run, chunk=3), "--resume"], capsys)[0] == 1
    kept = (run / "screening.json").read_bytes()
    assert randopt.read_scores(run).asked.any(axis=1).sum() == 3
    monkeypatch.setattr(RunState, "commit", commit)
    monkeypatch.setattr(stage, "objective_gradient", None)  # nothing is screened again
    assert call([*arguments(folder, run, chunk=3), "--resume"], capsys)[0] == 0
    assert (run / "screening.json").read_bytes() == kept
    for name in COMPARED:
        assert (run / name).read_bytes() == (folder / "run" / name).read_bytes(), name


def test_a_study_of_random_candidates_does_not_take_it(folder, capsys):
    code, out, err = call(["study", "scaling", str(folder / "run"), "--top-k", "2"], capsys)
    assert (code, out) == (2, "") and "run: its candidates were chosen by searcher screen" in err.splitlines()[-1]


def damage(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text()) | changes
    content["digest"] = digest({name: value for name, value in content.items() if name != "digest"})
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda path: path.unlink(), "screening.json: missing, the saved state is not; restore it, or delete"),
        (lambda path: path.write_text("{"), "screening.json: damaged, not JSON"),
        (
            lambda path: path.write_text(path.read_text().replace('"drawn"', '"draw"')),
            "screening.json: drawn is missing; restore it",
        ),
        (lambda path: path.write_text(path.read_text().replace("true", "false", 1)), "screening.json: damaged, the content does not match"),
        (lambda path: damage(path, identity="sha256:00"), "screening.json: the screening of another run"),
        (lambda path: damage(path, indices=[*range(18, 27)]), "screening.json: indices: 18 to 26 are outside the population's 0 to 25"),
        (lambda path: damage(path, indices=[0] * 9), "screening.json: indices: a list of candidate indices in ascending order"),
        (
            lambda path: damage(path, indices=[1], products=[0.5], drawn=[True]),
            "screening.json: 1 candidates, the settings of the run say 9",
        ),
        (lambda path: damage(path, products=[0.5]), "screening.json: indices, products and drawn: as many of each"),
        (lambda path: damage(path, version=2), "screening.json: version 2: this release reads 1"),
        (lambda path: damage(path, log_odds="much"), 'screening.json: log_odds "much": a finite number is required'),
    ],
)
def test_a_damaged_screening_is_one_line_and_changes_nothing(folder, tmp_path, how, message, capsys):
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    how(run / "screening.json")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, out, err = call([*arguments(folder, run), "--resume"], capsys)
    assert (code, out) == (2, "") and message in err.splitlines()[-1] and "start anew" in err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    with pytest.raises(InputError, match=r"screening\.json"):
        randopt.read_scores(run)


@pytest.mark.parametrize(
    ("changes", "phrase"),
    [
        ({"screened": 28}, "--screened 28, the run has 26"),
        (
            {"searcher": "random", "screened": None, "antithetic": None},
            "--antithetic False, the run has True; --searcher random, the run has",
        ),
    ],
)
def test_a_resume_with_other_settings_is_refused(folder, changes, phrase, capsys):
    settings = {name: value for name, value in (SETTINGS | changes).items() if value is not None}
    code, out, err = call([*search_arguments(folder / "even.jsonl", folder / "run", **settings), "--resume"], capsys)
    assert (code, out) == (2, "") and all(part in err.splitlines()[-1] for part in phrase.split("; "))


def test_a_search_without_screening_is_not_continued_with_it(folder, tmp_path, capsys):
    settings = config_of(model=str(MODEL), task=str(folder / "even.jsonl"), out=tmp_path, **search_settings())
    parts = load_parts(settings, lambda _: None)
    assert not {"searcher", "screened"} & parts.identity.keys()
    RunDirectory(tmp_path / "run").create(parts.identity, {})
    code, _, err = call([*search_arguments(folder / "even.jsonl", tmp_path / "run", searcher="screen", screened=40), "--resume"], capsys)
    assert code == 2 and "--searcher screen, the run has random; --screened 40, the run has None" in err


def test_a_generation_task_is_refused_before_a_model_is_loaded(tmp_path, capsys):
    (tmp_path / "open.jsonl").write_text("".join(f'{{"question": "{n} + {n}?", "answer": "{2 * n}"}}\n' for n in range(24)))
    given = search_arguments(tmp_path / "open.jsonl", tmp_path / "run", searcher="screen", screened=40, model="no such model")
    code, out, err = call(given, capsys)
    assert (code, out) == (2, "") and not (tmp_path / "run").exists()
    said = "--searcher screen: task open has replies that are generated, whose log-odds have no gradient; give a multiple-choice --task"
    assert said in err.splitlines()[-1]


def test_a_gradient_that_is_not_finite_is_refused_and_leaves_nothing(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stage, "objective_gradient", lambda params, *_: (float("nan"), params))
    code, _, err = call(arguments(folder, tmp_path / "run"), capsys)
    assert code == 2 and "--searcher screen: the gradient of the base's log-odds is not finite" in err and not (tmp_path / "run").exists()


def test_one_device_that_is_too_small_says_so(parts, tmp_path, monkeypatch):
    def short(*_: object) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(stage, "objective_gradient", short)
    with pytest.raises(InputError, match="`searcher` screen: one device has no memory for the model, its gradient"):
        stage.screen(parts, make_engine(parts), RunDirectory(tmp_path), SILENT)


def test_every_sigma_has_its_share_and_no_more_than_it_has():
    assert in_turn(7, [9, 1, 9]) == [3, 1, 3] and in_turn(0, [3]) == [0]
    population = Population(0, 8, (0.1, 0.2, 0.3), antithetic=True)  # four pairs: the first sigma has two of them
    chosen, drawn = choose_within_sigmas(np.arange(8.0), population, 7, seed=0)
    assert len(chosen) == 7 and drawn.sum() == 2 and (np.diff(chosen) > 0).all()
    assert np.unique(population.sigma_of(chosen), return_counts=True)[1].tolist() == [3, 2, 2]
    other = choose_within_sigmas(np.arange(8.0), Population(0, 8, (0.1,)), 4, seed=0)
    assert set(other[0][~other[1]]) == {6, 7} and len(choose_within_sigmas(np.zeros(9), Population(0, 9, (0.1,)), 8, 0)[0]) == 8


def test_the_difference_within_sigmas_is_that_of_a_linear_model():
    generator = np.random.default_rng(0)
    sigmas, first = np.array([1, 1, 1, 2, 2, 2, 2, 3], np.float32), np.array([1, 1, 0, 1, 1, 1, 0, 1], bool)
    scores = generator.normal(size=8) + sigmas
    design = np.column_stack([first, *(sigmas == sigma for sigma in (1, 2, 3))]).astype(float)
    (effect, *_), (residual,), *_ = np.linalg.lstsq(design, scores, rcond=None)
    half = 2.7764451 * np.sqrt(residual / 4 * np.linalg.inv(design.T @ design)[0, 0])  # Student's quantile for 8 - 4 degrees of freedom
    found = difference_within(scores, first, sigmas)
    assert found is not None and found[0] == pytest.approx(effect) and found[1] == pytest.approx((effect - half, effect + half))
    assert difference_within(scores[:2], first[1:3], sigmas[:2]) is None and difference_within(scores, first | True, sigmas) is None
    covered = 0
    for _ in range(400):
        low, high = (difference_within(generator.normal(size=8) + 0.5 * first, first, sigmas) or (0, (0, 0)))[1]
        covered += low <= 0.5 <= high
    assert 0.92 < covered / 400 < 0.98


@pytest.mark.parametrize("indices", [[3, 2], [2, 2], [-1, 3], [0, 8], [[1, 2]]])
def test_a_subset_counts_candidates_of_its_population_once_in_order(indices):
    with pytest.raises(ValueError, match=r"^indices"):
        Subset(Population(0, 8), np.array(indices))


def test_a_subset_has_the_candidates_of_its_population():
    whole = Population(seed=5, size=20, sigmas=(0.1, 0.2), antithetic=True)
    subset = Subset(whole, np.array([3, 4, 11, 17]))
    for item in ([0, 2], np.array([3, 1]), slice(1, 3), -1, 2):
        expected = whole[subset.indices[item]]
        jax.tree.map(np.testing.assert_array_equal, subset[item], expected)
    np.testing.assert_array_equal(subset.sigma_of([1, 3]), whole.sigma_of([4, 17]))
    np.testing.assert_array_equal(subset[:].index, subset.index_of(np.arange(4)))
    assert subset.whole is whole and whole.whole is whole and whole.index_of([3]).tolist() == [3] and subset.sigmas == whole.sigmas
