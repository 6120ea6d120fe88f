"""What a grid on a language model is: nested frozen dataclasses, checked before anything is loaded or written.

Field names are the flags of ``perturbjax caulking`` with dashes; the strings below the fields are their help.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Literal

from perturbjax.caulking.program import Fitting
from perturbjax.errors import InputError, positive_integer
from perturbjax.runs.config import Machine, Run, check_choices, check_once, check_text

RATES: Mapping[str, float] = MappingProxyType({"lora": 1e-3, "adapter": 1e-3, "head": 1e-3, "bitfit": 3e-3, "full": 5e-5, "scratch": 5e-4})
"""Methods, with AdamW's highest learning rate where none is given."""
MOST_CELLS = 2**20
"""Cells of a grid at most: the table of them is in memory, and committed."""
KEPT = ("lora", "adapter", "bitfit", "head")
"""Methods whose caulks are written to files: the small ones."""


@dataclass(frozen=True)
class Bases:
    """The pretrained model, and how far its copies are moved away from it."""

    base: str = "smollm2-135m"
    """smollm2-135m (embedded), a .gguf file, a Hugging Face directory with safetensors, or a hub id."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the weights; auto is float32 on a CPU, where it is faster, and bfloat16 elsewhere."""
    sigmas: tuple[float, ...] = (0.0,)
    """Quality of the pretraining, comma separated: the base itself (0), and the base moved by RandOpt's gaussian noise of each sigma, a
    knob that needs no pretraining run. The noise is the same direction for every sigma."""

    def validate(self) -> None:
        check_text("base", self.base)
        check_choices(self)
        if not self.sigmas or any(not 0 <= sigma < float("inf") for sigma in self.sigmas) or list(self.sigmas) != sorted(set(self.sigmas)):
            raise InputError(f"`sigmas` {','.join(map(str, self.sigmas))}: growing numbers of at least 0 are required, e.g. 0,0.001,0.003")


@dataclass(frozen=True)
class Data:
    """The task whose labeled examples are counted."""

    target: str = "sst2"
    """Task of given answers: a name, a .jsonl file with question, answer and choices, or module:attribute."""
    template: str | None = None
    """Prompt template, by name; the task's first when left out."""
    test_examples: int = 256
    """Questions that measure every cell; none of them is trained on."""
    accuracies: tuple[float, ...] = (0.8,)
    """Fractions of right answers whose number of examples is asked for, comma separated."""

    def validate(self) -> None:
        check_text("target", self.target)
        positive_integer("test_examples", self.test_examples)
        if not self.accuracies or any(not 0 < accuracy < 1 for accuracy in self.accuracies):
            raise InputError(f"`accuracies` {','.join(map(str, self.accuracies))}: fractions between 0 and 1 are required")
        check_once("accuracies", self.accuracies)


@dataclass(frozen=True)
class Grid:
    """The cells: every method, sigma, number of samples and seed."""

    samples: tuple[int, ...] = (16, 32, 64, 128, 256, 512)
    """Numbers of labeled examples, comma separated; those of a seed are nested, and hold all answers as evenly as they can."""
    methods: tuple[str, ...] = ("lora",)
    """Comma separated: lora, adapter (bottlenecks), head, bitfit (biases and norms), full, scratch (random weights, all trained)."""
    seeds: int = 5
    """Seeds 0, 1, ...: of the examples, the caulk's start and the batches."""
    rank: int = 8
    """Of LoRA."""
    bottleneck: int = 16
    """Size of an adapter."""
    learning_rates: tuple[float, ...] = ()
    """Highest learning rate of each method, in the order of --methods; 1e-3 for lora, adapter and head, 3e-3 for bitfit, 5e-5 for full,
    5e-4 for scratch when left out."""
    in_flight: int = 4
    """Most caulks trained together on each device, on one copy of the base; full and scratch are trained one by one."""
    remat: bool = False
    """Compute each layer's activations again in the backward pass, to save memory."""

    def validate(self) -> None:
        for name in ("seeds", "rank", "bottleneck", "in_flight"):
            positive_integer(name, getattr(self, name))
        for n in self.samples:
            positive_integer("samples", n)
        if not self.samples or list(self.samples) != sorted(set(self.samples)):
            raise InputError(f"`samples` {','.join(map(str, self.samples)) or 'none'}: growing numbers of examples are required")
        for name in self.methods:
            if name not in RATES:
                raise InputError(f"`methods` {name}: some of {', '.join(RATES)} are required, comma separated")
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise InputError(f"`methods` {','.join(self.methods) or 'none'}: at least one, and each once, is required")
        if self.learning_rates and len(self.learning_rates) != len(self.methods):
            raise InputError(f"`learning_rates` {','.join(map(str, self.learning_rates))}: one for each of `methods` is required")
        if any(not 0 < rate < float("inf") for rate in self.learning_rates):
            raise InputError(f"`learning_rates` {','.join(map(str, self.learning_rates))}: numbers above 0 are required")

    def rate(self, method: str) -> float:
        """AdamW's highest learning rate of a method."""
        return self.learning_rates[self.methods.index(method)] if self.learning_rates else RATES[method]


@dataclass(frozen=True)
class Config:
    """Measure how many labeled examples an adapter of a language model needs, and how that falls with the quality of the pretraining.

    - the default run: perturbjax caulking
    - your own task: perturbjax caulking --base MODEL --target questions.jsonl --samples 16,64,256 --methods lora,scratch
    - what pretraining is worth: perturbjax caulking --sigmas 0,0.003,0.01
    - one of the adapters, as PEFT reads it: perturbjax export RUN --cell lora-q0-n64-s0 --out DIR
    - after a kill: the same command with --resume
    - what other accuracies take: the same command with --resume --accuracies 0.7,0.9, which trains nothing

    The plan (cells, tokens, expected time) is printed first. The base is never changed."""

    bases: Bases = field(default_factory=Bases)
    data: Data = field(default_factory=Data)
    grid: Grid = field(default_factory=Grid)
    fitting: Fitting = field(default_factory=lambda: Fitting(steps=100, batch=8))
    machine: Machine = field(default_factory=Machine)
    run: Run = field(default_factory=Run)

    IDENTITY: ClassVar = ("bases", "data", "grid", "fitting")
    """The parts that the result depends on: two runs with equal fields in them are the same run."""

    def validate(self) -> None:
        """Check every field that can be checked without loading anything.

        Raises:
            InputError: one line naming the field, its value, what is required.
        """
        for part in (self.bases, self.data, self.grid, self.fitting, self.machine):
            part.validate()
        grid = self.grid
        if (cells := len(grid.methods) * len(self.bases.sigmas) * len(grid.samples) * grid.seeds) > MOST_CELLS:
            raise InputError(f"`seeds` {grid.seeds}: {cells} cells of `methods`, `sigmas` and `samples`; at most {MOST_CELLS} are required")
        if self.machine.axes is not None and self.machine.axes[1] > 1:
            raise InputError(f"`mesh` {self.machine.mesh}: cells are sharded, models are not; use DATAx1")
