"""The settings that the runs of all chapters share, as frozen dataclasses that a chapter's own ``Config`` is made of.

Field names are flags of the command line, with dashes; the strings below the fields are their help. A mistake is an ``InputError`` that
names the field; the command line turns the name into the flag.
"""

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from perturbjax.cluster.distributed import CLUSTER
from perturbjax.errors import InputError, positive_integer


@dataclass(frozen=True)
class Base:
    """The pretrained model that everything starts from."""

    model: str = "smollm2-135m"
    """smollm2-135m (embedded), a .gguf file, a Hugging Face directory with safetensors, or a hub id."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the weights; auto is float32 on a CPU, where it is faster, and bfloat16 elsewhere."""

    def validate(self) -> None:
        check_text("model", self.model)
        check_choices(self)


@dataclass(frozen=True)
class Machine:
    """How the work is laid out on devices and processes. No result depends on any of it."""

    mesh: str | None = None
    """DATAxMODEL, e.g. 64x4: candidates or rows are sharded over the first axis, each model over the second; all devices by 1 when left
    out."""
    coordinator: str | None = None
    """Of several processes that run this same command: HOST:PORT of process 0, or cluster, where Cloud TPU, GKE or SLURM tell them."""
    num_processes: int | None = None
    """How many processes there are; with --coordinator HOST:PORT."""
    process_id: int | None = None
    """Which of them this is, from 0; with --coordinator HOST:PORT."""
    compile_cache: str = "auto"
    """Where compiled programs are kept for the next command: auto (under ~/.cache/perturbjax), off, or a directory."""

    def validate(self) -> None:
        if self.mesh is not None and not re.fullmatch(r"[1-9]\d{0,5}x[1-9]\d{0,5}", self.mesh):
            raise InputError(f"`mesh` {self.mesh[:80]}: DATAxMODEL is required, e.g. 4x2")
        self._validate_processes()

    def _validate_processes(self) -> None:
        numbers = (self.num_processes, self.process_id)
        if self.coordinator is None or self.coordinator == CLUSTER:
            if numbers != (None, None):
                raise InputError("`num_processes`, `process_id`: only together with `coordinator` HOST:PORT")
            return
        address = re.fullmatch(r"[^\s:]+:([0-9]{1,5})", self.coordinator)
        if address is None or not 0 < int(address[1]) < 2**16:
            raise InputError(f"`coordinator` {self.coordinator}: HOST:PORT, with a port from 1 to 65535, or {CLUSTER} is required")
        if self.num_processes is None or self.process_id is None or not 0 <= self.process_id < self.num_processes:
            given = f"`num_processes` {self.num_processes}, `process_id` {self.process_id}"
            raise InputError(f"{given}: `coordinator` HOST:PORT needs both, with 0 <= process id < processes")

    @property
    def axes(self) -> tuple[int, int] | None:
        """Sizes of the (data, model) axes that ``mesh`` asks for; None for all devices by 1."""
        if self.mesh is None:
            return None
        data, model = self.mesh.split("x")
        return int(data), int(model)


@dataclass(frozen=True)
class Run:
    """Where the run lies and how it is continued. No result depends on any of it."""

    out: Path | None = None
    """Run directory, seen by all processes; runs/<task>-<model>-<hash of the settings> when left out."""
    resume: bool = False
    """Continue the run in --out where it stopped; starts it if there is none."""

    def __post_init__(self) -> None:
        if isinstance(self.out, str):  # from Python a text is as good
            object.__setattr__(self, "out", Path(self.out))


def check_positive(config: Any, *names: str) -> None:
    """Raise ``InputError`` unless each of these fields is an integer of at least 1, or None where it was left out."""
    for name in names:
        if (value := getattr(config, name)) is not None:
            positive_integer(name, value)


def check_once(name: str, values: Collection[Any]) -> None:
    """Raise ``InputError`` if one of the values of a list is named twice."""
    if len(set(values)) < len(values):
        raise InputError(f"`{name}` {','.join(map(str, values))}: one is named twice")


def check_seed(seed: int) -> None:
    """Raise ``InputError`` unless a seed is one that keys are made from."""
    if not 0 <= seed < 2**32:
        raise InputError(f"`seed` {seed}: an integer from 0 to {2**32 - 1} is required")


def check_choices(config: Any) -> None:
    """Raise ``InputError`` unless every field of a ``Literal`` type has one of its values."""
    for name, kind in get_type_hints(type(config)).items():
        if get_origin(kind) is Literal and (value := getattr(config, name)) not in get_args(kind):
            raise InputError(f"`{name}` {value}: one of {', '.join(get_args(kind))} is required")


def check_text(name: str, value: str) -> None:
    """Raise ``InputError`` for an empty text, or one with control characters."""
    if not value.strip() or re.search(r"[\x00-\x1f]", value):
        raise InputError(f"`{name}` {value!r}: a name or path is required")


def absolute_if_there(name: str) -> str:
    """The absolute path of a file or directory, or of the file in ``path.py:attribute``, so that a run can be reopened from anywhere; any
    other name as it is."""
    file, colon, attribute = name.partition(".py:")
    path = Path(os.path.expanduser(f"{file}.py" if colon else name))
    return os.path.abspath(path) + (f":{attribute}" if colon else "") if path.exists() else name
