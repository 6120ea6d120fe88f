"""What ``perturbjax tasks`` shows is what the task does."""

import pytest
from support.chapter import call
from support.cli_tiny import write_questions

from perturbjax.tasks import TASK_NAMES, load_task


def shown(arguments: list[str], capsys) -> dict[str, str]:
    code, out, err = call(["tasks", *arguments], capsys)
    assert code == 0 and err == ""
    return {line[:19].strip(): line[19:] for line in out.splitlines()} | {"": out}


def test_names_are_those_of_the_registry(capsys):
    out = shown([], capsys)[""].splitlines()
    assert out[:-2] == [name for name in TASK_NAMES if not name.startswith("mmlu:")] and out[-2] == "mmlu:<subject> (57 of them)"


@pytest.mark.parametrize("reply", [None, "They are {answer}.", "{answer} is near, but it is 3", "no number", "", "\x1b[2J"])
def test_a_reply_is_graded_as_in_a_run(reply, capsys):
    task = load_task("arithmetic")
    example = task.examples()[6]
    reply = None if reply is None else reply.format(answer=example.answer)
    found = shown(["arithmetic", "--example", "7", *([] if reply is None else [f"--reply={reply}"])], capsys)
    assert f"id {example.id}" in found["example"] and found["right answer"] == repr(example.answer)
    for name, strict in (("strict", True), ("lenient", False)):
        answer = task.extract(example.answer if reply is None else reply, example, strict)
        assert found[name].startswith(f"answer {answer!r}, score {task.score(answer, example):g}, ")
        assert found[name].endswith("casts no vote" if answer is None else f"votes as {task.vote_key(answer, example)!r}")
    for template in task.templates:
        out = shown(["arithmetic", "--example", "7", "--template", template.name], capsys)[""]
        prompt = task.prompt(example, template)
        assert all(f"[{message['role']}]\n{message['content']}\n" in out for message in prompt.messages) and prompt.text in out


def test_rows_of_a_file(tmp_path, capsys):
    questions = str(write_questions(tmp_path / "even.jsonl", 3))
    assert shown([questions, "--example", "2"], capsys)["strict"] == "answer 'no', score 1, votes as 'no'"
    assert shown([questions, "--example", "2", "--reply", "yes"], capsys)["strict"] == "answer 'yes', score 0, votes as 'yes'"
    mistakes = {
        ("--reply", "maybe"): "--reply maybe: the answer to this example is one of 'yes', 'no'",
        ("--example", "4"): "--example 4: task even has examples 1 to 3",
        ("--template", "x"): "--template x: task even has no such template; use one of ",
    }
    for words, message in mistakes.items():
        code, out, err = call(["tasks", questions, *words], capsys)
        assert (code, out) == (2, "") and err.startswith(f"perturbjax: error: {message}") and err.count("\n") == 1
    assert "task 'nope': unknown task" in call(["tasks", "nope"], capsys)[2]
