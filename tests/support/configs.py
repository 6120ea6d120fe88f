"""Settings of a search from a flat list, as the command line gives them."""

import dataclasses
from typing import Any

from perturbjax.randopt import Config


def config_of(**flags: Any) -> Config:
    """The default settings with these fields changed, whichever part they belong to."""
    parts = {field.name: getattr(Config(), field.name) for field in dataclasses.fields(Config)}
    for name, part in parts.items():
        own = {field.name: flags.pop(field.name) for field in dataclasses.fields(part) if field.name in flags}
        parts[name] = dataclasses.replace(part, **own)
    assert not flags, f"no part of Config has {', '.join(flags)}"
    return Config(**parts)
