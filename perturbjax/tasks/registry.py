"""From what a run's ``task`` says to a task."""

import copy
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial

from perturbjax.errors import InputError
from perturbjax.tasks.arc_easy import arc_easy
from perturbjax.tasks.arithmetic import Arithmetic
from perturbjax.tasks.base import Task, Template
from perturbjax.tasks.boolq import boolq
from perturbjax.tasks.countdown import Countdown
from perturbjax.tasks.endings import ENDING_SETS, ending_task
from perturbjax.tasks.gsm8k import Gsm8k
from perturbjax.tasks.jsonl import jsonl_task
from perturbjax.tasks.math500 import Math500
from perturbjax.tasks.mmlu import SUBJECTS, mmlu
from perturbjax.tasks.programs import HumanEval, Mbpp
from perturbjax.tasks.rte import rte
from perturbjax.tasks.sst2 import sst2
from perturbjax.tasks.user_code import UserCode

_TASKS: dict[str, Callable[[], Task]] = {
    "sst2": sst2,
    "boolq": boolq,
    "rte": rte,
    "arc_easy": arc_easy,
    **{name: partial(ending_task, name) for name in ENDING_SETS},
    "gsm8k": Gsm8k,
    "math500": Math500,
    "arithmetic": Arithmetic,
    "countdown": Countdown,
    "mbpp": Mbpp,
    "humaneval": HumanEval,
}

TASK_NAMES: tuple[str, ...] = (*_TASKS, *(f"mmlu:{subject}" for subject in SUBJECTS))
"""Every task that ``load_task`` knows by name."""


def load_task(spec: str, max_new_tokens: int | None = None, argument: str = "task") -> Task:
    """A task from a name (``TASK_NAMES``), a ``path.jsonl``, or a user's code; ``max_new_tokens`` replaces its generation budget.

    Code is named ``module:attribute``, where the working directory counts as a place of modules, or ``path.py:attribute``. The attribute is
    a task, or a class or function that gives one, called with the literals in parentheses, if any: ``./my_task.py:Sums(digits=3)``. The
    task is checked against the protocol, its examples too. ``argument``: what messages call the name, the setting that it is of.

    Raises:
        InputError: one line with what is wrong and what would be right; a budget for a task that generates nothing, too.
    """
    task = _load(spec, argument)
    if max_new_tokens is not None:
        if task.kind != "generation":
            raise InputError(f"`max_new_tokens` {max_new_tokens}: task {task.name} chooses between given answers; leave it out")
        # A copy: a user's task is an object of the user's module.
        task = copy.copy(task)
        task.max_new_tokens = max_new_tokens
    return task


def _load(spec: str, argument: str) -> Task:
    if spec in _TASKS:
        return _TASKS[spec]()
    if spec.endswith(".jsonl"):
        return jsonl_task(spec, argument)
    family, colon, rest = spec.partition(":")
    if family == "mmlu":
        return mmlu(rest, argument)
    if colon:
        return UserCode.parse(spec, argument).load()
    if spec.endswith(".py"):
        raise InputError(f"{argument} {spec!r}: which task of this file? Write its name after a colon: {spec}:my_task")
    names = [*_TASKS, "mmlu:<subject>"]
    near = get_close_matches(spec, names, n=3)
    known = ", ".join([*near, *(name for name in names if name not in near)])
    raise InputError(f"{argument} {spec!r}: unknown task; use one of {known}, a path.jsonl, module:attribute, or path.py:attribute")


def names_code(spec: str) -> bool:
    """Whether loading the task would run a user's code, because it is written ``module:attribute`` or ``path.py:attribute``."""
    if spec in _TASKS or spec.endswith(".jsonl") or spec.partition(":")[0] == "mmlu":
        return False
    try:
        UserCode.parse(spec)
    except InputError:
        return False
    return True


def template_by_name(task: Task, name: str) -> Template:
    """A task's template; an unknown name is an ``InputError`` that lists the names."""
    for template in task.templates:
        if template.name == name:
            return template
    raise InputError(f"template {name!r}: task {task.name} has no such template; use one of {', '.join(t.name for t in task.templates)}")
