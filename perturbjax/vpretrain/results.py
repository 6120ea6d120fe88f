"""results.json of a steered pretraining, and what was measured of one arm, as typed records."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from perturbjax.records import from_json
from perturbjax.report.schema import ComparedEntry, Comparison, Source
from perturbjax.runs.files import read_json
from perturbjax.train.problem import Look
from perturbjax.vpretrain.config import MODES, Mode
from perturbjax.vpretrain.overlap import Overlap

VERSION = 1
"""Of the layout of results.json and arms/MODE.json."""
START = "start"
"""Name of step 0, before any training."""


@dataclass(frozen=True)
class TargetExample:
    """One target of the designer at the end.

    Attributes:
        context: the last tokens before the position, as text.
        token: the true next token; the target before.
        alpha: share of the target that does not lie on it alone.
        candidates: (token, the learner's probability, the target's) of the likeliest in the target.
    """

    context: str
    token: str
    alpha: float
    candidates: tuple[tuple[str, float, float], ...]


@dataclass(frozen=True)
class Measured:
    """What was measured of one arm, or of step 0: the content of arms/MODE.json, example by example so that arms can be compared.

    Attributes:
        version: of this format.
        mode: of the arm; ``start`` for step 0.
        losses: feedback set -> loss of each test row, a mean over its answer's tokens, in nats.
        scores: feedback set that is a task -> strict score of each test row; ``lenient``: of any recognizable format.
        tokens: feedback set that is a task -> tokens of prompts and replies.
        general: loss of the text of another domain; None without one.
        looks: at the training, in order; of step 0 the losses of validation alone.
        updates: of the designer; ``skipped``: those whose value was not finite.
        fingerprint: of its model, where that is the run's.
        examples: of its targets.
        drift: mean total variation, on the first rows of the corpus, between the targets of the designer and those of the designer that it
            began as; None without one.
    """

    version: int
    mode: str
    losses: dict[str, tuple[float, ...]]
    scores: dict[str, tuple[float, ...]]
    lenient: dict[str, tuple[float, ...]]
    tokens: dict[str, int]
    general: float | None
    looks: tuple[Look, ...] = ()
    updates: int = 0
    skipped: int = 0
    examples: tuple[TargetExample, ...] = ()
    drift: float | None = None
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(f"version {self.version}: this release reads {VERSION}; use the release that wrote it")


@dataclass(frozen=True)
class SetFigures:
    """One arm on the test rows of one feedback set.

    Attributes:
        n: rows.
        loss: mean over rows of the mean over the answer's tokens, in nats.
        against_start: step 0's loss minus this one's, so that positive is better; None for step 0.
        against_plain: the same to plain pretraining; None where that is this arm, or was not trained.
        accuracy: of a task, compared to step 0.
        accuracy_against_plain: of a task, to plain pretraining.
        own_against: this loss minus that of the arm that the run is about, so that positive is better for the latter; None for step 0,
            plain pretraining and that arm.
    """

    n: int
    loss: float
    against_start: Comparison | None
    against_plain: Comparison | None
    accuracy: ComparedEntry | None
    accuracy_against_plain: Comparison | None
    own_against: Comparison | None = None


@dataclass(frozen=True)
class ArmFigures:
    """One arm, or step 0.

    Attributes:
        mode: its name.
        sets: feedback set -> figures.
        general: loss of the text of another domain.
        tokens, seconds: of training, as in ``Look``.
        updates, skipped: as in ``Measured``.
        r: correlation of predicted and realized falls of the feedback loss; None where they were not measured. The prediction is that of
            AdamW's step, momentum included; ``r_alone`` is of the designed task's own part of it.
        alpha, entropy: of its targets, means since the last look but one; None where targets are the true tokens.
        off_true: the share of these targets that lies on other tokens than the true one.
        alpha_start: mean alpha of the designer before its first update.
        drift: as in ``Measured``.
    """

    mode: str
    sets: dict[str, SetFigures]
    general: float | None
    tokens: int
    seconds: float
    updates: int
    skipped: int
    r: float | None
    r_alone: float | None
    alpha: float | None
    entropy: float | None
    off_true: float | None = None
    alpha_start: float | None = None
    drift: float | None = None

    def __post_init__(self) -> None:
        if (self.alpha is None) != (self.entropy is None):
            raise ValueError("alpha, entropy: both or neither are required")


@dataclass(frozen=True)
class Trained:
    """What was trained on: corpus rows and tokens, documents or demonstrations left out for their length, steps, overlaps that were
    allowed, and how many parameters the learner trains, the value looks at, and the designer has."""

    corpus: str
    rows: int
    tokens: int
    too_long: int
    steps: int
    overlaps: dict[str, Overlap]
    parameters: int
    subset: int
    designer: int


@dataclass(frozen=True)
class Results:
    """The content of results.json.

    Attributes:
        version: of this format.
        model: the learner at step 0.
        task: the feedback sets, for people.
        mode: what the run is about; the other arms are controls.
        trained: on what.
        arms: step 0, then the arms.
        diverged: controls whose loss was not finite, which are left out.
        fingerprint: of the model that the run made; None in runs of before it was written.
    """

    version: int
    model: Source
    task: Source
    mode: Mode
    trained: Trained
    arms: tuple[ArmFigures, ...]
    diverged: tuple[Mode, ...] = ()
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(f"version {self.version}: this release reads {VERSION}; use the release that wrote it")
        if [arm.mode for arm in self.arms][:1] != [START] or all(arm.mode != self.mode for arm in self.arms):
            raise ValueError(f"arms: {START} first, and one of mode {self.mode}, are required")
        modes, sets = [arm.mode for arm in self.arms], [list(arm.sets) for arm in self.arms]
        if unknown := [mode for mode in modes[1:] if mode not in MODES or modes.count(mode) > 1]:
            raise ValueError(f"arms: {unknown[0]} is there twice or no mode; each once of {', '.join(MODES)} is required")
        if not sets[0] or any(names != sets[0] for names in sets):
            raise ValueError("arms: figures of the same feedback sets, at least one, are required of each")

    def arm(self, mode: str) -> ArmFigures | None:
        """The figures of a mode; None if it was not trained."""
        return next((arm for arm in self.arms if arm.mode == mode), None)

    @property
    def own(self) -> ArmFigures:
        """The arm that the run is about."""
        return next(arm for arm in self.arms if arm.mode == self.mode)


def probe_pairs(looks: tuple[Look, ...], predicted: str = "predicted") -> list[tuple[float, float]]:
    """(predicted, realized) falls of the feedback loss, of all updates that have both; ``predicted_alone`` leaves momentum out."""
    updates = (update for look in looks for update in look.updates)
    return [(u[predicted], u["realized"]) for u in updates if predicted in u and "realized" in u]


def correlation(pairs: list[tuple[float, float]]) -> float | None:
    """Pearson's r; None for fewer than three pairs, or where one side does not vary."""
    table = np.asarray(pairs, np.float64).reshape(-1, 2)
    if len(table) < 3 or (table.std(axis=0) == 0).any():
        return None
    return float(np.corrcoef(table[:, 0], table[:, 1]).ravel()[1])


def read_results(path: Path) -> Results:
    """results.json of a finished run.

    Raises:
        InputError: the file is missing or damaged; the field is named.
    """
    return from_json(Results, read_json(path), str(path))


def read_measured(path: Path) -> Measured:
    """An arms/MODE.json of a run.

    Raises:
        InputError: the file is missing or damaged; the field is named.
    """
    return from_json(Measured, read_json(path), str(path))
