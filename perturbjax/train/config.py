"""The settings of a training, which the ``Config`` of each chapter that trains holds."""

from dataclasses import dataclass
from typing import Literal

from perturbjax.errors import LARGEST, InputError, natural_number, positive_integer
from perturbjax.runs.config import check_choices


@dataclass(frozen=True)
class Training:
    """The gradient loop: AdamW on packed rows."""

    epochs: float = 3.0
    """Passes over the training rows."""
    steps: int | None = None
    """Optimizer steps, in place of epochs."""
    batch_rows: int = 8
    """Packed rows per optimizer step, over all devices."""
    row_tokens: int = 512
    """Tokens of a packed row; a demonstration that is longer is left out, and counted."""
    accumulate: int = 1
    """Parts of a batch that go through the model one after the other, their gradients added up, to save memory."""
    learning_rate: float = 1e-4
    """Highest learning rate of AdamW."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """How the learning rate goes on after the warm-up: cosine to zero, or constant."""
    warmup: float = 0.01
    """Fraction of the steps in which the learning rate rises from zero."""
    weight_decay: float = 0.01
    """AdamW's decay of matrices; vectors do not decay."""
    clip: float = 1.0
    """Highest global norm of a gradient."""
    compute: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type that the trained weights are used in; they are kept in float32. auto: the type of the base."""
    remat: bool = False
    """Compute each layer's activations again in the backward pass, to save memory."""
    every: int = 50
    """Steps between two commits; validation and a line of metrics.jsonl come with each."""
    patience: int = 0
    """Stop after so many validations without a lower loss, and keep the weights of the lowest; 0: train to the end, keep the last."""

    def validate(self) -> None:
        for name in ("batch_rows", "row_tokens", "accumulate", "every"):
            positive_integer(name, getattr(self, name))
        if (tokens := self.batch_rows * self.row_tokens) > LARGEST:
            given = f"`batch_rows` {self.batch_rows}, `row_tokens` {self.row_tokens}"
            raise InputError(f"{given}: a step of {tokens} tokens; at most {LARGEST} are required")
        if self.steps is not None:
            positive_integer("steps", self.steps)
        for name in ("epochs", "learning_rate", "clip"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"`{name}` {getattr(self, name)}: a number above 0 is required")
        if not 0 <= self.weight_decay < float("inf"):
            raise InputError(f"`weight_decay` {self.weight_decay}: 0 or a number above it is required")
        if not 0 <= self.warmup <= 1:
            raise InputError(f"`warmup` {self.warmup}: a fraction of the steps, from 0 to 1, is required")
        natural_number("patience", self.patience)
        if self.batch_rows % self.accumulate:
            raise InputError(f"`batch_rows` {self.batch_rows}: `accumulate` {self.accumulate} must divide it")
        check_choices(self)

    def total_steps(self, rows: int) -> int:
        """Optimizer steps over ``rows`` training rows.

        Raises:
            InputError: ``epochs`` makes more than can be counted.
        """
        if self.steps is not None:
            return self.steps
        steps = self.epochs * rows / self.batch_rows
        if steps > LARGEST:
            raise InputError(f"`epochs` {self.epochs}: {steps:.3g} steps, at most {LARGEST} are required")
        return max(1, round(steps))
