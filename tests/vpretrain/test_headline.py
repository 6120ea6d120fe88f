"""What the table and the page say of a designer that does nothing, and of controls that do as well; figures of arms against NumPy."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from perturbjax.report import Source
from perturbjax.train.problem import Look
from perturbjax.vpretrain.caveats import caveats
from perturbjax.vpretrain.config import Config, Data, Mode
from perturbjax.vpretrain.figures import arm_figures
from perturbjax.vpretrain.headline import headline, idleness, labels
from perturbjax.vpretrain.results import START, VERSION, Measured, Results, Trained
from perturbjax.vpretrain.results_table import results_table

ROWS = 40


def measured(mode: str, level: float, seed: int, updates: int = 0, **changes: Any) -> Measured:
    """An arm whose test rows lose about ``level``."""
    losses = tuple(map(float, level + np.random.default_rng(seed).normal(0, 0.1, ROWS)))
    ends: dict[str, float] = {"loss": level, "alpha": 0.2, "off_true": 0.15, "entropy": 1.0} if updates else {"loss": level}
    figures = ({"step": 0.0, "alpha": 0.06, "predicted": 0.1, "realized": 0.1},) * updates
    look = Look(10, ends, 1.0, 0.1, {"set": level}, 100, 2.0, 50.0, figures)
    made = Measured(VERSION, mode, {"set": losses}, {}, {}, {}, None, () if mode == START else (look,), updates)
    return replace(made, **changes)


def results(mode: Mode = "value", **levels: float) -> Results:
    arms = [measured(START, 2.0, 0)]
    arms += [
        measured(name, level, n, 4 if name in ("value", "random") else 0, drift=0.3) for n, (name, level) in enumerate(levels.items(), 1)
    ]
    trained = Trained("texts", 9, 99, 0, 10, {}, 1000, 100, 50)
    return Results(VERSION, Source("model", "made"), Source("set", "made"), mode, trained, arm_figures(arms, mode, 0))


def own(found: Results, **changes: Any) -> Results:
    return replace(found, arms=tuple(replace(arm, **changes) if arm.mode == found.mode else arm for arm in found.arms))


def test_figures_say_what_a_designer_began_and_ended_with_and_pair_controls_with_it():
    arms = [measured(START, 2.0, 0), measured("plain", 1.5, 1), measured("value", 1.0, 2, 3, drift=0.4), measured("uniform", 1.2, 3)]
    start, plain, value, uniform = arm_figures(arms, "value", 0)
    assert (value.alpha, value.alpha_start, value.off_true, value.drift) == (0.2, 0.06, 0.15, 0.4)
    assert [arm.sets["set"].own_against for arm in (start, plain, value)] == [None] * 3
    against = uniform.sets["set"].own_against
    assert against is not None
    assert against.difference == pytest.approx(np.mean(arms[3].losses["set"]) - np.mean(arms[2].losses["set"]))
    assert uniform.alpha_start is None and uniform.drift is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"alpha": 1e-7, "off_true": 9e-8}, "its gate has shut. There mean alpha is 1e-07, 0.06 before its first update, and 0.0 % of a"),
        ({"alpha": 1e-7, "off_true": None}, "its gate has shut"),  # a run of before off_true
        ({"alpha": 0.004, "off_true": 0.004, "alpha_start": 0.005}, "its gate is all but shut"),
        ({"alpha": 0.4, "off_true": 0.002}, "what it leans to is the true token itself"),
        (
            {"drift": 0.003},
            "The designer hardly moved: on the first rows of the corpus its targets differ from those that it began with by 0.3 %",
        ),
        ({"updates": 0, "skipped": 3}, "never updated (3 updates were skipped, their value was not finite)"),
        ({"updates": 0}, "The designer was never updated: all targets were the true tokens"),
    ],
)
def test_a_designer_that_does_next_to_nothing_is_named_in_the_table_and_on_the_page(changes, said):
    found = own(results(plain=1.5, value=1.0), **changes)
    sentence = idleness(found.own)
    assert (sentence is None) == (said is None)
    if sentence is not None and said is not None:
        assert said in sentence and sentence in headline(found).sentences
        assert said[:60] in " ".join(results_table(found).split())
    assert max(map(len, results_table(found).splitlines())) <= 100


def test_an_arm_without_a_designer_is_not_said_to_have_one():
    found = results("uniform", plain=1.5, uniform=1.4, value=1.3)
    assert idleness(found.own) is None and "designer  " not in results_table(found)
    assert not any("The designer sees" in sentence for sentence in caveats(found, Config(data=Data("texts", ("set",)))))


def test_a_random_direction_that_does_as_well_is_said_to():
    config = Config(data=Data("texts", ("set",)))
    equal, worse = results(plain=1.5, value=1.0, random=1.0), results(plain=1.5, value=1.0, random=1.5)
    said = "it is not shown to come from the feedback"
    assert any(said in sentence for sentence in caveats(equal, config))
    assert not any(said in sentence for sentence in caveats(worse, config))
    assert any("designed targets did clearly better (+0.4" in sentence for sentence in headline(worse).sentences)
    assert any("neither clearly better nor clearly worse" in sentence for sentence in headline(equal).sentences)


def test_sets_of_one_file_name_are_told_apart_by_the_end_of_their_paths():
    paths = ["/x/old/part/a.jsonl", "/x/new/part/a.jsonl", "/x/new/b.txt", "mmlu:law", "a.jsonl"]
    assert list(labels(paths).values()) == ["old/part/a.jsonl", "new/part/a.jsonl", "b.txt", "mmlu:law", "a.jsonl"]
    assert labels(["./a.jsonl", "a.jsonl"]) == {"./a.jsonl": "a.jsonl", "a.jsonl": "a.jsonl"} and labels([]) == {}
    found = results(plain=1.5, value=1.0)
    doubled = tuple(replace(arm, sets=dict.fromkeys(paths[:2], arm.sets["set"])) for arm in found.arms)
    found = replace(found, arms=doubled)
    assert headline(found).title.endswith(", on old/part/a.jsonl") and "test rows of new/part/a.jsonl" in headline(found).sentences[1]
    table = results_table(found)
    assert "\nold/part/a.jsonl  " in table and "\nnew/part/a.jsonl  " in table


def test_several_sets_have_a_sentence_each_and_the_title_names_the_first():
    found = results(plain=1.5, value=1.0, uniform=1.2)
    doubled = tuple(replace(arm, sets={"set": arm.sets["set"], "folder/other.jsonl": arm.sets["set"]}) for arm in found.arms)
    shown = headline(replace(found, arms=doubled))
    assert shown.title.endswith("plain pretraining, on set")
    assert [sentence.partition(" the loss")[0] for sentence in shown.sentences[:2]] == [
        "On 40 test rows of set",
        "On 40 test rows of other.jsonl",
    ]
    assert any("uniform smoothing, on set, ended" in sentence for sentence in shown.sentences)


def test_an_effect_is_better_or_worse_in_words():
    assert "nats worse (95 % interval of the gain -0.5" in headline(results(plain=1.0, value=1.5)).sentences[0]
    assert "nats better (95 % interval of the gain +0.4" in headline(results(plain=1.5, value=1.0)).sentences[0]
