"""The report of a value network: verdicts that never overclaim, a page that is complete, offline and safe. Nothing is trained here."""

import json
import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from matplotlib.image import imread
from support.ivl_run import compared, config, evaluation, looks, results, statistics, system, write_run

from perturbjax.cli.app import COMMANDS
from perturbjax.cli.arguments import parse
from perturbjax.errors import InputError
from perturbjax.ivl.caveats import caveats
from perturbjax.ivl.config import Bases, Config, Data, Value
from perturbjax.ivl.headline import headline
from perturbjax.ivl.report import map_lines, write_report
from perturbjax.ivl.results import VALUE_ALONE, WITH_VALUE, TokenChanges, read_evaluation, read_results
from perturbjax.ivl.results_table import results_table
from perturbjax.records import to_json
from perturbjax.report import Source
from perturbjax.report.page import reproduce_command
from perturbjax.train.config import Training

EVALUATIONS = {
    "larger": evaluation(),
    "gated": evaluation(
        "larger-gated", 24, 20, (-0.05, 0.17), 0.4, alpha=0.5, gate=1.5, vocabulary=None, changes=TokenChanges(1400, 0.05, 0.83)
    ),
    "other": evaluation("other-1.5b", 30, 41, (-0.3, -0.05), 0.01, vocabulary="exact_first", map_statistics=statistics()),
}


def with_outcome(right, base, interval, p_value, alone=9):
    """The results with another outcome beside the training base."""
    whole = results()
    systems = {WITH_VALUE: compared(right, base, interval, p_value), VALUE_ALONE: compared(alone, base, (-0.2, 0.1), 0.5)}
    return replace(whole, entries=replace(whole.entries, base=system(base), systems=systems))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = write_run(tmp_path_factory.mktemp("run"), results(), config(), EVALUATIONS)
    write_report(path)
    return path


class Page(HTMLParser):
    """What a browser would load, the headings, and whether tags close."""

    def __init__(self):
        super().__init__()
        self.loads, self.open, self.text, self.headings = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open and self.open[-1] in ("h1", "h2", "h3", "h4"):
            self.headings.append(data)


def read_page(path):
    page = Page()
    page.feed((path / "report.html").read_text(encoding="utf-8"))
    page.close()
    assert not page.open
    return page, re.sub(r"\s+", " ", "".join(page.text).replace("\u00a0", " "))


@pytest.mark.parametrize(
    ("interval", "p_value", "title", "words"),
    [
        ((0.01, 0.2), 0.01, "The value network helped its base", "more than chance explains"),
        ((-0.2, -0.01), 0.01, "The value network hurt its base", "more than chance explains"),
        ((-0.05, 0.1), 0.4, "No clear effect of the value network on its base", "not clearly different from zero"),
        ((0.01, 0.2), 0.06, "No clear effect of the value network on its base", "exact test"),
    ],
)
def test_verdicts_and_nulls_are_worded_as_what_they_are(interval, p_value, title, words):
    found = with_outcome(20, 14, interval, p_value)
    shown = headline(found)
    assert shown.title == title == results_table(found).splitlines()[0]
    assert shown.verdict == found.entries.with_value.verdict and words in shown.sentences[0]
    assert "180,000 tokens of training" in shown.sentences[-1] and "28,311,552 parameters" in shown.sentences[-1]
    assert "adds nothing" not in shown.sentences[1]
    few = caveats(found, config(), ())[0]
    assert few.startswith("With 64 test questions" if "No clear" in title else "64 test questions are few")


def test_a_value_network_that_needs_no_base_is_named_in_the_title():
    shown = headline(with_outcome(30, 14, (0.1, 0.4), 0.001, alone=31))
    assert shown.title == "The value network helped its base, but did as well alone"
    assert "adds nothing that can be seen" in shown.sentences[1]
    assert shown.title != headline(with_outcome(30, 14, (0.1, 0.4), 0.001, alone=29)).title


@pytest.mark.parametrize(
    ("names", "end"),
    [
        ((), "base"),
        (("larger",), "; it helped larger-360m"),
        (("gated",), "; no clear effect on larger-gated"),
        (("other",), "; it hurt other-1.5b"),
        (("larger", "gated"), "; it helped in 1 of 2 evaluations of other bases"),
        (("gated", "gated"), "; no clear effect on other bases"),
        (("larger", "gated", "other"), "; it helped in 1 of 3 evaluations of other bases and hurt in 1"),
    ],
)
def test_other_bases_are_in_the_title_whatever_came_out(names, end):
    shown = headline(results(), [EVALUATIONS[name] for name in names])
    assert shown.title.startswith("The value network helped its base") and shown.title.endswith(end)
    assert len(shown.sentences) == 3 + len(names)
    if names == ("larger", "gated"):
        assert "(alpha 0.5, gate 1.5 nats)" in shown.sentences[3] and "no clear effect there" in shown.sentences[3]


def test_many_evaluations_are_counted_and_those_of_the_training_base_are_no_other_bases():
    shown = headline(results(), [evaluation(), evaluation(), *EVALUATIONS.values()])
    assert "Of 5 evaluations of other bases: it helped in 3, it hurt in 1, no clear effect in 1." in shown.sentences
    own = replace(evaluation(), entries=replace(evaluation().entries, model=results().model))
    assert headline(results(), [own]) == headline(results())
    assert any("No other base was measured" in caveat for caveat in caveats(results(), config(), [own]))


def test_further_systems_are_named_too():
    whole = results()
    proxy = replace(whole, entries=replace(whole.entries, systems={**whole.entries.systems, "proxy": compared(41, 12, (0.3, 0.6), 1e-6)}))
    assert any(sentence.startswith("For comparison, proxy got 64.1 % right") for sentence in headline(proxy).sentences)


def test_caveats_are_those_of_this_very_run():
    plain = caveats(results(), config(), ())
    for words in ("one seed", "chose the step", "stopped early", "3 demonstrations were left out", "5 demonstrations were", "46.9 %"):
        assert any(words in caveat for caveat in plain), words
    last = replace(results(), best_step=200, stopped_early=False)
    other = Config(Bases("a", held_out="b"), Data("chats.jsonl", task="t"), Value("cascade", penalty=0, head="base"), Training())
    without = replace(last, entries=replace(last.entries, systems={WITH_VALUE: last.entries.with_value}))
    said = caveats(without, other, [evaluation(), evaluation(alpha=2.0)])
    for words in ("lower at step 140", "b, which was not trained on", "weight 0", "base's head", "cannot be asked alone", "best-looking"):
        assert any(words in caveat for caveat in said), words
    assert not any("of one task" in caveat or "No other base" in caveat for caveat in said)
    flat = tuple(replace(look, validation={**look.validation, "cross_entropy": 2.6}) for look in looks())
    assert any("does not carry over" in caveat for caveat in caveats(replace(results(), looks=flat), config(), ()))


def test_page_is_self_contained_and_complete(run):
    html = (run / "report.html").read_text(encoding="utf-8")
    page, text = read_page(run)
    assert len(page.loads) == 3 and all(load.startswith("data:image/png;base64,") for load in page.loads)
    assert "<script" not in html and "@import" not in html and "url(" not in html
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
    shown = headline(results(), [EVALUATIONS[name] for name in sorted(EVALUATIONS)])
    for sentence in (shown.title, *shown.sentences, *caveats(results(), config(), list(EVALUATIONS.values()))):
        assert sentence in text
    assert page.headings == [
        shown.title,
        "What was done",
        "Results on the training base",
        "Mind",
        "Other bases",
        "larger-gated: arithmetic, alpha 0.5, gate 1.5 nats",
        "larger-360m: arithmetic",
        "other-1.5b: arithmetic",
        "What the vocabulary map loses",
        "Learning",
        "Trained too long?",
        "Setup and reproduction",
        "Words",
    ]
    for words in (
        "an embedded model, 8-bit blocks, held in float32",
        "11.7 % of the 1,530 tokens",
        "The gate left 83.0 % of the tokens",
        "vocabularies joined by the map exact_first",
        "87.4 % are the same token",
        "numbers of several digits099010",  # cells of a table line
        "93.1 % on exact tokens",
        "400 to train on, 32 for validation",
        "chose the weights of step 140",
        "patience 3",
        '"chapter": "ivl"',
    ):
        assert words in text, words


def test_lenient_column_where_it_differs(run):
    assert read_page(run)[1].count("lenient") == 3  # a header of the training base alone, what it means, a caveat
    table = results_table(results())
    assert max(map(len, table.splitlines())) <= 100 and table.isascii() and "tokens changed" in table


def test_the_command_is_read_as_the_same_settings(run):
    bases = Bases("some where/model", also=("b", "c d"), dtype="float32")
    training = Training(steps=7, learning_rate=3e-5, remat=True)
    for settings in (config(), Config(bases, Data("a.jsonl", task="it's"), Value(penalty=0.1), training)):
        words = shlex.split(reproduce_command("ivl", settings))
        kinds = {name: kind for name, (kind, _) in COMMANDS.items()}
        assert parse(kinds, words[1:], "perturbjax", "") == settings
    (command,) = re.findall(r"<pre>(perturbjax ivl .*?)</pre>", (run / "report.html").read_text())
    assert command == reproduce_command("ivl", config())


def test_second_call_gives_the_same_bytes(run):
    files = [run / "report.html", *sorted((run / "plots").iterdir())]
    assert [file.name for file in files[1:]] == ["effects.png", "gains.png", "learning_curves.png"]
    before = [file.read_bytes() for file in files]
    assert write_report(run) == run / "report.html"
    assert [file.read_bytes() for file in files] == before
    assert not list(run.rglob("*.tmp"))


def test_plots_are_files_with_ink(run):
    for name, low, high in (("learning_curves", 0.01, 0.3), ("gains", 0.01, 0.3), ("effects", 0.01, 0.3)):
        image = imread(run / "plots" / f"{name}.png")
        assert image.shape[1] == 1280 and 400 < image.shape[0] < 1200
        assert low < (image[..., :3].min(axis=-1) < 0.9).mean() < high


def test_the_smallest_run_has_a_report(tmp_path):
    """One look, no validation, a task of choices, no other base, no difference."""
    (look,) = looks(1)
    equal = compared(12, 12, (0.0, 0.0), 1.0)
    entries = replace(results().entries, systems={WITH_VALUE: equal}, changes=None, base=system(12))
    smallest = replace(results(), looks=(replace(look, validation={}),), best_step=look.step, stopped_early=False, entries=entries)
    write_run(tmp_path, smallest, Config(value=Value("linear")))
    write_report(tmp_path)
    page, text = read_page(tmp_path)
    assert "No clear effect of the value network on its base" in text and "chooses between given answers" in text
    assert "Other bases" in page.headings and "None was measured." in text and "cannot be asked alone" in text
    assert "uncertainty is about ±4.7 points" in text  # and not ±0.0
    assert "lenient" not in text and "not measured in validation" in results_table(smallest)


def test_names_are_escaped(tmp_path):
    nasty = "<script>alert(1)</script> & co"
    lost = replace(statistics(mass=False), number_examples=(replace(statistics().number_examples[0], token="<b>1"),))
    each = evaluation(nasty, vocabulary="dtw", map_statistics=lost, task=Source("<i>", nasty))
    write_run(tmp_path, replace(results(), task=Source("<u>", nasty)), config(), {"a": each})
    write_report(tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert not re.search(r"<(script|i|u|b>1)\b", html)
    text = read_page(tmp_path)[1]
    assert f"{nasty}: <i>" in text and "<b>1" in text


@pytest.mark.parametrize(
    ("name", "body", "match"),
    [
        ("results.json", None, "results.json: cannot be read"),
        ("results.json", b"{", "results.json: damaged"),
        ("results.json", b"{}", "results.json: version is missing"),
        ("config.json", b"{}", "config.json: config is missing"),
        ("evaluation-a.json", b"[]", "evaluation-a.json: damaged"),
        ("evaluation-a.json", b'{"version": 1}', "evaluation-a.json: task is missing"),
    ],
)
def test_damaged_runs_are_refused_in_one_line(tmp_path, name, body, match):
    write_run(tmp_path, results(), config(), {"a": evaluation()})
    (tmp_path / name).unlink() if body is None else (tmp_path / name).write_bytes(body)
    with pytest.raises(InputError, match=match) as error:
        write_report(tmp_path)
    assert "\n" not in str(error.value) and not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"version": 9}, "version 9: this release reads 1"),
        ({"best_step": 7}, "best_step 7: looks has none"),
        ({"looks": []}, "best_step 140: looks has none"),
    ],
)
def test_results_that_do_not_fit_together_are_refused(tmp_path, change, match):
    path = write_run(tmp_path, results(), config(), {"a": evaluation()}) / "results.json"
    path.write_text(json.dumps(to_json(results()) | change))
    with pytest.raises(InputError, match=match):
        read_results(path)
    content = to_json(evaluation())
    content["entries"]["systems"] = {"other": content["entries"]["systems"][WITH_VALUE]}
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="has no entry for 'with value'"):
        read_evaluation(path)
    path.write_text(json.dumps(to_json(evaluation()) | {"version": 2}))
    with pytest.raises(InputError, match="version 2: this release reads 1"):
        read_evaluation(path)


def test_evaluations_are_read_as_they_were_written(run):
    for name, each in EVALUATIONS.items():
        assert read_evaluation(run / f"evaluation-{name}.json") == each


def test_map_lines_add_up_to_all_tokens():
    total, single, several = map_lines(statistics())
    assert sum(total[1:]) == 49152 and total[3] == round(0.021 * 49152)
    assert single == ("single digits", 20, 0, 0) and several == ("numbers of several digits", 0, 990, 10)
