"""The members of an ensemble that answer together: each writes its own reply, and a vote chooses one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from perturbjax.errors import InputError
from perturbjax.inference.decode import NO_TOKEN, Replies, generate
from perturbjax.randopt.early_exit import check_early_exit, decided, random_order
from perturbjax.randopt.ensemble import Ensemble
from perturbjax.randopt.setup import Parts
from perturbjax.randopt.voting import tally
from perturbjax.runs.machine import make_mesh
from perturbjax.scoring import ChunkProgram
from perturbjax.serve.config import Limits
from perturbjax.serve.work import Piece, Work, batch_arrays, rehearsals
from perturbjax.sharding import DATA
from perturbjax.tasks.base import Example, Task
from perturbjax.tasks.equality import AnswerGroups


class _Reply(NamedTuple):
    """What the member of a rank (0 for the best) wrote, and what it counts as: None for an abstention."""

    rank: int
    written: tuple[int, ...]
    stopped: bool
    finite: bool
    answer: str | None
    key: str | None


class Members:
    """K members that vote on each request. Noise is made anew for each batch: the members are never in memory at once.

    A generation task reads the replies as in ``predict``; a reply without an answer abstains. Where it cannot (a multiple-choice task, or
    one that reads fields of its questions), replies count as one if they are the same text. What is sent is the reply of the best member
    that gave the winning answer, and that of the best member where all abstain. With ``early_exit`` members are asked as many at a time as
    run together, and a request until its vote is decided (``randopt.early_exit``).

    Args:
        parts: of the run; its base is put on all devices, members are sharded over them.
        ensemble: who votes.
        early_exit: the probability with which a reply may differ from that of all members; None asks all.
        limits: the shapes that the program is compiled for.
        note: told once if replies vote by their text.
    """

    streams = False

    def __init__(self, parts: Parts, ensemble: Ensemble, limits: Limits, note: Callable[[str], None], early_exit: float | None = None):
        model, machine = parts.model, parts.config.machine
        limits.check_context(model.config.max_positions)
        self._tokenizer, self._limits, self._ensemble, self._early_exit = model.tokenizer, limits, ensemble, early_exit
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
        self._groups = [np.arange(len(ensemble))]
        if early_exit is not None:
            check_early_exit(early_exit, ensemble.voting)
            order, together = random_order(ensemble.population, len(ensemble)), mesh.shape[DATA] * machine.in_flight
            self._groups = [order[start : start + together] for start in range(0, len(order), together)]

    @property
    def traces(self) -> int:
        return self._program.traces

    def warm_up(self, note: Callable[[str], None]) -> None:
        for batch in rehearsals(self._limits):
            note(f"compiling for {len(batch)} prompts of up to {len(batch[0].tokens)} tokens")
            self._run(self._groups[0], batch_arrays(batch, self._limits))

    def answer(self, batch: Sequence[Work]) -> int:
        arrays, members = batch_arrays(batch, self._limits), len(self._ensemble)
        cast: list[list[_Reply]] = [[] for _ in batch]
        groups = [None if self._task is None else AnswerGroups(self._task) for _ in batch]
        rest, spent = list(range(len(batch))), 0
        for ranks in self._groups:
            tokens, finite = self._run(ranks, arrays)
            spent += int((tokens[:, rest] != NO_TOKEN).sum())
            for row in rest:
                cast[row] += [
                    self._read(batch[row], groups[row], int(rank), *own)
                    for rank, *own in zip(ranks, tokens[:, row], finite[:, row], strict=True)
                ]
            if self._early_exit is not None:
                rest = [row for row in rest if not decided([reply.key for reply in cast[row]], members, self._early_exit)]
                arrays["valid"] = np.isin(np.arange(len(arrays["valid"])), rest)
            if not rest:
                break
        for work, replies in zip(batch, cast, strict=True):
            work.emit(self._voted(sorted(replies, key=lambda reply: reply.rank)))
        return spent

    def _run(self, ranks: np.ndarray, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Of these members: tokens (K, B, W) and whether all logits were finite (K, B)."""
        needed = {name: arrays[name] for name in ("tokens", "lengths", "valid", "limits")}
        replies = self._program(self._ensemble.population[self._ensemble.members[ranks]], needed)
        return replies.tokens, replies.finite

    def _read(self, work: Work, groups: AnswerGroups | None, rank: int, tokens_W: np.ndarray, finite: bool) -> _Reply:
        """What one member wrote, and how it is counted."""
        tokens = [int(token) for token in tokens_W if token != NO_TOKEN]
        stopped = bool(tokens) and tokens[-1] in self._tokenizer.stop_ids
        written = tokens[:-1] if stopped else tokens
        example = Example("request", work.question, "")
        answer = self._answer(self._tokenizer.decode(written), example) if finite else None
        key = answer
        if answer is not None and self._task is not None and groups is not None:
            key = groups.key(answer, self._task.vote_key(answer, example), example)
        return _Reply(rank, tuple(written), stopped, finite, answer, key)

    def _voted(self, replies: Sequence[_Reply]) -> Piece:
        """The vote of those who were asked, best-ranked first."""
        answers, keys = [reply.answer for reply in replies], [reply.key for reply in replies]
        voting = self._ensemble.voting.of(np.array([reply.rank for reply in replies]))
        winner = int(voting.winners([[each] for each in answers], [[each] for each in keys])[0, -1])
        usable = [reply for reply in replies if reply.finite]
        if not usable:
            return Piece(ended="error")
        votes, asked = tally(answers, keys), len(replies)
        answer = None if winner < 0 else answers[winner]
        share = 0.0 if answer is None else votes[answer] / asked
        chosen = usable[0] if winner < 0 else replies[winner]
        vote = {"answer": answer, "share": share, "votes": votes, "members": len(self._ensemble), "asked": asked}
        return Piece(chosen.written, "stop" if chosen.stopped else "length", vote)

    def _answer(self, text: str, example: Example) -> str | None:
        return text.strip() or None if self._task is None else self._task.extract(text, example)


def _reads(task: Task) -> bool:
    """Whether a task finds answers in replies to a question that is only text."""
    if task.kind == "choice":
        return False
    try:
        task.extract("1", Example("request", "?", ""))
    except (InputError, LookupError, TypeError):
        return False
    return True
