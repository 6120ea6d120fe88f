"""How likely texts are to a served model, or to the members of an ensemble together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax.inference.packing import bucket
from perturbjax.models.attention import causal_mask
from perturbjax.noise import Candidate
from perturbjax.runs.config import Machine
from perturbjax.runs.machine import make_mesh
from perturbjax.scoring import ChunkProgram
from perturbjax.serve.config import PROMPT_WIDTHS
from perturbjax.serve.runs import Opened

Pair = tuple[Sequence[int], Sequence[int]]
"""Tokens of a context, at least one, and of what follows it, at least one."""


class Likelihoods:
    """log p(continuation | context), and whether greedy decoding would write it.

    Members are a mixture: p is the mean of theirs, each of the whole continuation; it would be written if more than half would write it.

    Args:
        opened: the model, or the members.
        rows: pairs of one program.
        longest: tokens of the longest context with its continuation.
    """

    def __init__(self, opened: Opened, rows: int, longest: int):
        self._rows, self._widths = rows, (*(width for width in PROMPT_WIDTHS if width < longest), longest)
        config, ensemble = opened.model.config, opened.ensemble

        def score(params: Any, _: Any, data: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            model, tokens = config.build(params), data["tokens"]
            column = jnp.arange(tokens.shape[1])
            positions = jnp.broadcast_to(column[None], tokens.shape)
            hidden, _ = model(tokens, positions, causal_mask(column[None] < data["end"][:, None]))

            def one(row: tuple[Any, jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
                # Of one row: the logits of a whole batch may take more than the model.
                states, ids, start, end = row
                logits, following = model.logits(states), jnp.roll(ids, -1)
                log_probs = model.vocabulary.take(logits, following[:, None]) - model.vocabulary.logsumexp(logits)
                asked = (column >= start - 1) & (column < end - 1)
                greedy = (model.vocabulary.argmax(logits) == following) | ~asked
                return jnp.where(asked, log_probs[:, 0], 0.0).sum(), greedy.all()

            return jax.lax.map(one, (hidden, tokens, data["start"], data["end"]))

        noise, strategy, machine = None, "copy", Machine()
        self._candidates, chunk = Candidate.base(1), 1
        if opened.parts is not None and ensemble is not None:
            noise, self._candidates, chunk = ensemble.noise, ensemble.candidates, opened.parts.config.machine.chunk
        self._program = ChunkProgram(score, opened.model.params, noise, make_mesh(machine), chunk, strategy=strategy)

    def __call__(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """Of each pair, in order. A context too long is cut on the left.

        Raises:
            ValueError: a continuation longer than ``longest``.
        """
        cut = [self._cut(*pair) for pair in pairs]
        found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        order = sorted(range(len(cut)), key=lambda i: -len(cut[i][0]))  # rows of like length together; the most padding first
        for first in range(0, len(order), self._rows):
            group = order[first : first + self._rows]
            for index, score in zip(group, self._scored([cut[i] for i in group]), strict=True):
                found[index] = score
        return found

    def _cut(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[list[int], int]:
        """The tokens, and where the continuation begins."""
        longest = self._widths[-1]
        if not context or not 1 <= len(continuation) < longest:
            raise ValueError(f"continuation of {len(continuation)} tokens after {len(context)}: 1 to {longest - 1} after at least 1")
        tokens = [*context, *continuation][-longest:]
        return tokens, len(tokens) - len(continuation)

    def _scored(self, rows: list[tuple[list[int], int]]) -> list[tuple[float, bool]]:
        width = bucket(max(len(tokens) for tokens, _ in rows), self._widths)
        data = {
            "tokens": np.zeros((self._rows, width), np.int32),
            "start": np.ones(self._rows, np.int32),
            "end": np.ones(self._rows, np.int32),
        }
        for row, (tokens, start) in enumerate(rows):
            data["tokens"][row, : len(tokens)], data["start"][row], data["end"][row] = tokens, start, len(tokens)
        log_probs_KxB, greedy_KxB = self._program(self._candidates, data)
        mixed = np.logaddexp.reduce(log_probs_KxB.astype(np.float64), axis=0) - np.log(len(log_probs_KxB))
        likely = 2 * greedy_KxB.sum(axis=0) > len(greedy_KxB)
        return [(float(mixed[row]), bool(likely[row])) for row in range(len(rows))]
