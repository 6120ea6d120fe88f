"""The members of an ensemble that answer together: each writes its own reply, and a vote chooses one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from perturbjax.errors import InputError
from perturbjax.inference.decode import NO_TOKEN, Replies, generate
from perturbjax.randopt.ensemble import Ensemble
from perturbjax.randopt.setup import Parts
from perturbjax.randopt.voting import tally
from perturbjax.runs.machine import make_mesh
from perturbjax.scoring import ChunkProgram
from perturbjax.serve.config import Limits
from perturbjax.serve.work import Piece, Work, batch_arrays, rehearsals
from perturbjax.tasks.base import Example, Task


class Members:
    """K members that vote on each request. Noise is made anew for each batch: the members are never in memory at once.

    A generation task reads the replies as in ``predict``; a reply without an answer abstains. Where it cannot (a multiple-choice task, or
    one that reads fields of its questions), replies count as one if they are the same text. What is sent is the reply of the best member
    that gave the winning answer, and that of the best member where all abstain.

    Args:
        parts: of the run; its base is put on all devices, members are sharded over them.
        ensemble: who votes.
        limits: the shapes that the program is compiled for.
        note: told once if replies vote by their text.
    """

    streams = False

    def __init__(self, parts: Parts, ensemble: Ensemble, limits: Limits, note: Callable[[str], None]):
        model, machine = parts.model, parts.config.machine
        limits.check_context(model.config.max_positions)
        self._tokenizer, self._limits, self._ensemble = model.tokenizer, limits, ensemble
        self._task = parts.task if _reads(parts.task) else None
        if self._task is None:
            note(f"task {parts.task.name} does not read replies to open questions: members vote by the text of their replies")
        strategy = "copy" if parts.config.search.strategy == "auto" else parts.config.search.strategy
        config, stops = model.config, model.tokenizer.stop_ids

        def reply(params: Any, _: Any, data: dict[str, jax.Array]) -> Replies:
            rows = (data["tokens"], data["lengths"], data["valid"])
            return generate(config.build(params), *rows, limits.max_tokens, stops, limits_B=data["limits"])

        mesh = make_mesh(machine)
        self._program = ChunkProgram(reply, model.params, ensemble.noise, mesh, machine.chunk, machine.in_flight, strategy)

    @property
    def traces(self) -> int:
        return self._program.traces

    def warm_up(self, note: Callable[[str], None]) -> None:
        for batch in rehearsals(self._limits):
            note(f"compiling for {len(batch)} prompts of up to {len(batch[0].tokens)} tokens")
            self._run(batch)

    def answer(self, batch: Sequence[Work]) -> int:
        tokens, finite = self._run(batch)
        for row, work in enumerate(batch):
            work.emit(self._voted(work, tokens[:, row], finite[:, row]))
        return int((tokens != NO_TOKEN).sum())

    def _run(self, batch: Sequence[Work]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (K, B, W) and whether all logits were finite (K, B), of the rows in use."""
        arrays = batch_arrays(batch, self._limits)
        needed = {name: arrays[name] for name in ("tokens", "lengths", "valid", "limits")}
        replies = self._program(self._ensemble.candidates, needed)
        return replies.tokens[:, : len(batch)], replies.finite[:, : len(batch)]

    def _voted(self, work: Work, tokens_KxW: np.ndarray, finite_K: np.ndarray) -> Piece:
        if not finite_K.any():
            return Piece(ended="error")
        rows = [[int(token) for token in row if token != NO_TOKEN] for row in tokens_KxW]
        stopped = [bool(row) and row[-1] in self._tokenizer.stop_ids for row in rows]
        written = [row[:-1] if end else row for row, end in zip(rows, stopped, strict=True)]
        texts = [self._tokenizer.decode(row) if ok else None for row, ok in zip(written, finite_K, strict=True)]
        example = Example("request", work.question, "")
        answers = [None if text is None else self._answer(text, example) for text in texts]
        keys = [None if answer is None else self._key(answer, example) for answer in answers]
        winner = int(self._ensemble.voting.winners([[each] for each in answers], [[each] for each in keys])[0, -1])
        votes = tally(answers, keys)
        answer = None if winner < 0 else answers[winner]
        share = 0.0 if answer is None else votes[answer] / len(rows)
        chosen = int(np.argmax(finite_K)) if winner < 0 else winner
        vote = {"answer": answer, "share": share, "votes": votes, "members": len(rows)}
        return Piece(tuple(written[chosen]), "stop" if stopped[chosen] else "length", vote)

    def _answer(self, text: str, example: Example) -> str | None:
        return text.strip() or None if self._task is None else self._task.extract(text, example)

    def _key(self, answer: str, example: Example) -> str:
        return answer if self._task is None else self._task.vote_key(answer, example)


def _reads(task: Task) -> bool:
    """Whether a task finds answers in replies to a question that is only text."""
    if task.kind == "choice":
        return False
    try:
        task.extract("1", Example("request", "?", ""))
    except (InputError, LookupError, TypeError):
        return False
    return True
