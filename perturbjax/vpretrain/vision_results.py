"""What was found of students on images: figures of each arm and seed, paired differences, and both as a plain table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from perturbjax.errors import InputError
from perturbjax.records import from_json
from perturbjax.report.accounting import student_half
from perturbjax.report.schema import Verdict
from perturbjax.report.words import shorten
from perturbjax.runs.files import read_json, write_json
from perturbjax.train.problem import Look
from perturbjax.vpretrain.probes import Probed
from perturbjax.vpretrain.vision import VisionMode

VISION_START = "step 0"
VISION_ARMS: dict[str, VisionMode] = {"plain": "plain", "random masks": "random_masks", "value": "value", "random direction": "random"}
"""Name of an arm -> its mode."""
PAIRS = (
    ("plain", VISION_START),
    ("random masks", "plain"),
    ("value", "plain"),
    ("value", "random masks"),
    ("value", "random direction"),
)
"""What is compared: the first with the second."""
BETTER = {"class_accuracy": 1, "segmentation": 1, "miou": 1, "depth": -1}
"""Figure of a probe -> whether more of it is better, or less."""


@dataclass(frozen=True)
class VisionArm(Probed):
    """One arm of one seed: what probes found of its student, and how it was trained.

    Attributes:
        r: of predicted and realized falls of the feedback loss; ``r_alone``: of the value alone. None without a designer.
        on_figures: mean mask of the patches that are no background.
        seconds: of its steps.
        looks: at its training; of step 0 the losses of validation alone.
    """

    r: float | None = None
    r_alone: float | None = None
    on_figures: float | None = None
    seconds: float = 0.0
    looks: tuple[Look, ...] = ()


@dataclass(frozen=True)
class Difference:
    """By how much one arm is better than another, paired by seed: above 0 is better, of errors too.

    Attributes:
        mean: over seeds; ``half``: half of Student's 95 % interval, None for one seed.
        wins: seeds in which it is 0 or more, of ``seeds``.
    """

    mean: float
    half: float | None
    wins: int
    seeds: int

    @property
    def verdict(self) -> Verdict:
        if self.half is None or abs(self.mean) <= self.half:
            return "no clear effect"
        return "helped" if self.mean > 0 else "hurt"


@dataclass(frozen=True)
class VisionResults:
    """results.json of an experiment on images.

    Attributes:
        images: what they are.
        command: that makes them again.
        ratio: mean of all masks.
        settings: of the experiment.
        first_seed: of ``seeds``, which have the same arms.
        seeds: name of an arm -> what was found.
    """

    images: str
    command: str
    ratio: float
    settings: dict[str, int | float]
    first_seed: int
    seeds: tuple[dict[str, VisionArm], ...]

    def __post_init__(self) -> None:
        if not self.seeds or any(list(seed) != list(self.seeds[0]) or VISION_START not in seed for seed in self.seeds):
            raise InputError(f"`seeds`: at least one, and the same arms of each, {VISION_START} among them, are required")

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(self.seeds[0])

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Those of ``PAIRS`` whose arms are there."""
        return tuple(pair for pair in PAIRS if set(pair) <= set(self.arms))

    def values(self, arm: str, figure: str) -> np.ndarray:
        """A figure of each seed: (seeds,)."""
        return np.array([getattr(seed[arm], figure) for seed in self.seeds], np.float64)

    def difference(self, arm: str, other: str, figure: str) -> Difference:
        """Paired by seed."""
        better = BETTER[figure] * (self.values(arm, figure) - self.values(other, figure))
        return Difference(float(better.mean()), half_width(better), int((better >= 0).sum()), len(better))


def half_width(values: Sequence[float] | np.ndarray) -> float | None:
    """Half of Student's 95 % interval of the mean over seeds; None for one seed."""
    table = np.asarray(values, np.float64)
    return float(student_half(table)) if len(table) > 1 else None


def spread(mean: float, half: float | None, digits: int = 4) -> str:
    """(0.12341, 0.02) -> ``0.1234 ± 0.0200``."""
    return f"{mean:.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")


def vision_table(results: VisionResults) -> str:
    """Each arm's figures, then paired differences with how many seeds have 0 or more."""

    def line(name: str, of: Callable[[str], str]) -> str:
        return f"{shorten(name, 30):<30}" + "".join(f"{of(figure):>20}" for figure in BETTER)

    def of_arm(arm: str) -> Callable[[str], str]:
        return lambda figure: spread(results.values(arm, figure).mean(), half_width(results.values(arm, figure)))

    lines = [
        f"{len(results.seeds)} seeds, mean ± half of the 95 % interval",
        line("", str),
        *(line(arm, of_arm(arm)) for arm in results.arms),
    ]
    lines.append("better than the other by (paired; seeds with 0 or more)")
    for arm, other in results.pairs:
        found = {figure: results.difference(arm, other, figure) for figure in BETTER}
        lines.append(line(f"{arm} - {other}", lambda figure, found=found: spread(found[figure].mean, found[figure].half)))
        lines.append(line("", lambda figure, found=found: f"{found[figure].wins}/{found[figure].seeds}"))
    return "\n".join(lines)


def write_vision_results(path: Path, results: VisionResults) -> None:
    write_json(path, asdict(results))


def read_vision_results(path: Path) -> VisionResults:
    """results.json of an experiment on images.

    Raises:
        InputError: the file is missing or damaged; the field is named.
    """
    return from_json(VisionResults, read_json(path), str(path))
