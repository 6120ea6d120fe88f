"""results.json of a consolidation, typed."""

from dataclasses import dataclass
from pathlib import Path

from perturbjax.records import from_json
from perturbjax.report.schema import ComparedEntry, Comparison, Source
from perturbjax.runs.files import read_json

VERSION = 1
"""Of the layout of results.json."""
BASE, VOTE, CONSOLIDATED = "base", "vote", "consolidated"


@dataclass(frozen=True)
class Tried:
    """One option of an arm, and its accuracy on select; one of a ``control`` is never the result."""

    arm: str
    option: str
    accuracy: float
    control: bool


@dataclass(frozen=True)
class Gate:
    """What select decided.

    Attributes:
        gain: the cross-fitted gain over the base (``gate.choose``); ``taken``: it is above 0.
        base: accuracy of the base on select; ``tried``: every option's, controls included.
        arm, option: the best of those that may be taken, whether or not it was.
    """

    gain: float
    taken: bool
    base: float
    arm: str
    option: str
    tried: tuple[Tried, ...]


@dataclass(frozen=True, kw_only=True)
class OverControl(Comparison):
    """The paired difference to a control of the same consolidation, by its ``name``."""

    name: str


@dataclass(frozen=True, kw_only=True)
class Row(ComparedEntry):
    """One system on the test questions, beside the base and the vote. ``search_tokens`` are those that this consolidation spent to arrive
    at it, its answers on select included; those of the run come on top. A token of training counts three times.

    Attributes:
        name: of the system; ``option``: what select chose for it.
        models: forward passes a question.
        over_vote: its paired difference to the vote; ``over_controls``: to every control, empty for base, vote and the controls.
    """

    name: str
    option: str
    models: int
    over_vote: Comparison
    over_controls: tuple[OverControl, ...] = ()

    @property
    def question_tokens(self) -> float:
        """Tokens that one question takes."""
        return self.tokens / self.n


@dataclass(frozen=True)
class Results:
    """The content of results.json.

    Attributes:
        by: one of ``config.By``; ``settings``: those that it read.
        run: the run directory; ``identity``: digest of its identity.
        members: K of the ensemble; ``select``: questions that everything was chosen on.
        gate: what they decided.
        rows: base, vote, every arm, and what was consolidated: an arm, or the base where the gate refused.
        notes: figures of how it was made, in words.
        saved: whether ``model/`` was written: not where the base is the result.
        seconds: of the process that finished it.
    """

    version: int
    by: str
    settings: dict[str, str | int | float | tuple[float, ...]]
    run: str
    identity: str
    model: Source
    task: Source
    members: int
    select: int
    gate: Gate
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    saved: bool
    seconds: float

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(f"version {self.version}: this release reads {VERSION}; use the release that wrote it")
        if missing := [name for name in (BASE, VOTE, CONSOLIDATED) if name not in {row.name for row in self.rows}]:
            raise ValueError(f"rows: {missing[0]} is missing")
        if (self.gate.arm, self.gate.option) not in {(each.arm, each.option) for each in self.gate.tried}:
            raise ValueError("gate: arm and option are not among those that were tried")

    def row(self, name: str) -> Row:
        """The row of a system."""
        return next(row for row in self.rows if row.name == name)


def read_results(path: Path) -> Results:
    """results.json of a finished consolidation.

    Raises:
        InputError: the file is missing or damaged; the field is named.
    """
    return from_json(Results, read_json(path), str(path))
