"""ensemble.json: what it says, written the same way every time and believed only when it is consistent."""

import json
from dataclasses import dataclass
from pathlib import Path

from perturbjax.noise import Noise, Population
from perturbjax.randopt.voting import MAJORITY, VOTE_RULES
from perturbjax.records import from_json, refuse, to_json
from perturbjax.runs.files import read_json, write_atomically

FORMAT = "perturbjax.ensemble"
VERSION = 2
"""Raised by any change that an older reader would misread."""


@dataclass(frozen=True)
class Member:
    """A candidate index, its sigma as the user wrote it, and its search score if there is one."""

    index: int
    sigma: float
    score: float | None


@dataclass(frozen=True)
class EnsembleDocument:
    """The content of ensemble.json; ``members`` stand in the order in which they vote, best first, by the rule ``vote``.

    Raises:
        ValueError: the parts contradict each other; the field is named.
    """

    format: str
    version: int
    base_fingerprint: str
    noise: Noise
    population: Population
    members: tuple[Member, ...]
    vote: str = MAJORITY

    def __post_init__(self) -> None:
        if not (self.base_fingerprint.startswith("sha256:") and len(self.base_fingerprint) == len("sha256:") + 64):
            raise ValueError(f"base_fingerprint {self.base_fingerprint[:80]!r}: sha256: and 64 hexadecimal digits are required")
        if not self.members:
            raise ValueError("members []: at least one member is required")
        for i, member in enumerate(self.members):
            if not 0 <= member.index < len(self.population):
                raise ValueError(f"members[{i}].index {member.index}: a candidate from 0 to {len(self.population) - 1} is required")
            expected = sigma_as_written(self.population, member.index)
            if member.sigma != expected:
                raise ValueError(f"members[{i}].sigma {member.sigma}: candidate {member.index} of this population has sigma {expected}")
        if len({member.index for member in self.members}) < len(self.members):
            raise ValueError(f"members {[member.index for member in self.members]}: every member may occur once")
        if len({member.score is None for member in self.members}) > 1:
            raise ValueError("members.score null: either every member has a score or none")
        if self.vote not in VOTE_RULES:
            raise ValueError(f"vote {self.vote[:80]!r}: one of {', '.join(VOTE_RULES)} is required")


def write_document(path: Path, document: EnsembleDocument) -> None:
    """Write atomically; keys sorted, floats as Python's shortest repr, so equal documents give equal bytes on every platform."""
    text = json.dumps(to_json(document), indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def read_document(path: Path) -> EnsembleDocument:
    """Read and check every field.

    Raises:
        InputError: one line naming the file, the field, its value and what is required.
    """
    content = read_json(path)
    # First: the fields of another version are others.
    for field, value in (("format", FORMAT), ("version", VERSION)):
        if content.get(field) != value:
            refuse(str(path), field, content.get(field), f"this release reads {value}; use the release that wrote the file")
    return from_json(EnsembleDocument, content, str(path))


def sigma_as_written(population: Population, index: int) -> float:
    """The sigma of a candidate as the user wrote it."""
    # The number as the user wrote it, not its float32 neighbor.
    return population.sigmas[int(population.noise_number([index])[0]) % len(population.sigmas)]
