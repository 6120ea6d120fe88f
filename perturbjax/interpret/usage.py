"""What became of every lazy parameter: used in place, or materialized, and why. Nothing is materialized silently."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from perturbjax.interpret.array import LazyArray

_log = logging.getLogger(__name__)

WHILE_STEPS = 16
"""How many steps a while loop is taken to have: its trip count is not known before it runs."""


@dataclass(frozen=True)
class Use:
    """One use of one parameter in the traced function.

    Attributes:
        path: of the parameter.
        primitive: what used it.
        shape: of the part whose noise is made there.
        nbytes: of that part, perturbed.
        times: how often the loops around it repeat it; a while loop counts as ``WHILE_STEPS``.
        reason: why it was materialized, or None where it was used in place (a dot, a convolution, gathered rows, a vector).
    """

    path: str
    primitive: str
    shape: tuple[int, ...]
    nbytes: int
    times: int = 1
    reason: str | None = None

    @property
    def in_place(self) -> bool:
        return self.reason is None

    def __str__(self) -> str:
        size = f"{self.nbytes / 2**20:.3g} MiB"
        return f"{self.path}: {self.primitive} on {self.shape} ({size})" + ("" if self.in_place else f", materialized: {self.reason}")


@dataclass
class Usage:
    """All uses, in the order of the program; one of a loop's body stands once, with its ``times``."""

    strict: bool = False
    uses: list[Use] = field(default_factory=list)
    times: int = 1

    @contextlib.contextmanager
    def repeated(self, times: int) -> Iterator[None]:
        """Uses recorded inside are repeated that often."""
        self.times, before = self.times * times, self.times
        try:
            yield
        finally:
            self.times = before

    @property
    def noise_made(self) -> int:
        """Elements of noise made in one call."""
        return sum(math.prod(use.shape) * use.times for use in self.uses)

    @property
    def materialized(self) -> list[Use]:
        """The uses for which a matrix or more was materialized outside a dot, convolution or gather."""
        return [use for use in self.uses if not use.in_place]

    def record(self, value: LazyArray, primitive: str, reason: str | None = None) -> None:
        """Notes one use. A block with at most one long dim counts as used in place: it is no bigger than an activation.

        Raises:
            ValueError: in strict mode, for a matrix or more that must be materialized.
        """
        reason = None if value.is_vector else reason
        nbytes = value.base.size * np.dtype(value.base.dtype).itemsize
        use = Use(value.leaf.path, primitive, value.base.shape, nbytes, self.times, reason)
        if reason is not None:
            if self.strict:
                raise ValueError(
                    f"parameter {use.path}: primitive {primitive} needs all of {use.shape} at once ({reason}); strict=True refuses"
                )
            _log.info("%s", use)
        self.uses.append(use)

    def __str__(self) -> str:
        materialized = self.materialized
        head = f"{len(self.uses)} uses of {len({use.path for use in self.uses})} parameters, {len(materialized)} materialized"
        return "\n".join([head, *(f"  {use}" for use in materialized)])
