"""What a task is known by: its prompts and the examples that are used."""

from collections.abc import Iterable

from perturbjax.tasks.base import Example, Task
from perturbjax.tree import digest


def task_fingerprint(task: Task, examples: Iterable[Example]) -> str:
    """``sha256:<hex>`` over the task's name, kind, templates and the content of the examples used, in order.

    The prompt and the scorer are code. Prompts are seen as they are rendered by every template; of a scorer nothing is seen but the task's
    ``version``, if it has one.
    """
    version = getattr(task, "version", None)
    content = {
        "name": task.name,
        "kind": task.kind,
        "max_new_tokens": task.max_new_tokens,
        "templates": [repr(template) for template in task.templates],
        "examples": [
            [e.id, e.question, e.answer, list(e.choices), sorted((str(k), repr(v)) for k, v in e.fields.items())]
            + [repr(task.prompt(e, template)) for template in task.templates]
            for e in examples
        ],
    } | ({} if version is None else {"version": repr(version)})
    return digest(content)
