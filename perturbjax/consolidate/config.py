"""What one model is made of, and how. Field names are the flags of ``perturbjax consolidate``; the strings below them are their help."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from perturbjax.errors import InputError
from perturbjax.runs.config import check_choices, check_positive

By = Literal["merge", "distill", "iterate", "evolve"]
EXAMPLES = 128
"""Unlabeled questions that the members are asked, unless settings say otherwise."""
LORA_RANK = 8
LORA_RATE, FULL_RATE = 5e-4, 2e-5
"""Learning rates: factors that begin at zero need one more than ten times as high (ivl/rivals.py has the sources)."""
ROUNDS = {"iterate": 2, "evolve": 8}
"""Of each way, unless settings say otherwise."""
_OF: dict[str, tuple[str, ...]] = {
    "lengths": ("merge", "iterate", "evolve"),
    "rounds": ("iterate", "evolve"),
    "population": ("iterate", "evolve"),
    "examples": ("distill",),
    "rows": ("distill",),
    "targets": ("distill",),
    "train": ("distill",),
    "rank": ("distill",),
    "epochs": ("distill",),
    "learning_rate": ("distill",),
}
"""Setting -> the ways that read it."""


@dataclass(frozen=True)
class Config:
    """Make one model of the ensemble of a finished search: one forward pass a question in place of K.

    - the members' average: perturbjax consolidate RUN --by merge
    - their votes on unlabeled questions, learned by a LoRA adapter: perturbjax consolidate RUN --by distill
    - further searches around the merge: perturbjax consolidate RUN --by iterate --rounds 3
    - an evolution strategy from the base, on the run's questions: perturbjax consolidate RUN --by evolve --rounds 20
    - after a kill: the same command with --resume

    Every choice is made on the run's select questions, and the model is taken only if it beats the base there (the gate); otherwise the
    result is the base. The test questions are answered once, at the end, beside the vote and controls. RUN is not changed. The model is
    OUT/model, a Hugging Face directory that transformers and --model read; of LoRA there is OUT/adapter for PEFT as well."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run directory of a finished search (randopt), or what perturbjax select made of one."""
    by: By
    """merge: the mean of the members' noise, uniform and weighted by their gain on search. distill: training on the vote.
    iterate: search around the merge, merge, and again. evolve: search around the base, move along all candidates by their ranks, again."""
    out: Path | None = None
    """Directory to write; RUN-merge, RUN-distill, RUN-iterate or RUN-evolve beside the run when left out."""
    resume: bool = False
    """Continue in --out where it stopped; starts it if there is nothing."""
    lengths: tuple[float, ...] = ()
    """Of merge and iterate: steps that are tried, in lengths of the members' mean; 0.25, 0.5, 1 and the root of K when left out. The mean
    of K independent noises is that root shorter than one, so the last step is as long as a member. Of evolve, in lengths of a candidate;
    1 when left out."""
    rounds: int | None = None
    """Of iterate: searches after the run's own, 2 when left out. Of evolve: steps, 8 when left out."""
    population: int | None = None
    """Of iterate and evolve: candidates of each search; as many as the run had when left out."""
    examples: int | None = None
    """Of distill: questions that no split of the run holds, which the members are asked; 128, or all there are, when left out."""
    rows: Literal["hard", "all"] = "hard"
    """Of distill: learn those on which members differ or the base is not with the vote (hard), or all."""
    targets: Literal["vote", "shares"] = "vote"
    """Of distill: the voted answer, or for multiple-choice tasks each choice by its share of the votes."""
    train: Literal["lora", "full"] = "lora"
    """Of distill: a LoRA adapter, or all weights."""
    rank: int | None = None
    """Of distill with LoRA: its rank; 8 when left out."""
    epochs: float = 6.0
    """Of distill: passes over the rows."""
    learning_rate: float | None = None
    """Of distill: highest rate of AdamW; 5e-4 for LoRA and 2e-5 for all weights when left out."""
    trust: tuple[str, ...] = ()
    """As for perturbjax evaluate."""
    compile_cache: str = "auto"
    """As for randopt."""

    def __post_init__(self) -> None:
        for name in ("run", "out"):
            if isinstance(getattr(self, name), str):  # from Python a text is as good
                object.__setattr__(self, name, Path(getattr(self, name)))

    def validate(self) -> None:
        """Raise ``InputError`` for settings that cannot be used, whatever the run."""
        check_choices(self)
        for field in fields(self):
            if self.by not in _OF.get(field.name, (self.by,)) and getattr(self, field.name) != field.default:
                raise InputError(f"`{field.name}` {_shown(getattr(self, field.name))}: `by` {self.by} does not take it; leave it out")
        check_positive(self, "rounds", "population", "examples", "rank")
        if not all(0 < length < math.inf for length in self.lengths) or len(set(self.lengths)) < len(self.lengths):
            raise InputError(f"`lengths` {_shown(self.lengths)}: different numbers above 0 are required")
        if self.train == "full" and self.rank is not None:
            raise InputError(f"`rank` {self.rank}: only LoRA has one; leave it out, or leave `train` full out")
        for name in ("epochs", "learning_rate"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise InputError(f"`{name}` {value}: a number above 0 is required")

    def lengths_of(self, members: int) -> tuple[float, ...]:
        """The steps that are tried with so many members, ascending."""
        usual = {1.0} if self.by == "evolve" else {0.25, 0.5, 1.0, math.sqrt(members)}
        return tuple(sorted(self.lengths or usual))

    @property
    def settings(self) -> dict[str, Any]:
        """What the result depends on, beside the run: the settings that ``by`` reads, resolved where the run does not matter."""
        resolved = {
            "rounds": self.rounds or ROUNDS.get(self.by),
            "examples": self.examples or EXAMPLES,
            "rank": self.rank or LORA_RANK,
            "learning_rate": self.learning_rate or (LORA_RATE if self.train == "lora" else FULL_RATE),
        }
        values = {name: resolved.get(name, getattr(self, name)) for name, ways in _OF.items() if self.by in ways}
        if self.train == "full":
            values.pop("rank", None)
        given = {name: value for name, value in values.items() if value not in (None, ())}
        return {"by": self.by, **{name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}}


def _shown(value: Any) -> str:
    return ",".join(f"{each:g}" for each in value) if isinstance(value, tuple) else str(value)
