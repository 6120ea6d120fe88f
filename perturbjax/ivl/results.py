"""results.json of a training of a value network, and the entries of one base, as typed records."""

from dataclasses import dataclass

from perturbjax.ivl.map_statistics import MapStatistics
from perturbjax.report.schema import ComparedEntry, Entry, Source
from perturbjax.train.loop import Look

VERSION = 1


@dataclass(frozen=True)
class TokenChanges:
    """What a value network does to the tokens of the replies it helped to write.

    Attributes:
        tokens: of the replies.
        changed: fraction of them that the base alone would have chosen otherwise, after the same text.
        gated: fraction that a gate left to the base alone; 0 without a gate.
    """

    tokens: int
    changed: float
    gated: float


@dataclass(frozen=True)
class BaseEntries:
    """One base with and without the value network, on the same questions.

    Attributes:
        model: the base.
        base: it alone.
        systems: name -> what was measured beside it: ``with value``, ``value alone`` and others.
        changes: of ``with value``; None for a task of choices, which writes no replies.
        map_statistics: of the map between the vocabularies; None where they are one.
    """

    model: Source
    base: Entry
    systems: dict[str, ComparedEntry]
    changes: TokenChanges | None
    map_statistics: MapStatistics | None


@dataclass(frozen=True)
class Demonstrated:
    """What a value network was trained on.

    Attributes:
        source: where the demonstrations come from.
        train: demonstrations trained on; ``validation``: only measured.
        train_rows: packed rows of the former.
        too_long: left out, longer than a row.
        asked_in_test: left out, because they ask a test question.
        tokens: of one pass over the training rows.
    """

    source: str
    train: int
    validation: int
    train_rows: int
    too_long: int
    asked_in_test: int
    tokens: int


@dataclass(frozen=True)
class Results:
    """The content of results.json.

    Attributes:
        version: of this format.
        task: asked at the end.
        template: of its prompts.
        demonstrations: what was trained on.
        parameters: trained, of the value network.
        looks: at the training, in order.
        best_step: after how many steps the weights were taken.
        stopped_early: patience ran out.
        entries: the first base, with and without.
    """

    version: int
    task: Source
    template: str
    demonstrations: Demonstrated
    parameters: int
    looks: tuple[Look, ...]
    best_step: int
    stopped_early: bool
    entries: BaseEntries
