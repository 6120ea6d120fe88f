"""What makes two runs the same run: a flat record of everything the scores and the ensemble depend on."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from perturbjax.randopt.config import SearchConfig
from perturbjax.tasks.base import Example, Task

Identity = Mapping[str, Any]
"""Name -> JSON value. Chunk size, candidates in flight and mesh are not in it: the result does not depend on them."""

_NAMES = ("model", "task")
"""For people, as given on the command line. Fingerprints decide: a file may move."""

SETTINGS = (
    "population",
    "top_k",
    "sigmas",
    "noise",
    "rank",
    "scale",
    "antithetic",
    "search_examples",
    "select_examples",
    "test_examples",
    "racing",
    "strategy",
    "seed",
)
_FINGERPRINTS = {"model_fingerprint": "model", "task_fingerprint": "task", "split_ids": "task"}


def make_identity(
    config: SearchConfig,
    *,
    model_fingerprint: str,
    dtype: str,
    task: Task,
    template: str,
    splits: Mapping[str, Iterable[Example]],
) -> dict[str, Any]:
    """The identity of a run.

    Args:
        config: the settings, validated.
        model_fingerprint: ``fingerprint(params)`` of the base.
        dtype: the resolved type of the weights.
        task: the loaded task, with its ``max_new_tokens`` as used.
        template: the resolved template name.
        splits: split name -> its examples.
    """
    settings = {name: getattr(config, name) for name in SETTINGS} | {"sigmas": [float(sigma) for sigma in config.sigmas]}
    parts = {name: list(examples) for name, examples in splits.items()}
    return {
        "model": config.model,
        "task": config.task,
        **settings,
        "template": template,
        "max_new_tokens": task.max_new_tokens,
        "dtype": dtype,
        "model_fingerprint": model_fingerprint,
        "task_fingerprint": task_fingerprint(task, (example for part in parts.values() for example in part)),
        "split_ids": digest({name: [example.id for example in part] for name, part in parts.items()}),
    }


def task_fingerprint(task: Task, examples: Iterable[Example]) -> str:
    """``sha256:<hex>`` over the task's name, kind, templates and the content of the examples used, in order.

    The prompt and the scorer are code and are seen only through the rendered prompts of every template.
    """
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
    }
    return digest(content)


def digest(content: Any) -> str:
    """``sha256:<hex>`` of a JSON value in canonical form."""
    return "sha256:" + hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def identity_digest(identity: Identity) -> str:
    """One string that is equal exactly where ``differences`` finds none."""
    return digest({name: value for name, value in identity.items() if name not in _NAMES})


def differences(mine: Identity, theirs: Identity) -> list[str]:
    """What a person changed between two runs, one phrase each: "--seed 1, the run has 0". Empty when the runs are the same.

    Fingerprints follow from settings (another task has other examples), so they are named only where no setting explains them;
    the names of model and task are for people, their fingerprints decide.
    """
    found = []
    for name in sorted((set(mine) | set(theirs)) - set(_FINGERPRINTS) - set(_NAMES), key=_order):
        if mine.get(name) != theirs.get(name):
            found.append(f"--{name.replace('_', '-')} {_show(mine.get(name))}, the run has {_show(theirs.get(name))}")
    names = []
    for fingerprint, name in _FINGERPRINTS.items():
        if mine.get(fingerprint) == theirs.get(fingerprint):
            continue
        if mine.get(name) != theirs.get(name):
            names.append(f"--{name} {mine.get(name)}, the run has {theirs.get(name)}")
        elif not found and not names:
            contents = f"({_short(mine.get(fingerprint))}), the run has other content ({_short(theirs.get(fingerprint))})"
            names.append(f"--{name} {mine.get(name)} {contents}")
    return list(dict.fromkeys(names + found))


def _order(name: str) -> int:
    return SETTINGS.index(name) if name in SETTINGS else len(SETTINGS)


def _show(value: Any) -> str:
    return ",".join(map(repr, value)) if isinstance(value, list) else str(value)


def _short(value: Any) -> str:
    return str(value)[: len("sha256:") + 12]
