"""What a consolidation asks of its models, each question once: what was measured is kept in a file, and a resumed run reads it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from perturbjax.errors import InputError
from perturbjax.inference.outputs import EncodedBatch, Graded, Outputs
from perturbjax.randopt.ensemble import Ensemble
from perturbjax.randopt.flow import run_base, run_voters, vote_curve
from perturbjax.randopt.setup import Parts
from perturbjax.records import from_json, to_json
from perturbjax.runs.console import Progress
from perturbjax.runs.files import read_json, write_json

if TYPE_CHECKING:
    from perturbjax.inference import Engine
    from perturbjax.pretrained import Model
    from perturbjax.tree import Params

T = TypeVar("T")
Split = Literal["search", "select", "test"]


@dataclass(frozen=True)
class Option:
    """One model that an arm may end with.

    Attributes:
        label: what distinguishes it from the arm's others, in words.
        make: its parameters, of the model's shapes. A merge is made anew at each call, so that one is in memory at a time.
        tokens: spent to arrive at it, its answers on select not counted.
        write: writes what there is of it beside the whole model, into an empty directory; None: nothing.
    """

    label: str
    make: Callable[[], Params]
    tokens: int = 0
    write: Callable[[Path], Any] | None = None


@dataclass(frozen=True)
class Arm:
    """A way to one model. Select chooses among its options.

    Attributes:
        name: of the way.
        options: the one that changes the base least first.
        control: it is there to be compared with, and is never the result.
    """

    name: str
    options: tuple[Option, ...]
    control: bool = False


@dataclass(frozen=True)
class Asker:
    """The engine of a run with models that come and go, and files of what they answered.

    Attributes:
        parts, ensemble: of the run.
        engine: of the run; its base is whatever was asked last.
        folder: of the files.
        progress: told how far it is.
    """

    parts: Parts
    ensemble: Ensemble
    engine: Engine
    folder: Path
    progress: Progress

    @property
    def model(self) -> Model:
        """The base."""
        return self.parts.model

    @cached_property
    def search(self) -> EncodedBatch:
        return self._prepared("search")

    @cached_property
    def select(self) -> EncodedBatch:
        return self._prepared("select")

    @cached_property
    def test(self) -> EncodedBatch:
        return self._prepared("test")

    def _prepared(self, split: Split) -> EncodedBatch:
        return self.engine.prepare(getattr(self.parts.splits, split), self.parts.template)

    def kept(self, name: str, kind: type[T], make: Callable[[], T], fits: Callable[[T], bool]) -> T:
        """What ``make`` gives: from its file if it was made before, else made and written there, whole or not at all.

        Raises:
            InputError: the file is damaged, or its content does not fit.
        """
        path = self.folder / f"{re.sub(r'[^A-Za-z0-9.]+', '-', name)}.json"
        if not path.exists():
            made = make()
            self.folder.mkdir(exist_ok=True)
            write_json(path, to_json(made))
        found = from_json(kind, read_json(path), str(path))
        if not fits(found):
            raise InputError(f"{path}: is not of these questions or candidates; delete it, and it is made again")
        return found

    def one(self, label: str, split: Split, make: Callable[[], Params]) -> Graded:
        """One model on a split."""

        def ask() -> Graded:
            self.engine.rebase(make())
            return Graded.of(run_base(self.engine, getattr(self, split)))

        return self.kept(f"{split} {label}", Graded, ask, lambda found: self._fits(split, found))

    def several(self, split: Split, made: Sequence[tuple[str, Callable[[], Params]]]) -> list[Graded]:
        """Labels and models, one after the other."""
        found = []
        with self.progress.bar(f"{split} split: single models", len(made), unit="model") as bar:
            for label, make in made:
                found.append(self.one(label, split, make))
                bar.update(len(found))
        return found

    def base(self, split: Split) -> Graded:
        """The base on a split."""
        return self.one("base", split, lambda: self.model.params)

    def vote(self, split: Split) -> Graded:
        """The vote of all members on a split."""

        def ask() -> Graded:
            return Graded.of(vote_curve(self.members(getattr(self, split), f"{split} split: members"), self.ensemble.voting), -1)

        return self.kept(f"{split} vote", Graded, ask, lambda found: self._fits(split, found))

    def _fits(self, split: Split, found: Graded) -> bool:
        scores = (*found.scores, *found.lenient)
        return len(found.scores) == len(found.lenient) == len(getattr(self.parts.splits, split)) and all(0 <= s <= 1 for s in scores)

    def members(self, batch: EncodedBatch, stage: str) -> Outputs:
        """All members, best first, on prepared questions."""
        self.engine.rebase(self.model.params)
        return run_voters(self.engine, self.ensemble.population, self.ensemble.members, batch, stage, self.progress)
