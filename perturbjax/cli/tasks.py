"""``perturbjax tasks``: which tasks there are, how one asks, and what it makes of a reply."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from perturbjax.errors import InputError
from perturbjax.report.words import count, fact_lines
from perturbjax.runs.console import Console

if TYPE_CHECKING:
    from perturbjax.tasks.base import Example, Prompt, Task


@dataclass(frozen=True)
class TasksConfig:
    """List the tasks, or show how one asks and grades: a prompt, and what extract and score make of a reply.

    - their names: perturbjax tasks
    - one of them: perturbjax tasks gsm8k
    - what a reply is worth: perturbjax tasks gsm8k --reply "That makes 7 eggs. #### 7"
    - your own rows or code: perturbjax tasks questions.jsonl; perturbjax tasks "my_task.py:Sums(3)"

    No model is loaded: the chat template that goes around a prompt is the model's."""

    name: Annotated[str | None, tyro.conf.Positional] = None
    """A name, a .jsonl file or module:attribute, as for randopt; a list of the names when left out."""
    template: str | None = None
    """Prompt template, by name; the task's first when left out."""
    example: int = 1
    """Which example, 1 being the first."""
    reply: str | None = None
    """What a model might answer; the right answer alone when left out."""


def run_tasks(config: TasksConfig, console: Console) -> None:
    """Load and show."""
    from perturbjax.tasks import TASK_NAMES, load_task, template_by_name

    if config.name is None:
        subjects = [name for name in TASK_NAMES if name.startswith("mmlu:")]
        for name in (*(name for name in TASK_NAMES if name not in subjects), f"mmlu:<subject> ({len(subjects)} of them)"):
            console.line(name)
        console.line("each explains itself: perturbjax tasks NAME")
        return
    task = load_task(config.name)
    template = task.templates[0] if config.template is None else template_by_name(task, config.template)
    examples = task.examples()
    if not 1 <= config.example <= len(examples):
        raise InputError(f"`example` {config.example}: task {task.name} has examples 1 to {len(examples)}")
    example = examples[config.example - 1]
    reply = example.answer if config.reply is None else config.reply
    if task.kind == "choice" and reply not in example.choices:
        raise InputError(f"`reply` {reply}: the answer to this example is one of {', '.join(map(repr, example.choices))}")
    names = ", ".join(f"{each.name} (shown)" if each is template else each.name for each in task.templates)
    budget = f", at most {task.max_new_tokens} new tokens" if task.kind == "generation" else ""
    facts = [("task", f"{task.name}: {task.source}"), ("kind", task.kind + budget)]
    facts += [("templates", names), ("example", f"{config.example} of {count(len(examples))}, id {example.id}")]
    graded = list(_graded(task, example, reply))
    for line in (*fact_lines(facts), "", *_prompt_lines(task.prompt(example, template)), "", *fact_lines(graded)):
        console.line(line)


def _prompt_lines(prompt: "Prompt") -> Iterator[str]:
    for message in prompt.messages:
        yield f"[{message['role']}]"
        yield message["content"]
    if prompt.text:
        yield "[text after them]" if prompt.messages else "[text]"
        yield prompt.text
    if prompt.choices:
        yield "[choices, by their log-probability]"
        yield ", ".join(map(repr, prompt.choices))


def _graded(task: "Task", example: "Example", reply: str) -> Iterator[tuple[str, str]]:
    yield "right answer", repr(example.answer)
    yield "reply", repr(reply)
    for name, strict in (("strict", True), ("lenient", False)):
        answer = task.extract(reply, example, strict) if task.kind == "generation" else reply
        key = "casts no vote" if answer is None else f"votes as {task.vote_key(answer, example)!r}"
        yield name, f"answer {answer!r}, score {task.score(answer, example):g}, {key}"
