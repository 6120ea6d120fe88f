"""What a training of a value network is: nested frozen dataclasses, checked before anything is loaded or written.

Field names are the flags of ``perturbjax ivl`` with dashes; the strings below the fields are their help.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Literal

from perturbjax.errors import InputError, positive_integer
from perturbjax.ivl.value import CASCADES, PROBES, Connection, Outputs
from perturbjax.runs.config import Machine, Run, check_choices, check_once, check_seed, check_text
from perturbjax.train.config import Training

LOGITS_K = 64
"""Tokens that ``top_k`` keeps of each position."""
VocabularyName = Literal["exact_first", "dtw"]
"""Maps to a base with another vocabulary that can be asked for by name."""
RIVALS: Mapping[str, str] = MappingProxyType({"lora": "fine-tuned by LoRA", "full": "fine-tuned in full", "proxy": "proxy-tuning"})
"""What a value network can be measured against: name -> label in tables."""


@dataclass(frozen=True)
class Bases:
    """The frozen models that the value network is trained beside. They have one vocabulary."""

    base: str = "smollm2-135m"
    """smollm2-135m (embedded), a .gguf file, a Hugging Face directory with safetensors, or a hub id."""
    also: tuple[str, ...] = ()
    """Other bases of the same vocabulary, comma separated: steps take all of them in turn, against overfitting to one."""
    held_out: str | None = None
    """A base of the same vocabulary that is not trained on: validation is measured beside it."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the bases' weights; auto is float32 on a CPU, where it is faster, and bfloat16 elsewhere."""
    logits: Literal["live", "whole", "top_k"] = "live"
    """live: run the bases in every step. whole: run them once, write their logits in bfloat16 to RUN/logits, train without them in memory.
    top_k: the same with the likeliest tokens alone, a small part of the size. What is lost is measured and reported."""
    logits_k: int | None = None
    """How many tokens --logits top_k keeps at each position; 64 when left out."""

    @property
    def kept(self) -> int | None:
        """How many tokens of each position are written; None: all."""
        return (self.logits_k or LOGITS_K) if self.logits == "top_k" else None

    def validate(self) -> None:
        if self.logits_k is not None:
            positive_integer("logits_k", self.logits_k)
            if self.logits != "top_k":
                raise InputError(f"`logits_k` {self.logits_k}: only with `logits` top_k; with {self.logits} leave it out")
        for name in (self.base, *self.also):
            check_text("base", name)
        check_once("also", (self.base, *self.also))
        if self.held_out is not None:
            check_text("held_out", self.held_out)
            if self.held_out in (self.base, *self.also):
                raise InputError(f"`held_out` {self.held_out}: is trained on; name another base, or leave it out")
        check_choices(self)


@dataclass(frozen=True)
class Data:
    """Demonstrations, and the questions that measure what they taught."""

    demonstrations: str = "arithmetic"
    """A .jsonl file with messages, with prompt and response, or with question and answer; a task's name; module:attribute; or
    datasets:NAME:SPLIT."""
    template: str | None = None
    """Prompt template of a task, by name; its first when left out."""
    train_examples: int | None = None
    """Demonstrations to train on; all that the other two leave when left out."""
    validation_examples: int = 32
    """Demonstrations that are only measured while training."""
    task: str | None = None
    """Task whose questions are asked at the end; the demonstrations' own when these are a task."""
    test_examples: int = 64
    """Questions asked at the end, none of which any demonstration asks."""
    max_new_tokens: int | None = None
    """Generation budget of a generation task, in tokens; the task's own when left out."""
    rivals: tuple[str, ...] = ()
    """What to train on the same demonstrations and measure beside the value network: lora, full (the base itself, fine-tuned)."""

    def validate(self) -> None:
        check_text("demonstrations", self.demonstrations)
        if self.task is not None:
            check_text("task", self.task)
        for name in ("validation_examples", "test_examples"):
            positive_integer(name, getattr(self, name))
        for name in ("train_examples", "max_new_tokens"):
            if getattr(self, name) is not None:
                positive_integer(name, getattr(self, name))
        check_rivals(self.rivals, own_base=True)


def check_rivals(names: tuple[str, ...], own_base: bool) -> None:
    """Raise ``InputError`` unless these are rivals, and can be told apart on the base: its own, or another one."""
    for name in names:
        if name not in RIVALS:
            raise InputError(f"`rivals` {name}: some of {', '.join(RIVALS)} are required, comma separated")
    check_once("rivals", names)
    if own_base and "proxy" in names:
        why = "on the base that the value network was trained beside, proxy-tuning is the base fine-tuned in full"
        raise InputError(f"`rivals` proxy: {why}; name full, or measure another base")


@dataclass(frozen=True)
class Value:
    """The value network and its loss."""

    connection: Connection = "residual"
    """What it sees: residual (the tokens), cascade (the base's distribution), cascade_plus (both), multiplicative (tokens; scales logits),
    linear or mlp (the base's logits alone)."""
    layers: int | None = None
    """Its number of layers; the base's when left out."""
    init: Literal["base", "scratch"] = "base"
    """base: begin with the base's first layers; scratch: with random weights."""
    head: Literal["zero", "base"] = "zero"
    """zero: a head of its own that begins at zero, so that step 0 is the base; base: begin with the base's head."""
    outputs: Outputs = "tokens"
    """tokens: logits of the base's tokens; bytes: of the next byte, which fit a base of any vocabulary (residual only)."""
    penalty: float = 1.0
    """Weight of the norm of the value network's logits in the loss; it keeps what is learned fit for other bases."""
    power: Literal["1", "2"] = "1"
    """Of the norm: mean |z|, or mean z squared."""
    without_norm: bool = False
    """Train once more without the norm: the page then shows what each gains on validation, and loses again if trained too long."""
    seed: int = 0
    """Seed of random weights, of the splits and of the order of the rows."""

    def validate(self) -> None:
        if self.layers is not None:
            positive_integer("layers", self.layers)
        if not 0 <= self.penalty < float("inf"):
            raise InputError(f"`penalty` {self.penalty}: 0 or a number above it is required")
        check_seed(self.seed)
        check_choices(self)
        if self.without_norm and not self.penalty:
            raise InputError("`without_norm`: the value network has no norm in its loss (`penalty` 0), so there is nothing to compare")
        if self.outputs == "bytes" and (self.connection != "residual" or self.head != "zero"):
            raise InputError(f"`outputs` bytes: `connection` residual and `head` zero are required, not {self.connection}, {self.head}")
        if self.connection in PROBES and (self.layers is not None or self.init != "base"):
            raise InputError(f"`connection` {self.connection}: a probe of the logits has no layers; leave out `layers` and `init`")


@dataclass(frozen=True)
class Config:
    """Teach a small value network what demonstrations do to a base's logits, to be added to the logits of other models.

    - the default run: perturbjax ivl
    - your own demonstrations: perturbjax ivl --demonstrations chats.jsonl --task questions.jsonl
    - on another model afterwards: perturbjax evaluate RUN --base larger-model
    - after a kill: the same command with --resume

    The base is never changed. Demonstrations that ask a test question are left out, and counted."""

    bases: Bases = field(default_factory=Bases)
    data: Data = field(default_factory=Data)
    value: Value = field(default_factory=Value)
    training: Training = field(default_factory=Training)
    machine: Machine = field(default_factory=Machine)
    run: Run = field(default_factory=Run)

    IDENTITY: ClassVar = ("bases", "data", "value", "training")
    """The parts that the result depends on: two runs with equal fields in them are the same run."""

    def validate(self) -> None:
        """Check every field that can be checked without loading anything.

        Raises:
            InputError: one line naming the field, its value, what is required.
        """
        for part in (self.bases, self.data, self.value, self.training, self.machine):
            part.validate()
        if self.bases.logits != "live" and self.value.connection in CASCADES:
            reads = f"a {self.value.connection} reads the base's logits at all positions, and those of the learned ones alone are written"
            raise InputError(f"`logits` {self.bases.logits}: {reads}; use `logits` live")
