"""results.json of a training of a value network, and the entries of one base, as typed records."""

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from perturbjax.ivl.map_statistics import MapStatistics
from perturbjax.records import from_json
from perturbjax.report.schema import ComparedEntry, Entry, Source
from perturbjax.runs.files import read_json
from perturbjax.train.problem import Look

VERSION = 1
"""Of the layout of results.json and evaluation-NAME.json."""
WITH_VALUE, VALUE_ALONE = "with value", "value alone"
"""Names of systems: the base with the value network's logits added, and the value network as a model of its own."""


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
class Tuning:
    """The training of a rival, on the demonstrations of the value network.

    Attributes:
        model: what was trained.
        parameters: trained ones.
        learning_rate: the highest.
        steps: of the optimizer; the weights are those after ``best_step``.
        tokens: put through the trained model.
        seconds: of steps.
        stopped_early: patience ran out.
    """

    model: str
    parameters: int
    learning_rate: float
    steps: int
    best_step: int
    tokens: int
    seconds: float
    stopped_early: bool


@dataclass(frozen=True)
class BaseEntries:
    """One base with and without the value network, on the same questions.

    Attributes:
        model: the base.
        base: it alone.
        systems: name -> what was measured beside it: ``with value``, ``value alone`` and others.
        changes: of ``with value``; None for a task of choices, which writes no replies.
        map_statistics: of the map between the vocabularies; None where they are one.
        tunings: name of a rival among the systems -> its training.
        against: name of a rival -> the base with the value network, compared to that rival.
    """

    model: Source
    base: Entry
    systems: dict[str, ComparedEntry]
    changes: TokenChanges | None
    map_statistics: MapStatistics | None
    tunings: dict[str, Tuning] = field(default_factory=dict)
    against: dict[str, ComparedEntry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if WITH_VALUE not in self.systems:
            raise ValueError(f"systems: has no entry for {WITH_VALUE!r}, which is what was measured")

    @property
    def with_value(self) -> ComparedEntry:
        """The base with the value network, compared to the base alone."""
        return self.systems[WITH_VALUE]


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
class StoredLogits:
    """The logits of one base that were written to files and trained on in its place.

    Attributes:
        base: its name.
        rows: at the learned positions of the rows to train on, or of those to validate with.
        k: tokens kept of each position; None: all.
        positions: learned ones, over all of which the errors are taken.
        nbytes: of the files.
        mean_kl: mean over the positions of the divergence of what is stored from what the base said, in nats.
        label_error: the largest absolute error of the log-probability of a label.
    """

    base: str
    rows: Literal["training", "validation"]
    k: int | None
    positions: int
    nbytes: int
    mean_kl: float
    label_error: float


class Gain(NamedTuple):
    """What the value network takes off the base's cross-entropy after some steps, in nats a token."""

    step: int
    nats: float

    @classmethod
    def of(cls, look: Look) -> "Gain":
        return cls(look.step, look.validation["base_cross_entropy"] - look.validation["cross_entropy"])


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
        logits: what was trained on in place of the bases; empty where they were run in every step.
        without_norm: looks at the same training with a loss that has no norm; empty where it was not asked for.
        pass_flops: floating-point operations of one pass over the training rows (``loss.pass_flops``); None of a run of before they were.
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
    logits: tuple[StoredLogits, ...] = ()
    without_norm: tuple[Look, ...] = ()
    pass_flops: float | None = None

    def __post_init__(self) -> None:
        _check_version(self.version)
        if all(look.step != self.best_step for look in self.looks):
            raise ValueError(f"best_step {self.best_step}: looks has none at that step")

    @property
    def model(self) -> Source:
        """The first base, which the value network was trained beside."""
        return self.entries.model

    @property
    def tokens_per_s(self) -> float | None:
        """Median of the looks that measured it; None if none did."""
        rates = [look.tokens_per_s for look in self.looks if look.tokens_per_s is not None]
        return statistics.median(rates) if rates else None

    @property
    def flops_per_s(self) -> float | None:
        """At the throughput; of the model alone, so that over the peak of the devices it is MFU."""
        if self.pass_flops is None or self.tokens_per_s is None:
            return None
        return self.pass_flops / self.demonstrations.tokens * self.tokens_per_s

    @property
    def best(self) -> Look:
        """The look at the weights that were taken."""
        return next(look for look in self.looks if look.step == self.best_step)

    @property
    def gains(self) -> dict[str, tuple[Gain, ...]]:
        """As trained, and without the norm if that was trained too: what the value network gains on validation at each look."""
        looks = {"as trained": self.looks} | ({"without the norm": self.without_norm} if self.without_norm else {})
        found = {name: tuple(Gain.of(look) for look in each if look.validation) for name, each in looks.items()}
        return {name: each for name, each in found.items() if each}


@dataclass(frozen=True)
class Evaluation:
    """The content of evaluation-NAME.json: one base with and without the value network of a run, measured after it.

    Attributes:
        version: of this format.
        task: asked.
        template: of its prompts.
        alpha: weight of the value network's logits.
        gate: entropy of the base's distribution in nats above which they count; None: always.
        vocabulary: the kind of map to the base's vocabulary; None where the vocabularies are one.
        entries: the base, with and without.
    """

    version: int
    task: Source
    template: str
    alpha: float
    gate: float | None
    vocabulary: str | None
    entries: BaseEntries

    def __post_init__(self) -> None:
        _check_version(self.version)


def read_results(path: Path) -> Results:
    """results.json of a finished run.

    Raises:
        InputError: the file is missing or damaged; the field is named.
    """
    return from_json(Results, read_json(path), str(path))


def read_evaluation(path: Path) -> Evaluation:
    """An evaluation-NAME.json of a run.

    Raises:
        InputError: the file is missing or damaged; the field is named.
    """
    return from_json(Evaluation, read_json(path), str(path))


def _check_version(version: int) -> None:
    if version != VERSION:
        raise ValueError(f"version {version}: this release reads {VERSION}; use the release that wrote it")
