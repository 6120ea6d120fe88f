"""What a request is to the machine: a prompt in tokens, how to continue it, and where what comes out goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from perturbjax.inference.packing import bucket
from perturbjax.serve.config import Limits


class ServerFault(Exception):
    """A batch failed by no fault of its clients; why is in the log of the server."""


@dataclass
class Work:
    """One prompt that waits for its reply.

    Attributes:
        tokens: of the prompt, at least one.
        max_tokens: of the longest reply.
        temperature: of sampling; 0 is greedy.
        seed: of sampling, below 2**31; equal ones give equal replies, whatever is answered beside them.
        question: what was asked, in words, for a task that reads the replies.
        emit: told each ``Piece`` that comes, the last with ``ended`` set; called from another thread.
        cancelled: nobody waits for the rest.
    """

    tokens: Sequence[int]
    max_tokens: int
    emit: Callable[[Piece], None]
    temperature: float = 0.0
    seed: int = 0
    question: str = ""
    cancelled: bool = field(default=False, init=False)


@dataclass(frozen=True)
class Piece:
    """Some of a reply.

    Attributes:
        tokens: that were chosen, in order; the stop token is not among them.
        ended: "stop" at a stop token, "length" at the longest reply, "error" where the machine failed; None: more comes.
        vote: what members voted, of a vote; its keys are those of ``Members``.
    """

    tokens: tuple[int, ...] = ()
    ended: str | None = None
    vote: dict[str, Any] | None = None


class Answering(Protocol):
    """What answers batches: one model, or several that vote."""

    streams: bool
    """Whether a reply comes in pieces."""

    def answer(self, batch: Sequence[Work]) -> int:
        """Answers up to ``Limits.max_batch`` requests, each by its ``emit``; the tokens that were generated, those of all members."""
        ...

    def warm_up(self, note: Callable[[str], None]) -> None:
        """Compiles every program that a batch may need."""
        ...

    @property
    def traces(self) -> int:
        """How often a program was traced so far."""
        ...


def batch_arrays(batch: Sequence[Work], limits: Limits) -> dict[str, np.ndarray]:
    """Pads a batch into one of the static shapes: B rows, T columns.

    Returns:
        ``tokens`` (B, T) int32; ``lengths``, ``limits``, ``seeds`` (B,) int32; ``temperature`` (B,) float32; ``valid`` (B,) bool, False on
        padding rows.
    """
    rows = bucket(len(batch), limits.rows)
    width = bucket(max(len(work.tokens) for work in batch), limits.widths)
    arrays: dict[str, np.ndarray] = {name: np.zeros(rows, np.int32) for name in ("lengths", "limits", "seeds")}
    arrays |= {"tokens": np.zeros((rows, width), np.int32), "temperature": np.zeros(rows, np.float32)}
    arrays["lengths"][:], arrays["limits"][:] = 1, 1
    for row, work in enumerate(batch):
        arrays["tokens"][row, : len(work.tokens)] = work.tokens
        arrays["lengths"][row], arrays["limits"][row], arrays["seeds"][row] = len(work.tokens), work.max_tokens, work.seed
        arrays["temperature"][row] = work.temperature
    return arrays | {"valid": np.arange(rows) < len(batch)}


def rehearsals(limits: Limits) -> list[list[Work]]:
    """A batch of each static shape, of replies of one token that nobody reads."""
    return [[Work([0] * width, 1, lambda _: None) for _ in range(rows)] for width in limits.widths for rows in limits.rows]
