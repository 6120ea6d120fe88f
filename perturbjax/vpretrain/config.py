"""What a steered pretraining is: nested frozen dataclasses, checked before anything is loaded or written.

Field names are the flags of ``perturbjax vpretrain`` with dashes; the strings below the fields are their help.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from perturbjax.errors import LARGEST, InputError, natural_number, positive_integer
from perturbjax.noise.spec import Rule
from perturbjax.runs.config import Base, Machine, Run, check_choices, check_once, check_seed, check_text
from perturbjax.train.config import Training

Mode = Literal["plain", "value", "random", "uniform", "self", "oracle", "fine_tuning"]
MODES: tuple[Mode, ...] = ("plain", "value", "random", "uniform", "self", "oracle", "fine_tuning")
Similarity = Literal["dot", "cosine", "preconditioned"]
OVERLAPS = ("corpus+feedback", "corpus+test", "feedback+test", "corpus+general")
"""Pairs of sets that share no row, unless a setting names them."""
LOOK_QUESTIONS = 32
"""Of a multiple-choice task that are asked at every look, where no setting says how many."""


@dataclass(frozen=True)
class Data:
    """The corpus to train on, the feedback that steers, and text of another domain."""

    corpus: str = ""
    """A .jsonl file with text, with prompt and response, with messages, or with question and answer; a .txt file; a task's name; or
    datasets:NAME:SPLIT."""
    feedback: tuple[str, ...] = ()
    """Tasks, or files as for the corpus, comma separated: their rows are divided into feedback, validation and test."""
    feedback_weights: tuple[float, ...] = ()
    """A weight for each, comma separated; all 1 when left out."""
    feedback_domains: tuple[str, ...] = ()
    """A domain for each, comma separated: it steers the rows of the corpus of that domain alone, which their field domain says; a .jsonl
    file with text, with prompt and response, or with messages is required then. Each steers all rows when left out."""
    general: str | None = None
    """Held-out text of another domain, a file as for the corpus, none of it in the corpus: its loss is measured at every look."""
    feedback_examples: int = 256
    """Rows of each that steer."""
    validation_examples: int = 32
    """Rows of each whose loss is measured at every look."""
    accuracy_questions: int | None = None
    """Of these rows so many of each task are asked as questions at every look. 32 of multiple-choice tasks when left out, and none of
    tasks whose replies are generated, which may take longer than the steps. 0: none at all."""
    test_examples: int = 64
    """Rows of each that are measured once, at the end."""
    feedback_rows: int = 8
    """Packed rows of each in one update of the designer."""
    repeat: bool = False
    """Read the corpus more than once where the steps need more rows than it has."""
    allow_overlap: tuple[str, ...] = ()
    """Pairs of sets that may share rows, comma separated, of corpus+feedback, corpus+test, feedback+test, corpus+general."""

    def validate(self) -> None:
        check_text("corpus", self.corpus)
        if not self.feedback:
            raise InputError("`feedback`: at least one task or file is required; it says what pretraining is to serve")
        for name in self.feedback:
            check_text("feedback", name)
        if len(set(self.feedback)) < len(self.feedback):
            raise InputError(f"`feedback` {','.join(self.feedback)}: one is named twice; give it a weight in `feedback_weights`")
        if self.feedback_weights and len(self.feedback_weights) != len(self.feedback):
            count = f"{len(self.feedback)} weights are required, one for each `feedback`"
            raise InputError(f"`feedback_weights` {','.join(map(str, self.feedback_weights))}: {count}")
        if any(not 0 < weight < float("inf") for weight in self.feedback_weights):
            raise InputError(f"`feedback_weights` {','.join(map(str, self.feedback_weights))}: numbers above 0 are required")
        if self.feedback_domains and len(self.feedback_domains) != len(self.feedback):
            count = f"{len(self.feedback)} domains are required, one for each `feedback`"
            raise InputError(f"`feedback_domains` {','.join(self.feedback_domains)}: {count}")
        for name in self.feedback_domains:
            check_text("feedback_domains", name)
        for name in ("feedback_examples", "validation_examples", "test_examples", "feedback_rows"):
            positive_integer(name, getattr(self, name))
        if self.accuracy_questions is not None:
            natural_number("accuracy_questions", self.accuracy_questions)
            if self.accuracy_questions > self.validation_examples:
                given = f"`accuracy_questions` {self.accuracy_questions}: at most `validation_examples` {self.validation_examples}"
                raise InputError(f"{given} can be asked; raise that, or lower it")
        check_once("allow_overlap", self.allow_overlap)
        for pair in self.allow_overlap:
            if pair not in OVERLAPS:
                raise InputError(f"`allow_overlap` {pair}: one of {', '.join(OVERLAPS)} is required")

    def asked_at_looks(self, kind: str) -> int:
        """How many validation questions of a task of this kind are asked at every look."""
        if self.accuracy_questions is not None:
            return self.accuracy_questions
        return min(LOOK_QUESTIONS, self.validation_examples) if kind == "choice" else 0

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each feedback set."""
        return dict(zip(self.feedback, self.feedback_weights or (1.0,) * len(self.feedback), strict=True))

    @property
    def domains(self) -> dict[str, str]:
        """Domain of each feedback set; empty where all of them steer all rows."""
        return dict(zip(self.feedback, self.feedback_domains, strict=True)) if self.feedback_domains else {}

    @property
    def domain_names(self) -> tuple[str, ...]:
        """The domains, each once, in the order of their numbers."""
        return tuple(dict.fromkeys(self.feedback_domains))


@dataclass(frozen=True)
class Adapt:
    """What of the model is trained."""

    train: Literal["full", "lora"] = "full"
    """full: all parameters; lora: low-rank changes of the matrices in its layers, merged into the model at the end."""
    lora_rank: int | None = None
    """Of lora; 8 when left out."""
    lora_alpha: float = 16.0
    """The change is multiplied by alpha / rank."""

    def validate(self) -> None:
        check_choices(self)
        if self.train == "full" and (self.lora_rank is not None or self.lora_alpha != Adapt.lora_alpha):
            raise InputError("`lora_rank`, `lora_alpha`: all parameters are trained; leave them out, or set `train` lora")
        if self.lora_rank is not None:
            positive_integer("lora_rank", self.lora_rank)
        if not 0 < self.lora_alpha < float("inf"):
            raise InputError(f"`lora_alpha` {self.lora_alpha}: a number above 0 is required")


@dataclass(frozen=True)
class Steer:
    """The designer of targets, and what its value is."""

    mode: Mode = "value"
    """What is trained: value (the method), or a control in its place: plain, random, uniform, self, oracle, fine_tuning."""
    controls: tuple[str, ...] = ("plain",)
    """Modes that are trained besides, from the same start on the same batches, comma separated; each costs a training. '': none."""
    candidates: int = 64
    """K: the true token and the K - 1 that the learner holds likeliest."""
    alpha_max: float = 0.5
    """Highest share of a target that does not lie on the true token alone."""
    similarity: Similarity = "dot"
    """Of the learner's gradient to that of the feedback: dot, cosine, or preconditioned (as AdamW scales it)."""
    meta_period: int = 8
    """r: steps between two updates of the designer."""
    burn_in: int = 0
    """Steps before the first update; until then targets are the true tokens."""
    subset_layers: int | None = 2
    """The value looks at the last so many layers; with --subset-rules, at these leaves of them. 0: at all that the rules choose."""
    subset_rules: tuple[Rule | str, ...] = ()
    """Which paths the value looks at: REGEX, or REGEX=exclude, comma separated; first match wins. With exclusions alone, all the others."""
    designer: Path | None = None
    """A run directory of perturbjax vpretrain whose designer is the start; a new one when left out."""
    designer_hidden: int = 256
    """Width of the designer."""
    designer_layers: int = 6
    """Its layers; it has 4 heads."""
    designer_log_probs: bool = True
    """The designer sees the learner's log-probabilities of the candidates."""
    designer_learning_rate: float = 1e-4
    """Of the designer's Adam."""
    probe: bool = True
    """Measure after each updated step how far the feedback loss fell, beside what was predicted; one more forward pass."""
    seed: int = 0
    """Seed of the designer, of the splits and of the order of the rows."""

    def validate(self) -> None:
        check_choices(self)
        for name in self.controls:
            if name not in MODES:
                raise InputError(f"`controls` {name}: one of {', '.join(MODES)} is required")
        check_once("controls", self.controls)
        for name in ("meta_period", "designer_layers", "designer_hidden"):
            positive_integer(name, getattr(self, name))
        if self.candidates < 2:
            raise InputError(f"`candidates` {self.candidates}: an integer of at least 2 is required")
        if not 0 <= self.alpha_max <= 1:
            raise InputError(f"`alpha_max` {self.alpha_max}: a fraction from 0 to 1 is required")
        natural_number("burn_in", self.burn_in)
        if self.subset_layers is not None:
            natural_number("subset_layers", self.subset_layers)
        if self.designer_hidden % 8:
            raise InputError(f"`designer_hidden` {self.designer_hidden}: a multiple of 8 is required")
        if not 0 < self.designer_learning_rate < float("inf"):
            raise InputError(f"`designer_learning_rate` {self.designer_learning_rate}: a number above 0 is required")
        check_seed(self.seed)

    @property
    def arms(self) -> tuple[Mode, ...]:
        """The mode and its controls, in the order of ``MODES``."""
        return tuple(mode for mode in MODES if mode == self.mode or mode in self.controls)


@dataclass(frozen=True)
class Config:
    """Pretrain a model further on a corpus whose targets a small designer chooses, so that steps serve a feedback set.

    - on your own data: perturbjax vpretrain --corpus texts.jsonl --feedback questions.jsonl
    - after a kill: the same command with --resume
    - with more controls, in a finished run too: the same command with --resume --controls plain,random,self,fine_tuning

    The model never trains on the feedback: it only teaches the designer. Rows that corpus, feedback and test share are refused."""

    base: Base = field(default_factory=Base)
    data: Data = field(default_factory=Data)
    adapt: Adapt = field(default_factory=Adapt)
    steer: Steer = field(default_factory=Steer)
    training: Training = field(default_factory=lambda: Training(epochs=1.0, learning_rate=1.5e-5, warmup=0.03))
    machine: Machine = field(default_factory=Machine)
    run: Run = field(default_factory=Run)

    IDENTITY: ClassVar = ("base", "data", "adapt", "steer", "training")
    """The parts that the result depends on: two runs with equal fields in them are the same run."""

    def validate(self) -> None:
        """Check every field that can be checked without loading anything.

        Raises:
            InputError: one line naming the field, its value, what is required.
        """
        for part in (self.base, self.data, self.adapt, self.steer, self.training, self.machine):
            part.validate()
        if (tokens := self.data.feedback_rows * self.training.row_tokens) > LARGEST:
            given = f"`feedback_rows` {self.data.feedback_rows}, `row_tokens` {self.training.row_tokens}"
            raise InputError(f"{given}: an update of {tokens} tokens; at most {LARGEST} are required")
        if self.data.feedback_domains and self.steer.similarity == "cosine":
            raise InputError("`similarity` cosine: it is of all rows together; with `feedback_domains`, dot or preconditioned is required")
        if self.training.patience:
            raise InputError(f"`patience` {self.training.patience}: all arms take the same steps; leave it out")
