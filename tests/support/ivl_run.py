"""The run directory of a value network's training, made by hand: every figure is written down, nothing is trained."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from perturbjax.ivl.config import Bases, Config, Data, Value
from perturbjax.ivl.map_statistics import MapStatistics, MassLoss, Matches, TokenLoss
from perturbjax.ivl.results import (
    VALUE_ALONE,
    VERSION,
    WITH_VALUE,
    BaseEntries,
    Demonstrated,
    Evaluation,
    Results,
    TokenChanges,
)
from perturbjax.records import to_json
from perturbjax.report import ComparedEntry, Entry, Source
from perturbjax.report.accounting import wilson
from perturbjax.train.config import Training
from perturbjax.train.problem import Look

DEVICES = {"backend": "cpu", "kinds": ["cpu"], "count": 1, "processes": 1}
QUESTIONS = 64


def system(right: int, lenient: int | None = None, tokens: int = 2210) -> Entry:
    """The figures of ``right`` of 64."""
    n = QUESTIONS
    found = {"n": n, "accuracy": right / n, "interval": wilson(right, n), "tokens": tokens, "search_tokens": 0}
    return Entry(**found, lenient_accuracy=(right if lenient is None else lenient) / n)


def compared(right: int, base: int, interval: tuple[float, float], p_value: float, lenient: int | None = None) -> ComparedEntry:
    """As ``system``, beside a base with ``base`` right; interval and p are what the test of verdicts needs."""
    entry, difference = vars(system(right, lenient)), (right - base) / QUESTIONS
    gained, lost = max(0, right - base) + 2, max(0, base - right) + 2
    return ComparedEntry(**entry, difference=difference, difference_interval=interval, gained=gained, lost=lost, p_value=p_value)


def looks(steps: int = 10, every: int = 20) -> tuple[Look, ...]:
    """Curves that fall and, in validation, rise again at the end."""

    def one(number: int) -> Look:
        training, validation = 0.3 + 1.6 / number, 0.55 + 1.4 / number + 0.012 * max(0, number - 6) ** 2
        norm = 0.4 * (1 - 0.8**number)
        losses = {"loss": training + norm, "cross_entropy": training, "base_cross_entropy": 2.4 + 0.05 * (-1) ** number, "norm": norm}
        held = {"loss": validation + norm, "cross_entropy": validation, "base_cross_entropy": 2.5, "norm": 1.1 * norm}
        rate = None if number == 1 else 2100.0
        return Look(number * every, losses, 3.0 / number, 1e-4, held, number * every * 900, number * 8.5, rate)

    return tuple(map(one, range(1, steps + 1)))


def statistics(mass: bool = True) -> MapStatistics:
    """Of a map that loses numbers of several digits."""
    lost = (TokenLoss(" 128", (" 1", "2", "8"), 0.004), TokenLoss("<extra_7>", (), 0.001))
    of_base = MassLoss(40, 0.931, 0.064, 0.005, lost) if mass else None
    of_value = MassLoss(40, 0.95, 0.03, 0.02, ()) if mass else None
    return MapStatistics(49152, 0.874, 0.021, Matches(20, 0, 0), Matches(0, 990, 10), lost[:1], of_base, of_value)


def config() -> Config:
    value, training = Value(layers=6, penalty=0.5), Training(steps=200, every=20, patience=3)
    return Config(Bases("small-135m"), Data(demonstrations="arithmetic", test_examples=QUESTIONS), value, training)


def results() -> Results:
    """A clear win beside the base, none of the value network alone."""
    systems = {
        WITH_VALUE: compared(40, 12, (0.3, 0.56), 1e-6, lenient=41),
        VALUE_ALONE: compared(9, 12, (-0.12, 0.03), 0.5, lenient=9),
    }
    model = Source("small-135m", "an embedded model, 8-bit blocks, held in float32")
    entries = BaseEntries(model, system(12, lenient=30), systems, TokenChanges(1530, 0.117, 0.0), None)
    shown = Demonstrated("arithmetic", 400, 32, 118, 3, 5, 41_000)
    task = Source("arithmetic", "made by this package")
    return Results(VERSION, task, "plain", shown, 28_311_552, looks(), 140, True, entries)


def evaluation(
    name: str = "larger-360m", right: int = 45, base: int = 20, interval=(0.25, 0.53), p_value: float = 1e-5, **changes
) -> Evaluation:
    """One of another base; ``changes`` are fields of it, or of its entries."""
    systems = {WITH_VALUE: compared(right, base, interval, p_value)}
    found = BaseEntries(Source(name, "a larger model"), system(base), systems, TokenChanges(1400, 0.092, 0.0), None)
    found = replace(found, **{key: changes.pop(key) for key in ("changes", "map_statistics") if key in changes})
    return replace(Evaluation(VERSION, Source("arithmetic", "made by this package"), "plain", 1.0, None, None, found), **changes)


def write_run(folder: Path, results: Results, config: Config, evaluations: dict[str, Evaluation] | None = None) -> Path:
    """A finished run but for its report."""
    folder.mkdir(exist_ok=True)
    write(folder / "results.json", to_json(results))
    write(folder / "config.json", {"chapter": "ivl", "config": to_json(config), "devices": DEVICES, "versions": {"jax": "0.10.2"}})
    for name, each in (evaluations or {}).items():
        write(folder / f"evaluation-{name}.json", to_json(each))
    return folder


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))
