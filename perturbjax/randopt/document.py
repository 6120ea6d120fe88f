"""ensemble.json: what it says, written the same way every time and believed only when it is consistent."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perturbjax.errors import InputError
from perturbjax.noise import Noise, Population, Rule
from perturbjax.runs.files import write_atomically

FORMAT = "perturbjax.ensemble"
VERSION = 1
"""Raised by any change that an older reader would misread."""


@dataclass(frozen=True)
class EnsembleDocument:
    """The content of ensemble.json; ``members`` are candidate indices in the whole population, best first."""

    population: Population
    members: tuple[int, ...]
    noise: Noise
    fingerprint: str
    scores: tuple[float, ...] | None


def write_document(path: Path, document: EnsembleDocument) -> None:
    """Write atomically; keys sorted, floats as Python's shortest repr, so equal documents give equal bytes on every platform."""
    population = document.population
    scores = document.scores or (None,) * len(document.members)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "base_fingerprint": document.fingerprint,
        "noise": asdict(document.noise),
        "population": {name: getattr(population, name) for name in _POPULATION},
        "members": [
            {"index": index, "sigma": _sigma(population, index), "score": score}
            for index, score in zip(document.members, scores, strict=True)
        ],
    }
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def read_document(path: Path) -> EnsembleDocument:
    """Read and check every field.

    Raises:
        InputError: one line naming the file, the field, its value and what is required.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the ensemble.json of a run directory") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); give the ensemble.json of a run directory") from None
    check = _Checker(path)
    top = check.record(content, "the file", _TOP)
    if top["format"] != FORMAT:
        check.fail("format", top["format"], f"{FORMAT!r} is required")
    if top["version"] != VERSION:
        check.fail("version", top["version"], f"this release reads version {VERSION}; use the release that wrote the file")
    if not (top["base_fingerprint"].startswith("sha256:") and len(top["base_fingerprint"]) == len("sha256:") + 64):
        check.fail("base_fingerprint", top["base_fingerprint"], "sha256: and 64 hexadecimal digits are required")

    noise = _read_noise(check, top["noise"])
    population = _read_population(check, top["population"])
    if not top["members"]:
        check.fail("members", [], "at least one member is required")
    members = [check.record(member, f"members[{i}]", _MEMBER) for i, member in enumerate(top["members"])]
    seen: set[int] = set()
    allowed = range(population.start, population.start + len(population) * population.step, population.step)
    for i, member in enumerate(members):
        index = member["index"]
        if index not in allowed:
            check.fail(f"members[{i}].index", index, f"a candidate of the population ({allowed.start} to {allowed[-1]}) is required")
        if index in seen:
            check.fail(f"members[{i}].index", index, "every member may occur once")
        seen.add(index)
        if np.float32(member["sigma"]) != population.sigma_of([index])[0]:
            check.fail(
                f"members[{i}].sigma", member["sigma"], f"candidate {index} of this population has sigma {_sigma(population, index)}"
            )
    scores = [member["score"] for member in members]
    if None in scores and set(scores) != {None}:
        check.fail("members.score", None, "either every member has a score or none")
    return EnsembleDocument(
        population, tuple(member["index"] for member in members), noise, top["base_fingerprint"], None if None in scores else tuple(scores)
    )


def _read_noise(check: "_Checker", value: Any) -> Noise:
    fields = check.record(value, "noise", _NOISE)
    rules = [check.record(rule, f"noise.rules[{i}]", _RULE) for i, rule in enumerate(fields["rules"])]
    try:
        return Noise(**{**fields, "rules": tuple(Rule(**rule) for rule in rules)})
    except ValueError as error:
        raise InputError(f"{check.path}: noise: {error}") from None


def _read_population(check: "_Checker", value: Any) -> Population:
    fields = check.record(value, "population", _POPULATION)
    start, size, step = fields.pop("start"), fields.pop("size"), fields.pop("step")
    if size < 1 or start < 0 or step < 1:
        check.fail(
            "population", {"size": size, "start": start, "step": step}, "size and step of at least 1 and start of at least 0 are required"
        )
    stop = start + size * step
    try:
        # Through a slice, so that a part of an antithetic population that cuts a pair can be read back too.
        return Population(**{**fields, "sigmas": tuple(fields["sigmas"])}, size=stop + stop % 2 if fields["antithetic"] else stop)[
            start:stop:step
        ]
    except ValueError as error:
        raise InputError(f"{check.path}: population: {error}") from None


def _sigma(population: Population, index: int) -> float:
    # The number as the user wrote it, not its float32 neighbour.
    value = population.sigma_of([index])[0]
    return next(sigma for sigma in population.sigmas if np.float32(sigma) == value)


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return (isinstance(value, float) and math.isfinite(value)) or (_integer(value) and abs(value) < 2**63)


def _scale(value: Any) -> bool:
    return _number(value) and float(np.finfo(np.float32).tiny) <= value <= float(np.finfo(np.float32).max)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _optional(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or test(value)


def _list_of(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(test, value))


def _anything(value: Any) -> bool:
    return True


Fields = Mapping[str, tuple[Callable[[Any], bool], str]]
_TOP: Fields = {
    "format": (_text, "text"),
    "version": (_integer, "an integer"),
    "base_fingerprint": (_text, "text"),
    "noise": (_anything, "an object"),
    "population": (_anything, "an object"),
    "members": (_list_of(_anything), "a list"),
}
_NOISE: Fields = {
    "distribution": (_text, "text"),
    "rank": (_optional(_integer), "an integer or null"),
    "scale": (_text, "text"),
    "rules": (_list_of(_anything), "a list"),
}
_RULE: Fields = {"pattern": (_text, "text"), "scale": (_optional(_text), "text or null"), "exclude": (_flag, "true or false")}
_POPULATION: Fields = {
    "seed": (_integer, "an integer"),
    "size": (_integer, "an integer"),
    "sigmas": (_list_of(_scale), "a list of positive float32 numbers"),
    "antithetic": (_flag, "true or false"),
    "start": (_integer, "an integer"),
    "step": (_integer, "an integer"),
}
_MEMBER: Fields = {
    "index": (_integer, "an integer"),
    "sigma": (_scale, "a positive float32 number"),
    "score": (_optional(_number), "a finite number or null"),
}


@dataclass(frozen=True)
class _Checker:
    """Complaints about one file."""

    path: Path

    def fail(self, field: str, value: Any, required: str) -> None:
        raise InputError(f"{self.path}: {field} {json.dumps(value)[:80]}: {required}")

    def record(self, value: Any, name: str, fields: Fields) -> dict[str, Any]:
        """``value`` if it is an object with exactly these fields, each of its type."""
        if not isinstance(value, dict):
            self.fail(name, value, "an object is required")
        for key, (test, kind) in fields.items():
            where = key if name == "the file" else f"{name}.{key}"
            if key not in value:
                raise InputError(f"{self.path}: {where} is missing; the file is damaged or no ensemble.json")
            if not test(value[key]):
                self.fail(where, value[key], f"{kind} is required")
        unknown = sorted(set(value) - set(fields))
        if unknown:
            raise InputError(f"{self.path}: {name} has an unknown field {unknown[0]!r}; the file is damaged or from another release")
        return dict(value)
