"""The command that makes a run again, from the settings in its config.json."""

import shlex
from dataclasses import fields
from typing import Any


def reproduce_command(chapter: str, config: Any) -> str:
    """The ``perturbjax CHAPTER`` call that gives the same results, quoted for a shell; settings that were left out stay out.

    Args:
        chapter: name of the command.
        config: the chapter's ``Config``, whose ``IDENTITY`` names the parts that the result depends on.
    """
    command = ["perturbjax", chapter]
    for part in (getattr(config, name) for name in config.IDENTITY):
        for field in fields(part):
            value, flag = getattr(part, field.name), "--" + field.name.replace("_", "-")
            if isinstance(value, bool):
                # Of a setting that is on by default there is only the flag that turns it off.
                command += [flag if value else f"--no-{flag[2:]}"] if value != field.default else []
            elif value is not None and value != ():
                command += [flag, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return shlex.join(command)
