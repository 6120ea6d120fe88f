"""One model that answers: batches in static shapes, their replies in pieces as they are decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax.inference.decode import NO_TOKEN, Decoding, State
from perturbjax.inference.packing import bucket
from perturbjax.noise.values import root_key_data
from perturbjax.pretrained import Model
from perturbjax.serve.config import Limits
from perturbjax.serve.work import Piece, Work, batch_arrays, rehearsals

PIECE_TOKENS = 4
"""Tokens that are decoded between two looks of the host: what a stream sends at a time, and how late a client that left is noticed."""


class OneModel:
    """A model on the first device. Prompts are run together; then all rows are decoded a few tokens at a time, and rows that have stopped
    leave the batch as in ``inference.decode``, here with the host deciding.

    Args:
        model: any model that inference runs.
        limits: the shapes that its programs are compiled for.
    """

    streams = True

    def __init__(self, model: Model, limits: Limits):
        limits.check_context(model.config.max_positions)
        self._model, self._limits = model, limits
        self._params = jax.device_put(model.params, jax.devices()[0])
        self._stops = model.tokenizer.stop_ids
        self.traces = 0
        self._start = jax.jit(self._traced_start)
        self._advance = jax.jit(self._traced_advance, static_argnames="width", donate_argnames="state")
        self._take = jax.jit(_taken, static_argnames="size")

    def _decoding(self, params: Any, width: int) -> Decoding:
        return Decoding(self._model.config.build(params), width, self._stops, key_data=root_key_data(0))

    def _traced_start(self, params: Any, arrays: dict[str, jax.Array]) -> State:
        self.traces += 1
        names = ("seeds", "temperature", "limits")
        decoding = self._decoding(params, arrays["tokens"].shape[1])
        own = (arrays[name] for name in names)
        return decoding.start(arrays["tokens"], arrays["lengths"], arrays["valid"], self._limits.max_tokens, *own)

    def _traced_advance(self, params: Any, state: State, cancelled: jax.Array, width: int) -> State:
        self.traces += 1
        state = state._replace(stopped=state.stopped | cancelled[state.row])
        end = state.step + PIECE_TOKENS
        step = self._decoding(params, width).step
        return jax.lax.while_loop(lambda state: (state.step < end) & ~state.stopped.all(), step, state)

    def warm_up(self, note: Callable[[str], None]) -> None:
        for batch in rehearsals(self._limits):
            rows, width = len(batch), len(batch[0].tokens)
            note(f"compiling for {rows} prompts of up to {width} tokens")
            state = self._start(self._params, batch_arrays(batch, self._limits))
            state = self._advance(self._params, state, np.zeros(rows, bool), width=width)
            for smaller in (size for size in self._limits.rows if size < rows):
                self._take(state, size=smaller)

    def answer(self, batch: Sequence[Work]) -> int:
        arrays = batch_arrays(batch, self._limits)
        rows, width = arrays["tokens"].shape
        state, generated, sent = self._start(self._params, arrays), 0, 0
        # Which request each row of the batch is; those that have ended, and rows of padding, are None.
        owners: list[Work | None] = [*batch, *[None] * (rows - len(batch))]
        while True:
            step, stopped, tokens, finite = jax.device_get((state.step, state.stopped, state.replies.tokens, state.replies.finite))
            for row, work in enumerate(owners):
                if work is not None:
                    new = [int(token) for token in tokens[row, sent:step] if token != NO_TOKEN]
                    generated += len(new)
                    work.emit(self._piece(new, bool(stopped[row]), bool(finite[row])))
                    owners[row] = None if stopped[row] else work
            sent = step
            if (writing := sum(work is not None for work in owners)) == 0:
                return generated
            if (smaller := bucket(writing, self._limits.rows)) < len(owners):
                state, kept = self._take(state, size=smaller)
                owners = [owners[row] for row in np.asarray(kept)]
            cancelled = np.array([work is not None and work.cancelled for work in owners])
            state = self._advance(self._params, state, cancelled, width=width)

    def _piece(self, tokens: list[int], ended: bool, finite: bool) -> Piece:
        if not finite:
            return Piece(ended="error")
        if not ended:
            return Piece(tuple(tokens))
        at_stop = bool(tokens) and tokens[-1] in self._stops
        return Piece(tuple(tokens[:-1] if at_stop else tokens), "stop" if at_stop else "length")


def _taken(state: State, size: int) -> tuple[State, jax.Array]:
    """The batch of the rows that still write, with replies of these alone, and which rows of the batch before they were: shapes depend on
    ``size``, not on the size at the start."""
    taken = state.take(size)
    kept = state.replies._replace(tokens=state.replies.tokens[taken.row], finite=state.replies.finite[taken.row])
    return taken._replace(row=jnp.arange(size), replies=kept), taken.row
