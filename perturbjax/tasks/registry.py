"""From what a run's ``task`` says to a task."""

import copy
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from perturbjax.errors import InputError, one_line
from perturbjax.tasks.arc_easy import arc_easy
from perturbjax.tasks.arithmetic import Arithmetic
from perturbjax.tasks.base import Task, Template
from perturbjax.tasks.boolq import boolq
from perturbjax.tasks.check import check_examples, check_task
from perturbjax.tasks.countdown import Countdown
from perturbjax.tasks.gsm8k import Gsm8k
from perturbjax.tasks.jsonl import jsonl_task
from perturbjax.tasks.mmlu import SUBJECTS, mmlu
from perturbjax.tasks.rte import rte
from perturbjax.tasks.sst2 import sst2

_TASKS: dict[str, Callable[[], Task]] = {
    "sst2": sst2,
    "boolq": boolq,
    "rte": rte,
    "arc_easy": arc_easy,
    "gsm8k": Gsm8k,
    "arithmetic": Arithmetic,
    "countdown": Countdown,
}

TASK_NAMES: tuple[str, ...] = (*_TASKS, *(f"mmlu:{subject}" for subject in SUBJECTS))
"""Every task that ``load_task`` knows by name."""


def load_task(spec: str, max_new_tokens: int | None = None) -> Task:
    """A task from a name (``TASK_NAMES``), a ``path.jsonl``, or a ``module:attribute``; ``max_new_tokens`` replaces its generation budget.

    The attribute is a task, or a class or function without required arguments that gives one; it is checked against the protocol, its
    examples too, and the working directory counts as a place of modules.

    Raises:
        InputError: one line with what is wrong and what would be right; a budget for a task that generates nothing, too.
    """
    task = _load(spec)
    if max_new_tokens is not None:
        if task.kind != "generation":
            raise InputError(f"`max_new_tokens` {max_new_tokens}: task {task.name} chooses between given answers; leave it out")
        # A copy: a user's task is an object of the user's module.
        task = copy.copy(task)
        task.max_new_tokens = max_new_tokens
    return task


def _load(spec: str) -> Task:
    if spec in _TASKS:
        return _TASKS[spec]()
    if spec.endswith(".jsonl"):
        return jsonl_task(spec)
    family, colon, rest = spec.partition(":")
    if family == "mmlu":
        return mmlu(rest)
    if colon:
        task = check_task(_made(_attribute(family, rest, spec), spec), spec)
        check_examples(task, spec)
        return task
    names = [*_TASKS, "mmlu:<subject>"]
    near = get_close_matches(spec, names, n=3)
    known = ", ".join([*near, *(name for name in names if name not in near)])
    raise InputError(f"task {spec!r}: unknown task; use one of {known}, a path.jsonl, or module:attribute")


def names_code(spec: str) -> bool:
    """Whether loading the task would import a module, because it is written ``module:attribute``."""
    module, colon, path = spec.partition(":")
    named = spec in _TASKS or spec.endswith(".jsonl") or module == "mmlu"
    return bool(colon) and not named and _is_dotted(module) and _is_dotted(path)


def _is_dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def template_by_name(task: Task, name: str) -> Template:
    """A task's template; an unknown name is an ``InputError`` that lists the names."""
    for template in task.templates:
        if template.name == name:
            return template
    raise InputError(f"template {name!r}: task {task.name} has no such template; use one of {', '.join(t.name for t in task.templates)}")


def _attribute(module_name: str, path: str, spec: str) -> Any:
    if not (_is_dotted(module_name) and _is_dotted(path)):
        raise InputError(f"task {spec!r}: not a task name, a path.jsonl or module:attribute (as in my_package.my_module:my_task)")
    # A console script does not have the working directory on the path, where a user's module most likely lies.
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # the user's module may fail in any way
        reason = one_line(error, 200)
        raise InputError(f"task {spec!r}: importing {module_name} failed ({reason}); correct the module or its name") from error
    finally:
        sys.path.remove(here)
    for part in path.split("."):
        if not hasattr(found, part):
            near = get_close_matches(part, dir(found), n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else "; give the name of a task, class or function in it"
            raise InputError(f"task {spec!r}: {module_name} has no attribute {path}{hint}")
        found = getattr(found, part)
    return found


def _made(found: Any, spec: str) -> Any:
    # A class has its instances' attributes and so would pass for a task.
    if not inspect.isclass(found) and (not callable(found) or isinstance(found, Task)):
        return found
    try:
        return found()
    except InputError:
        raise
    except Exception as error:  # the user's code may fail in any way
        raise InputError(
            f"task {spec!r}: calling it without arguments failed ({one_line(error, 200)}); give a task, or what makes one when called"
        ) from error
