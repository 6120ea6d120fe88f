"""The report: verdicts that never overclaim, a table that fits, a page that is complete, offline and safe."""

import copy
import json
import re
import shlex
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.image import imread
from support.numpy_engine import ColorTask, Kind, NumpyEngine, base_params

from perturbjax.errors import InputError
from perturbjax.noise import Candidate, Noise, Population, Rule
from perturbjax.randopt.config import Config, Data, Machine, Search
from perturbjax.randopt.controls import evaluate_run
from perturbjax.randopt.flow import Flow, SearchRecord
from perturbjax.randopt.headline import headline
from perturbjax.randopt.plots import _bins
from perturbjax.randopt.racing import Race, RacingRule
from perturbjax.randopt.report import write_report
from perturbjax.randopt.results import Results
from perturbjax.randopt.results_table import results_table
from perturbjax.randopt.table import write_candidates
from perturbjax.records import from_json, to_json
from perturbjax.report import Source
from perturbjax.report.page import reproduce_command
from perturbjax.runs.config import Base
from perturbjax.tasks.splits import make_splits


def read(results) -> Results:
    """The typed results of a JSON value that a test has changed."""
    return from_json(Results, json.loads(json.dumps(results)), "results.json")


def make_run(path, kind: Kind = "choice", size=24, top_k=5, sigmas=(0.1, 0.4, 0.8), ruined=False, racing: RacingRule = "off"):
    """A run directory, finished but for its report."""
    task, noise, population = ColorTask(kind, count=160), Noise(), Population(1, size, sigmas)
    engine = NumpyEngine(task, base_params(), noise, chunk=size)
    splits = make_splits(task.examples(), 32, 24, 80, 0)
    prepared = engine.prepare(splits.search, task.templates[0])
    outputs = engine.run(population[:], prepared)
    scores = np.zeros_like(outputs.scores) if ruined else outputs.scores
    base = engine.run(Candidate.base(1), prepared).scores[0] * (0 if ruined else 1)
    race = Race(racing, size, 32, top_k, smallest=8)
    for number, end in enumerate(race.ends):
        stopped = np.setdiff1d(np.arange(size), race.survivors(scores, number))
        scores[stopped, race.columns(number).start : end] = np.nan
    tokens = np.stack([10 * np.sum(~np.isnan(scores[:, race.columns(number)]), axis=1) for number in range(len(race.ends))], axis=1)
    record = SearchRecord(race, scores, base, 320, tokens, 4.0, [0] * len(race.ends))
    model = Source("tiny", "a linear model, quantized to nothing")
    results = to_json(evaluate_run(Flow(engine, task, splits, population, record, top_k, task.templates[0]), model).results)
    data = Data("colors", 32, 24, 80, template="plain")
    config = Config(Base("tiny", "float32"), data, Search(size, top_k, sigmas, racing=racing), Machine(chunk=8))
    devices = {"backend": "cpu", "kinds": ["cpu"], "count": 1, "processes": 1}
    path.mkdir(exist_ok=True)
    (path / "results.json").write_text(json.dumps(results))
    (path / "config.json").write_text(json.dumps({"config": to_json(config), "devices": devices, "versions": {"jax": "0.10.2"}}))
    (path / "metrics.jsonl").write_text('{"chunk": 1, "candidates_per_s": 2.0}\n{"chunk": 2, "candidates_per_s": 4.0}\n')
    write_candidates(path / "candidates.parquet", population.sigma_of(np.arange(size)), scores)
    return results


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    results = make_run(path, "generation")
    write_report(path)
    return path, results


@pytest.fixture
def fresh(run, tmp_path):
    """A copy of the run without its report."""
    path = tmp_path / "run"
    shutil.copytree(run[0], path, ignore=shutil.ignore_patterns("report.html", "plots"))
    return path, copy.deepcopy(run[1])


def with_outcome(results, difference, interval, p_value, against=()):
    """The results with another outcome of the chosen ensemble; ``against`` maps a control to (difference, interval, p)."""
    results = copy.deepcopy(results)
    best = results["randopt"][str(results["selection"]["K"])]
    best.update(difference=difference, difference_interval=list(interval), p_value=p_value)
    results["best_prompt"]["prompt"] = "shifted"
    for name, other in best["against"].items():
        d, i, p = dict(against).get(name, (0.05, (0.01, 0.09), 0.01))
        other.update(difference=d, difference_interval=list(i), p_value=p)
    return results


@pytest.mark.parametrize(
    ("interval", "p_value", "verdict"),
    [
        ((0.01, 0.09), 0.01, "helped"),
        ((-0.09, -0.01), 0.01, "hurt"),
        ((-0.01, 0.09), 0.2, "no clear effect"),
        ((-0.01, 0.09), 0.01, "no clear effect"),  # the interval includes 0
        ((0.0, 0.09), 0.04, "no clear effect"),
        ((0.01, 0.09), 0.06, "no clear effect"),  # few answers changed: the exact test does not agree
        ((-0.09, -0.01), 0.06, "no clear effect"),
    ],
)
def test_verdicts(run, interval, p_value, verdict):
    difference = sum(interval) / 2
    results = with_outcome(run[1], difference, interval, p_value)
    assert read(results).chosen.verdict == verdict
    shown = headline(read(results))
    assert shown.verdict == verdict
    assert shown.title.startswith({"helped": "RandOpt helped", "hurt": "RandOpt hurt", "no clear effect": "No clear effect"}[verdict])
    assert ("not clearly different from zero" in shown.sentences[0]) == (verdict == "no clear effect" and interval[0] <= 0 <= interval[1])
    assert ("exact test" in shown.sentences[0]) == (verdict == "no clear effect" and not interval[0] <= 0 <= interval[1])


def test_a_better_control_is_named_in_the_title_and_in_words(run):
    beaten = {"self_consistency": (-0.03, (-0.05, -0.01), 0.01)}
    for interval, start in (((0.01, 0.09), "RandOpt helped, but "), ((-0.01, 0.05), "No clear effect of RandOpt; ")):
        shown = headline(read(with_outcome(run[1], 0.05, interval, 0.01, beaten)))
        assert shown.title == f"{start}self-consistency of the base did better"
        assert any("beats RandOpt" in sentence and sentence.startswith("Self-consistency") for sentence in shown.sentences)


def test_a_control_that_cannot_be_told_apart_is_named_too(run):
    shown = headline(read(with_outcome(run[1], 0.05, (0.01, 0.09), 0.01, {"best_prompt": (-0.01, (-0.04, 0.02), 0.4)})))
    assert shown.title == "RandOpt helped, but not clearly more than another prompt"
    assert any("more than RandOpt; the two are not clearly different" in sentence for sentence in shown.sentences)
    assert headline(read(with_outcome(run[1], 0.05, (0.01, 0.09), 0.01))).title == "RandOpt helped"


def test_the_base_prompt_is_no_rival_of_itself(run):
    results = with_outcome(run[1], 0.05, (0.01, 0.09), 0.01, {"best_prompt": (0.0, (0.0, 0.0), 1.0)})
    results["best_prompt"]["prompt"] = results["selection"]["search_prompt"]
    shown = headline(read(results))
    assert shown.title == "RandOpt helped"
    assert any("control is the base itself" in sentence for sentence in shown.sentences)


@pytest.mark.parametrize(
    ("value", "chosen", "half", "words"),
    [
        (0.1, 0.9, 0.05, "could not rank its candidates (reliability 0.10, at least 0.3 is required)"),
        (0.77, 0.863, 0.05, "-1.3 points on the base. That is a plateau"),  # mean .815, best .863, base .865: .852 without luck
        (0.9, 0.885, 0.05, "+1.3 points on the base. That is less than 80 test questions can show."),
        (0.9, 0.885, 0.01, "+1.3 points on the base. The test split does not bear that out."),
    ],
)
def test_no_effect_comes_with_its_reason(run, value, chosen, half, words):
    results = with_outcome(run[1], 0.0, (-half, half), 1.0)
    results["randopt"][str(results["selection"]["K"])]["members_search_mean"] = chosen
    results["reliability"]["population"]["value"] = value
    results["population"].update(mean_score=0.815, base_search_score=0.865)
    results["racing"]["rounds"][-1]["base_score"] = 0.865
    assert any(words in sentence for sentence in headline(read(results)).sentences)
    table = results_table(read(results))
    assert words in " ".join(table.split()) and max(map(len, table.splitlines())) <= 100
    helped = with_outcome(results, 0.05, (0.01, 0.09), 0.01)
    assert "rank its candidates" not in " ".join(headline(read(helped)).sentences)


@pytest.mark.parametrize("lenient", [False, True])
def test_table_fits_and_holds_every_row(run, lenient):
    undecided = dict.fromkeys(("self_consistency", "best_prompt", "random_k"), (0.0, (-0.1, 0.1), 1.0))
    results = with_outcome(run[1], 0.05, (0.01, 0.09), 0.01, undecided)
    if not lenient:
        for entry in (results[name] for name in ("base", "best_prompt", "self_consistency", "random_k")):
            entry["lenient_accuracy"] = entry["accuracy"]
        for entry in results["randopt"].values():
            entry["lenient_accuracy"] = entry["accuracy"]
    results["base"]["tokens"] = 123_456_789
    results["best_prompt"]["prompt"] = "a-template-name-that-is-longer-than-any-column"
    results["randopt"]["1"].update(accuracy=1.0, lenient_accuracy=1.0)
    results["randopt"]["1"]["difference_interval"] = [-1.0, -0.99]
    table = results_table(read(results))
    lines = table.splitlines()
    assert max(map(len, lines)) <= 100
    assert table.isascii()
    k = results["selection"]["K"]
    for label in ("base model", "best prompt", f"self-consistency @{k}", f"random ensemble @{k}", "RandOpt @1", "RandOpt @2", "RandOpt @5"):
        assert sum(line.startswith(label) for line in lines) == 1, label
    assert sum("(chosen)" in line for line in lines) == 1
    assert ("lenient" in table) == lenient
    base = next(line for line in lines if line.startswith("base model"))
    assert f"{100 * results['base']['accuracy']:.1f} %" in base
    for word in ("throughput", "efficiency", "ties at rank K", "candidates/s"):
        assert word in table


class Page(HTMLParser):
    """What a browser would load, and whether tags close."""

    def __init__(self):
        super().__init__()
        self.loads, self.open, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read_page(path):
    page = Page()
    page.feed((path / "report.html").read_text(encoding="utf-8"))
    page.close()
    assert not page.open
    return page, re.sub(r"\s+", " ", "".join(page.text).replace("\u00a0", " "))


def test_page_is_self_contained_and_complete(run):
    path, results = run
    html = (path / "report.html").read_text(encoding="utf-8")
    page, text = read_page(path)
    assert len(page.loads) == 3 and all(load.startswith("data:image/png;base64,") for load in page.loads)
    assert "<script" not in html and "@import" not in html and "url(" not in html
    assert 'name="viewport"' in html
    shown = headline(read(results))
    for sentence in (shown.title, *shown.sentences):
        assert sentence in text
    for row in (results["base"], *results["randopt"].values()):
        assert f"{100 * row['accuracy']:.1f} %" in text
    for words in (
        "colors",
        "a linear model, quantized to nothing",
        "32 search, 24 select, 80 test",
        "0.1, 0.4, 0.8",
        "gaussian",
        "median 3",
    ):
        assert words in text


def test_command_reproduces_the_settings(run):
    path, _ = run
    (command,) = re.findall(r"<pre>(perturbjax randopt .*?)</pre>", (path / "report.html").read_text())
    words = shlex.split(command)
    given = dict(zip(words[2::2], words[3::2], strict=True))
    assert given["--seed"] == "0" and given["--sigmas"] == "0.1,0.4,0.8" and given["--population"] == "24"
    assert not {"--rank", "--rules", "--antithetic", "--max-new-tokens", "--chunk", "--out"} & set(words)


def test_the_command_repeats_flags_and_rules():
    search = Search(antithetic=True, rank=4, rules=(Rule("norm|bias", None), Rule("embed", "rms")))
    words = shlex.split(reproduce_command("randopt", Config(search=search)))
    assert words[:2] == ["perturbjax", "randopt"] and "--antithetic" in words and "False" not in words
    assert words[words.index("--rules") + 1] == "norm|bias=exclude,embed=rms"
    assert words[words.index("--rank") + 1] == "4"


def test_plots_are_files_with_ink(run):
    path, _ = run
    for name in ("score_distribution", "accuracy_by_k", "share_at_or_above_base"):
        image = imread(path / "plots" / f"{name}.png")
        assert image.shape[1] == 1280 and 400 < image.shape[0] < 1200
        assert 0.01 < (image[..., :3].min(axis=-1) < 0.9).mean() < 0.6


def test_second_call_gives_the_same_bytes(run):
    path, _ = run
    files = [path / "report.html", *sorted((path / "plots").iterdir())]
    before = [file.read_bytes() for file in files]
    assert write_report(path) == path / "report.html"
    assert [file.read_bytes() for file in files] == before
    assert not [file for file in path.rglob("*") if file.name.endswith(".tmp")]


def test_names_are_escaped(fresh):
    tmp_path, results = fresh
    results["task"]["source"] = "<script>alert(1)</script> & co"
    (tmp_path / "results.json").write_text(json.dumps(results))
    write_report(tmp_path)
    assert "<script" not in (tmp_path / "report.html").read_text()
    assert "<script>alert(1)</script> & co" in read_page(tmp_path)[1]


@pytest.mark.parametrize(
    "shape",
    [
        {"size": 1, "top_k": 1, "sigmas": (0.3,)},
        {"size": 2, "top_k": 2},
        {"ruined": True},
        {"size": 24, "top_k": 12, "sigmas": (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)},
    ],
    ids=["one candidate", "fewer candidates than sigmas", "all scores zero", "eight sigmas"],
)
def test_extreme_runs_have_a_report(tmp_path, shape):
    results = make_run(tmp_path, **shape)
    write_report(tmp_path)
    assert headline(read(results)).title in read_page(tmp_path)[1]
    assert max(map(len, results_table(read(results)).splitlines())) <= 100


@pytest.mark.parametrize("rule", ["halving", "bounds"])
def test_a_raced_run_shows_its_race(tmp_path, rule):
    results = make_run(tmp_path, racing=rule, sigmas=(0.05, 0.3, 3.0))
    racing = results["racing"]
    assert len(racing["rounds"]) == 3 and racing["share"] < 1
    write_report(tmp_path)
    page, text = read_page(tmp_path)
    assert len(page.loads) == 4
    image = imread(tmp_path / "plots" / "racing.png")
    assert image.shape[1] == 1280 and 0.01 < (image[..., :3].min(axis=-1) < 0.9).mean() < 0.7
    first, last = racing["rounds"][0], racing["rounds"][-1]
    assert f"all answered the same 8 questions, and {last['candidates']} of them, chosen along the way, all 32" in text
    assert f"Rule {rule}: {racing['tokens']:,} tokens, {100 * racing['share']:.1f} % of the {racing['full_tokens']:,}" in text
    assert "On the first 8 search questions the base got" in text and "On the search split the base got" not in text
    assert ("lost with probability at most 10.0 %" in text) == (rule == "bounds")
    for row in racing["rounds"]:
        assert f"{100 * row['kept_mean_score']:.1f} %" in text
    assert "best of all sigmas" in text
    table = results_table(read(results))
    assert f"{rule}: 24, {racing['rounds'][1]['candidates']}, {last['candidates']} candidates up to question 8, 16, 32" in table
    assert f"{100 * racing['share']:.1f} % of asking every candidate everything" in table
    assert "at or above the base on the first 8 search questions" in table
    assert max(map(len, table.splitlines())) <= 100 and table.isascii()
    assert first["candidates"] == 24
    (command,) = re.findall(r"<pre>(perturbjax randopt .*?)</pre>", (tmp_path / "report.html").read_text())
    assert f"--racing {rule}" in command


def test_a_run_without_a_race_does_not_speak_of_one(run):
    path, results = run
    _, text = read_page(path)
    assert "race" not in text and not (path / "plots" / "racing.png").exists()
    assert "On the search split the base got" in text
    assert "racing" not in results_table(read(results)) and "at or above the base on the search split" in results_table(read(results))
    assert "--racing off" in (path / "report.html").read_text()


def test_nonfinite_candidates_and_ties_are_said(fresh):
    tmp_path, results = fresh
    results["population"]["nonfinite"] = 3
    results["ties"] = {"score_at_k": 0.75, "tied_candidates": 9, "tied_inside_k": 2}
    (tmp_path / "results.json").write_text(json.dumps(results))
    write_report(tmp_path)
    text = read_page(tmp_path)[1]
    assert "3 candidates gave NaN" in text
    assert "9 candidates share the search score of the last voter (75.0 %) and only 2 of them vote" in text


@pytest.mark.parametrize(
    ("name", "body", "match"),
    [
        ("results.json", None, "results.json: cannot be read"),
        ("results.json", b"{", "results.json: damaged"),
        ("results.json", b"{}", "results.json: version is missing"),
        ("config.json", b"{}", "config.json: config is missing"),
        ("candidates.parquet", b"PAR1", "candidates.parquet: cannot be read"),
        ("candidates.parquet", None, "candidates.parquet: cannot be read"),
        ("metrics.jsonl", b"nonsense\n", "metrics.jsonl: damaged"),
    ],
)
def test_damaged_runs_are_refused_in_one_line(fresh, name, body, match):
    tmp_path, _ = fresh
    (tmp_path / name).unlink() if body is None else (tmp_path / name).write_bytes(body)
    with pytest.raises(InputError, match=match) as error:
        write_report(tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "report.html").exists()


def test_metrics_may_be_missing(fresh):
    tmp_path, _ = fresh
    (tmp_path / "metrics.jsonl").unlink()
    write_report(tmp_path)
    assert "chunks" not in read_page(tmp_path)[1]


def test_bins_are_whole_steps_centered_on_the_possible_scores():
    edges = _bins(np.array([0.0, 3 / 16, 1.0]), 16)
    np.testing.assert_allclose(edges, (np.arange(18) - 0.5) / 16)
    counts, _ = np.histogram(np.arange(17) / 16, edges)
    assert counts.tolist() == [1] * 17
    alone = _bins(np.array([0.5, 0.5]), 16)
    assert len(alone) == 13 and np.histogram([0.5], alone)[0].sum() == 1
    many = _bins(np.array([0.0, 1.0]), 1000)
    assert len(many) <= 42 and many[0] < 0 and many[-1] > 1
