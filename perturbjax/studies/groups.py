"""The groups of parameters that a study is asked for."""

from __future__ import annotations

from perturbjax.errors import InputError
from perturbjax.models.noise_groups import GROUPS


def check_groups(groups: tuple[str, ...]) -> None:
    """Raise ``InputError`` unless these are names of groups, each once."""
    if not groups or len(set(groups)) < len(groups) or not set(groups) <= set(GROUPS):
        raise InputError(f"`groups` {','.join(groups)}: some of {','.join(GROUPS)} are required, each once")


def check_group(group: str) -> None:
    """Raise ``InputError`` unless this is the name of a group."""
    if group not in GROUPS:
        raise InputError(f"`group` {group}: one of {', '.join(GROUPS)} is required")
