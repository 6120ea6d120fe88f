"""Which model a run serves: the vote of its members, or one model."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from perturbjax.errors import InputError
from perturbjax.pretrained import Model
from perturbjax.randopt.ensemble import Ensemble
from perturbjax.randopt.setup import Parts
from perturbjax.runs.rundir import RunDirectory


@dataclass(frozen=True)
class Choice:
    """Which of a run's models: its best when nothing is said.

    Attributes:
        base: the model that the run began from.
        rank: of an ensemble, the member of this rank alone.
        merge: of an ensemble, the average of its members.
        cell: of a grid of caulks, the cell.
        early_exit: of an ensemble, as ``perturbjax predict`` takes it.
    """

    base: bool = False
    rank: int | None = None
    merge: bool = False
    cell: str | None = None
    early_exit: float | None = None


@dataclass(frozen=True)
class Opened:
    """A model, or with ``ensemble`` its members, which vote, each or with ``early_exit`` until the vote is decided."""

    model: Model
    parts: Parts | None = None
    ensemble: Ensemble | None = None
    early_exit: float | None = None


def open_run(run: Path, choice: Choice, note: Callable[[str], None], trusted: Collection[str] = ()) -> Opened:
    """The model that a finished run serves.

    Raises:
        InputError: the run cannot be reopened, or its chapter has no such model.
    """
    chapter = RunDirectory(run).chapter
    if chapter not in _OPEN:
        raise InputError(f"{run}: a run of {chapter}; one of {', '.join(_OPEN)} is required")
    given = {name for name, value in vars(choice).items() if value is not None and value is not False}
    taken, opened = _OPEN[chapter]
    if unknown := sorted(given - set(taken)):
        raise InputError(f"`{unknown[0]}` {getattr(choice, unknown[0])}: {run} is a run of {chapter}, which does not take it; leave it out")
    if len(given) > 1:
        raise InputError(f"`{'`, `'.join(sorted(given))}`: at most one of them can be given")
    return opened(run, choice, note, trusted)


def _randopt(run: Path, choice: Choice, note: Callable[[str], None], trusted: Collection[str]) -> Opened:
    from perturbjax.noise import perturb
    from perturbjax.randopt.ensemble import merge
    from perturbjax.randopt.setup import reopen_ensemble

    parts, ensemble = reopen_ensemble(run, note, trusted)
    model = parts.model
    if choice.base:
        return Opened(model)
    if choice.merge:
        merged = merge(model.params, ensemble.candidates, ensemble.noise)
        return Opened(replace(model, name=f"{model.name}+merge", params=merged))
    if choice.rank is not None:
        candidate = ensemble.population[ensemble.of_rank(choice.rank)]
        theta = perturb(model.params, candidate, ensemble.noise)
        return Opened(replace(model, name=f"{model.name}+rank{choice.rank}", params=theta))
    return Opened(replace(model, name=f"{model.name}+vote"), parts, ensemble, choice.early_exit)


def _ivl(run: Path, choice: Choice, note: Callable[[str], None], trusted: Collection[str]) -> Opened:
    from perturbjax.ivl.reopen import reopen

    value = reopen(run, note, trusted)
    return Opened(value.trained if choice.base else value.on(None, None, 1.0, None).combined)


def _vpretrain(run: Path, choice: Choice, note: Callable[[str], None], trusted: Collection[str]) -> Opened:
    from perturbjax.vpretrain.reopen import reopen

    trained = reopen(run, note, trusted)
    return Opened(trained.start() if choice.base else trained.model)


def _caulking(run: Path, choice: Choice, note: Callable[[str], None], trusted: Collection[str]) -> Opened:
    from perturbjax.caulking.reopen import reopen

    return Opened(reopen(run, choice.cell, note, trusted).model)


_OPEN: dict[str, tuple[tuple[str, ...], Any]] = {
    "randopt": (("base", "rank", "merge", "early_exit"), _randopt),
    "ivl": (("base",), _ivl),
    "vpretrain": (("base",), _vpretrain),
    "caulking": (("cell",), _caulking),
}
"""Chapter -> the fields of ``Choice`` that it takes, and how its run is opened."""
