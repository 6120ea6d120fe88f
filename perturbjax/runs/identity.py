"""What makes two runs the same run: fields of their settings, and fingerprints of what these name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from perturbjax.cluster import broadcast_json
from perturbjax.errors import InputError
from perturbjax.records import to_json
from perturbjax.tree import digest

Identity = Mapping[str, Any]
"""Name -> JSON value: fields of the settings, and fingerprints of what they name."""

_FINGERPRINTS = {"model_fingerprint": "model", "task_fingerprint": "task", "split_ids": "task"}
"""Fingerprint -> the field that names its content. The name is for people, the fingerprint decides: a file may move."""
_NAMES = tuple(dict.fromkeys(_FINGERPRINTS.values()))
_GIVEN_ANEW = ("accuracies", "controls")
"""Settings that a finished run can be given anew. Identities of runs of before have them."""


def fields_of(config: Any) -> dict[str, Any]:
    """The settings that what is computed depends on, as JSON: the fields of the parts of a chapter's ``Config`` that its ``IDENTITY``
    names, without those that a finished run can be given anew."""
    return {name: value for name, value in _all_fields(config).items() if name not in _GIVEN_ANEW}


def _all_fields(config: Any) -> dict[str, Any]:
    return {name: value for part in config.IDENTITY for name, value in to_json(getattr(config, part)).items()}


def identity_digest(identity: Identity) -> str:
    """One string that is equal exactly where ``differences`` finds none between runs of one version."""
    return digest({name: value for name, value in identity.items() if name not in _NAMES})


def differences(mine: Identity, theirs: Identity) -> list[str]:
    """What a person changed between two runs, one phrase each: "`seed` 1, the run has 0". Empty when the runs are the same.

    Fingerprints follow from settings (another task has other examples), so they are named only where no setting explains them.
    """
    found, contents = [], []
    for name in dict.fromkeys((*mine, *theirs)):
        if name in (*_FINGERPRINTS, *_NAMES, *_GIVEN_ANEW) or mine.get(name) == theirs.get(name):
            continue
        if str(mine.get(name)).startswith("sha256:"):
            contents.append(name)
        else:
            found.append(f"`{name}` {_show(mine.get(name))}, the run has {_show(theirs.get(name))}")
    names = []
    for fingerprint, name in _FINGERPRINTS.items():
        if mine.get(fingerprint) == theirs.get(fingerprint):
            continue
        if mine.get(name) != theirs.get(name):
            names.append(f"`{name}` {mine.get(name)}, the run has {theirs.get(name)}")
        elif not found and not names:
            contents = f"({_short(mine.get(fingerprint))}), the run has other content ({_short(theirs.get(fingerprint))})"
            names.append(f"`{name}` {mine.get(name)} {contents}")
    if contents and not found and not names:
        found.append(f"the settings are the same, what they name is not (digests of: {', '.join(contents)})")
    return list(dict.fromkeys(names + found))


def check_agreement(identity: Identity) -> None:
    """Raises ``InputError`` on a process whose settings, data or model are not those of process 0: it would compute something else."""
    if found := differences(identity, broadcast_json(identity)):
        who = f"process {jax.process_index()} of {jax.process_count()}"
        raise InputError(f"{who}: {'; '.join(found)} (on process 0); give all processes the same settings and files")


def _show(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_show, value)) or "none"
    if isinstance(value, dict):  # a noise rule
        return f"{value.get('pattern')}={value.get('scale') or 'exclude'}"
    return str(value)


def _short(value: Any) -> str:
    return str(value)[: len("sha256:") + 12]


def default_path(task_name: str, model_name: str, identity: Identity, config: Any) -> Path:
    """``runs/<task>-<model>-<8 hex digits of the identity>``, so that other settings never meet in one directory."""
    label = "".join(c if c.isalnum() or c in "._-" else "_" for c in f"{task_name}-{Path(model_name).name}")

    def of(identity: Identity) -> Path:
        return Path("runs") / f"{label}-{identity_digest(identity).removeprefix('sha256:')[:8]}"

    before = of({**identity, **{name: value for name, value in _all_fields(config).items() if name in _GIVEN_ANEW}})
    return before if before.exists() else of(identity)
